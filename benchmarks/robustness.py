"""Times attack sweeps on MNIST, measures their memory, and collects their flags.

Every finished measurement leaves a JSON file in the output folder and is not repeated,
so that the script can be stopped and started again. The networks are trained on first
use (about ten minutes on two cores) and kept in the folder `--cache`.

    python -m benchmarks.robustness --cache networks
    python -m benchmarks.robustness --cache networks --images 2000 --networks plain

At the end a table of all that has been timed is printed; its ratios are over pgd_ce.
The sweeps are PGD with 40 steps of 0.01 at seven epsilons, compilation included:

    cleverhans  the plain loop: every image at every epsilon
    art         the same with the Adversarial Robustness Toolbox
    pgd_ce      `evaluate_robustness`, from the image, without the checks
    pgd_both    cross-entropy and margin loss, from the image and a random start each
"""

import argparse
import gc
import json
import os
import pathlib
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

import keras_powerlaw as kp
from benchmarks import networks
from benchmarks.processes import in_a_process
from examples.experiments import data as data_sets

EPSILONS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3)
STEPS, STEP_SIZE, BATCH = 40, 0.01, 500
EPOCHS = {"plain": 30, "regularized": 30, "cnn": 10}


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
    wall, cpu = time.perf_counter(), time.process_time()
    accuracy = run(model, x, y)
    return {
        "seconds": round(time.perf_counter() - wall, 2),
        "cpu_seconds": round(time.process_time() - cpu, 2),
        "images": len(x),
        "accuracy": accuracy,
    }


def status(field):
    """A figure of this process in MiB, on Linux."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    [line] = [line for line in lines if line.startswith(field)]
    return int(line.split()[1]) / 1024


def kept_memory(by, x, y):
    """Resident memory in MiB after each of six models, attacked and deleted."""
    resident = []
    for _ in range(6):
        model = keras.Sequential(
            [
                keras.Input(x.shape[1:]),
                keras.layers.Flatten(),
                keras.layers.Dense(6000, activation="tanh"),
                keras.layers.Dense(900),
                keras.layers.Dense(10),
            ]
        )
        if by == "cleverhans":
            cleverhans(model, x, y)
        else:
            kp.evaluate_robustness(model, x, y, EPSILONS, ["pgd"], verbose=0)
        del model
        keras.utils.clear_session()
        gc.collect()
        resident.append(round(status("VmRSS"), 1))
    return {"images": len(x), "resident_mib": resident}


def peak_memory(model, x, y):
    """Resident memory of this process, in MiB: before an evaluation, and its peak."""

    def evaluate(x, y):
        kp.evaluate_robustness(
            model,
            x,
            y,
            [0.05, 0.1],
            ["fgsm", "pgd", "noise", "uniform_noise", "pgd_ce", "pgd_dlr"],
            pgd_steps=10,
            restarts=2,
            verbose=0,
        )

    evaluate(x[:BATCH], y[:BATCH])  # compiles
    gc.collect()
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = status("VmRSS")
    evaluate(x, y)
    return {
        "images": len(x),
        "input_mib": round(x.nbytes / 2**20, 1),
        "before_mib": round(before, 1),
        "peak_mib": round(status("VmHWM"), 1),
    }


def flags(model, x, y, checkpoint):
    report = kp.evaluate_robustness(
        model, x, y, EPSILONS, "strong", checkpoint=checkpoint, verbose=0
    )
    return {
        "images": len(x),
        "clean_accuracy": report.clean_accuracy,
        "accuracy": {name: rows.tolist() for name, rows in report.accuracy.items()},
        "worst_case": report.worst_case_accuracy.tolist(),
        "flags": [str(flag) for flag in report.flags],
        "report": json.loads(report.to_json()),
    }


def table(output):
    """Prints what has been timed: seconds, and how often each sweep fits in them."""
    print("\n| network | images | sweep | seconds | ratio | CPU seconds | ratio |")
    print("|---|---|---|---|---|---|---|")
    for network in networks.NAMES:
        found = {}
        for name in SWEEPS:
            for path in output.glob(f"robustness-{network}-{name}-*.json"):
                result = json.loads(path.read_text())
                found.setdefault(result["images"], {})[name] = result
        for images, sweeps in sorted(found.items()):
            ours = sweeps["pgd_ce"]
            for name, sweep in sweeps.items():
                cells = (
                    f"{sweep[clock]:.1f} | {sweep[clock] / ours[clock]:.1f}"
                    for clock in ("seconds", "cpu_seconds")
                )
                print(f"| {network} | {images} | {name} | {' | '.join(cells)} |")


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cache", type=pathlib.Path, required=True)
    parser.add_argument("--output", type=pathlib.Path, default="docs/benchmarks")
    parser.add_argument("--data-dir", help="folder of tensorflow-datasets")
    parser.add_argument(
        "--networks", nargs="+", choices=networks.NAMES, default=networks.NAMES
    )
    parser.add_argument("--sweeps", nargs="*", choices=SWEEPS, default=list(SWEEPS))
    parser.add_argument("--images", type=int, default=10000, help="for the sweeps")
    parser.add_argument("--flagged", type=int, default=500, help="for flags; 0: none")
    parser.add_argument(
        "--memory", type=int, nargs="*", default=[1000, 10000], help="numbers of images"
    )
    parser.add_argument("--peak", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--kept", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)

    data = data_sets.load("mnist", args.data_dir)
    x, y = data[1]
    if args.kept:  # these two in a process of their own
        print(json.dumps(kept_memory(args.kept, x[:100], y[:100])))
        return
    if args.peak:
        model = networks.trained("plain", data, args.cache, EPOCHS["plain"])
        del data  # the training images
        print(json.dumps(peak_memory(model, x[: args.peak], y[: args.peak])))
        return

    args.output.mkdir(parents=True, exist_ok=True)

    def measure(name, run, *arguments):
        path = args.output / f"robustness-{name}.json"
        if not path.exists():
            result = run(*arguments)
            unfinished = path.with_suffix(".tmp")
            unfinished.write_text(json.dumps(result))
            unfinished.rename(path)
            shown = {key: result[key] for key in result if key != "report"}
            print(name, json.dumps(shown, ensure_ascii=False), flush=True)

    def by_itself(*options):
        options = ["--cache", args.cache.resolve(), *options]
        if args.data_dir:
            options += ["--data-dir", pathlib.Path(args.data_dir).resolve()]
        return in_a_process("benchmarks.robustness", *options)

    for network in args.networks:
        model = networks.trained(network, data, args.cache, EPOCHS[network])
        for name in args.sweeps:
            measure(
                f"{network}-{name}-{args.images}",
                timed,
                SWEEPS[name],
                model,
                x[: args.images],
                y[: args.images],
            )
    for count in args.memory:
        measure(f"memory-{count}", by_itself, "--peak", count)
    for by in ("cleverhans", "ours") if args.memory else ():
        measure(f"kept-{by}", by_itself, "--kept", by)
    for network in args.networks if args.flagged else []:
        model = networks.trained(network, data, args.cache, EPOCHS[network])
        checkpoint = args.output / f"robustness-{network}.unfinished.json"
        images, labels = x[: args.flagged], y[: args.flagged]
        measure(f"flags-{network}", flags, model, images, labels, checkpoint)
        checkpoint.unlink(missing_ok=True)
    table(args.output)


if __name__ == "__main__":
    main()
