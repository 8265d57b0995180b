"""PGD sweeps over seven strengths: the package's, and those it is compared with."""

import keras
import numpy as np

import keras_powerlaw as kp
from benchmarks.clock import Clock
from examples.experiments.presets import EPSILONS

STEPS, STEP_SIZE, BATCH = 40, 0.01, 500


def cleverhans(model, x, y):
    from cleverhans.tf2.attacks.projected_gradient_descent import (
        projected_gradient_descent,
    )

    def logits(images):
        return model(images, training=False)

    def attack(images, labels, epsilon):
        return projected_gradient_descent(
            logits,
            images,
            epsilon,
            STEP_SIZE,
            STEPS,
            np.inf,
            clip_min=0.0,
            clip_max=1.0,
            y=labels,
            rand_init=False,
        )

    return sweep(model, x, y, attack)


def art(model, x, y):
    from art.attacks.evasion import ProjectedGradientDescent
    from art.estimators.classification import TensorFlowV2Classifier

    classifier = TensorFlowV2Classifier(
        model,
        nb_classes=10,
        input_shape=x.shape[1:],
        loss_object=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        clip_values=(0.0, 1.0),
    )

    def attack(images, labels, epsilon):
        return ProjectedGradientDescent(
            classifier,
            eps=epsilon,
            eps_step=STEP_SIZE,
            max_iter=STEPS,
            num_random_init=0,
            batch_size=BATCH,
            verbose=False,
        ).generate(images, labels)

    return sweep(model, x, y, attack)


def sweep(model, x, y, attack):
    """Accuracy at each epsilon, of an attack on every image."""
    accuracies = []
    for epsilon in EPSILONS:
        correct = 0
        for start in range(0, len(x), BATCH):
            batch = slice(start, start + BATCH)
            logits = model(attack(x[batch], y[batch], epsilon), training=False)
            correct += int((np.argmax(logits, axis=1) == y[batch]).sum())
        accuracies.append(correct / len(x))
    return accuracies


def strong(attacks, restarts):
    def run(model, x, y):
        report = kp.evaluate_robustness(
            model,
            x,
            y,
            EPSILONS,
            attacks,
            pgd_steps=STEPS,
            pgd_step_size=STEP_SIZE,
            restarts=restarts,
            batch_size=BATCH,
            checks=False,
            verbose=0,
        )
        return report.worst_case_accuracy.tolist()

    return run


SWEEPS = {
    "pgd_ce": strong(["pgd_ce"], restarts=1),
    "pgd_both": strong(["pgd_ce", "pgd_dlr"], restarts=2),
    "cleverhans": cleverhans,
    "art": art,
}


def timed(run, model, x, y):
    """The seconds and accuracies of one of the `SWEEPS`."""
    clock = Clock()
    accuracy = run(model, x, y)
    seconds, cpu_seconds = clock.read()
    return {
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu_seconds, 2),
        "images": len(x),
        "accuracy": accuracy,
    }


def sweep_table(results):
    """Seconds of each sweep, and over those of pgd_ce.

    Args:
        results: From network, number of images and sweep to what `timed` returned.
    """
    yield (
        *("network", "images", "sweep"),
        *("seconds", "ratio", "CPU seconds", "ratio"),
    )
    for (network, images, name), result in results.items():
        ours = results.get((network, images, "pgd_ce"))
        row = [network, images, name]
        for clock in ("seconds", "cpu_seconds"):
            ratio = f"{result[clock] / ours[clock]:.1f}" if ours else "–"
            row += [f"{result[clock]:.1f}", ratio]
        yield row
