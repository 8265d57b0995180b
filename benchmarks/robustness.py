"""Times attack sweeps on MNIST beside the plain loop, and collects flags.

The networks are trained on first use (about ten minutes on two cores) and kept in the
folder `--cache`. The sweeps are PGD with 40 steps of 0.01 at seven epsilons, and the
compilation of it:

    cleverhans  the plain loop: every image at every epsilon
    art         the same with the Adversarial Robustness Toolbox
    pgd_ce      `evaluate_robustness`, from the image, without the checks
    pgd_both    cross-entropy and margin loss, from the image and a random start each
"""

import itertools

import keras
import numpy as np

import keras_powerlaw as kp
from benchmarks.measuring import Clock
from benchmarks.networks import PENALTY, mnist
from research.networks import build_model
from research.presets import EPSILONS, PRESETS
from research.runs import written_whole
from research.table import report_row
from research.training import train

STEPS, STEP_SIZE, BATCH = 40, 0.01, 500
SHALLOW = {"architecture": "shallow", **PRESETS["cpu"]["shallow"]}
# Settings as `build_model` and `train` take them: the networks of section 4.1, with a
# penalty and without, and the paper's convolutional one, plain.
NETWORKS = {
    "plain": {**SHALLOW, "condition": "vanilla"},
    "regularized": {**SHALLOW, "condition": "last", **PENALTY},
    "cnn": {
        **{"architecture": "cnn", "condition": "vanilla", "width": 1000},
        **{"epochs": 10, "learning_rate": 1e-3, "batch_size": 500},
    },
}


def cases(args):
    for network, name in itertools.product(args.attacked_networks, args.sweeps):
        settings = {"network": network, "images": args.images or 10_000, "sweep": name}
        yield settings, lambda settings: sweep(settings, args)


def flag_cases(args):
    for network in args.attacked_networks:
        settings = {"network": network, "images": args.strong or 500}
        yield settings, lambda settings: flags(settings, args)


def sweep(settings, args):
    (x, y), model = attacked(settings, args)
    clock = Clock()
    accuracy = SWEEPS[settings["sweep"]](model, x, y)
    seconds, cpu_seconds = (round(value, 2) for value in clock.read())
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "accuracy": accuracy}


def flags(settings, args):
    """What the strong attacks find on a network, and the flags that are raised."""
    (x, y), model = attacked(settings, args)
    report = kp.evaluate_robustness(model, x, y, EPSILONS, "strong", verbose=0)
    return report_row(report)


def attacked(settings, args):
    data = mnist(args.data)
    x, y = data[1]
    images = settings["images"]
    return (x[:images], y[:images]), trained(settings["network"], data, args.cache)


def trained(name, data, cache):
    """A network, from the folder of weights or trained now and saved there."""
    settings, ((x, y), _) = {**NETWORKS[name], "seed": 0}, data
    keras.utils.set_random_seed(settings["seed"])
    model, _ = build_model(settings, x.shape[1:])
    path = cache / f"{name}-{settings['epochs']}epochs.weights.h5"
    if path.exists():
        model.load_weights(path)
        return model
    train(model, settings, x, y)
    cache.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as unfinished:
        model.save_weights(unfinished)
    return model


def cleverhans(model, x, y):
    """Accuracy at each epsilon, of an attack on every image."""
    from cleverhans.tf2.attacks.projected_gradient_descent import (
        projected_gradient_descent,
    )

    def logits(images):
        return model(images, training=False)

    accuracies = []
    for epsilon in EPSILONS:
        correct = 0
        for start in range(0, len(x), BATCH):
            images, labels = x[start : start + BATCH], y[start : start + BATCH]
            attacked = projected_gradient_descent(
                *(logits, images, epsilon, STEP_SIZE, STEPS, np.inf),
                clip_min=0.0,
                clip_max=1.0,
                y=labels,
                rand_init=False,
            )
            correct += int((np.argmax(logits(attacked), axis=1) == labels).sum())
        accuracies.append(correct / len(x))
    return accuracies


def ours(attacks, restarts):
    def run(model, x, y):
        report = kp.evaluate_robustness(
            *(model, x, y, EPSILONS, attacks),
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
    "pgd_ce": ours(["pgd_ce"], restarts=1),
    "pgd_both": ours(["pgd_ce", "pgd_dlr"], restarts=2),
    "cleverhans": cleverhans,
}


def table(results):
    """Seconds of each sweep, and over those of pgd_ce."""
    yield "network", "images", "sweep", "seconds", "ratio", "CPU seconds", "ratio"
    found = {tuple(result["settings"].values()): result for result in results}
    for (network, images, name), result in found.items():
        ours = found.get((network, images, "pgd_ce"))
        row = [network, images, name]
        for clock in ("seconds", "cpu_seconds"):
            ratio = f"{result[clock] / ours[clock]:.1f}" if ours else "–"
            row += [f"{result[clock]:.1f}", ratio]
        yield row


def flag_table(results):
    """Accuracies in per cent, and the flags."""
    names = ["fgsm", "pgd", "noise", "uniform_noise"]
    names += ["pgd_ce", "pgd_dlr", "autopgd", "square"]
    yield "network", "clean", "ε", *names, "worst case", "flags"
    for result in results:
        for index, epsilon in enumerate(result["epsilons"]):
            accuracies = [result["accuracy"][name][index] for name in names]
            accuracies.append(result["worst_case"][index])
            yield (
                *(result["settings"]["network"], f"{100 * result['clean']:.1f}"),
                *(f"{epsilon:g}", *(f"{100 * each:.1f}" for each in accuracies)),
                "" if index else " ".join(result["flags"]),
            )
