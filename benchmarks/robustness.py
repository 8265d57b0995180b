"""Times attack sweeps on MNIST, measures their memory, and collects their flags.

Every finished measurement leaves a JSON file in the output folder and is not repeated,
so the script can be stopped and started again. The networks are trained on first use
(about ten minutes on two cores) and kept in the folder `--cache`.

    python -m benchmarks.robustness --cache networks
    python -m benchmarks.robustness --cache networks --images 2000 --networks plain

At the end a table of all that has been timed is printed; its ratios are over pgd_ce.
The sweeps are PGD with 40 steps of 0.01 at seven epsilons, compilation included:

    cleverhans  the plain loop: every image at every epsilon
    art         the same with the Adversarial Robustness Toolbox
    pgd_ce      `evaluate_robustness`, from the image, without the checks
    pgd_both    cross-entropy and margin loss, from the image and a random start each

They are in sweeps.py; attack_memory.py measures the memory.
"""

import argparse
import json
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras_powerlaw as kp
from benchmarks.attack_memory import kept_memory, peak_memory
from benchmarks.processes import in_a_process
from benchmarks.sweeps import SWEEPS, sweep_table, timed
from benchmarks.trained_networks import NETWORKS, trained
from examples.experiments.data import load
from examples.experiments.presets import EPSILONS
from examples.experiments.results import report_to_json, save_result
from examples.experiments.table import print_rows


def flags(model, x, y, checkpoint):
    """What the strong attacks find on a network, and the flags that are raised."""
    report = kp.evaluate_robustness(
        model, x, y, EPSILONS, "strong", checkpoint=checkpoint, verbose=0
    )
    return {
        "images": len(x),
        "clean_accuracy": report.clean_accuracy,
        "accuracy": {name: rows.tolist() for name, rows in report.accuracy.items()},
        "worst_case": report.worst_case_accuracy.tolist(),
        "flags": [str(flag) for flag in report.flags],
        "report": report_to_json(report),
    }


def timed_sweeps(output):
    """What has been timed, by network, number of images and sweep."""
    found = {}
    for network in NETWORKS:
        results = [
            (name, json.loads(path.read_text()))
            for name in SWEEPS
            for path in output.glob(f"robustness-{network}-{name}-*.json")
        ]
        results.sort(key=lambda named: named[1]["images"])
        for name, result in results:
            found[network, result["images"], name] = result
    return found


def parser():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add, names = parser.add_argument, tuple(NETWORKS)
    add("--cache", type=pathlib.Path, required=True)
    add("--output", type=pathlib.Path, default="docs/benchmarks")
    add("--data-dir", help="folder of tensorflow-datasets")
    add("--networks", nargs="+", choices=names, default=names)
    add("--sweeps", nargs="*", choices=SWEEPS, default=list(SWEEPS))
    add("--images", type=int, default=10000, help="for the sweeps")
    add("--flagged", type=int, default=500, help="for flags; 0: none")
    counts = {"type": int, "nargs": "*", "default": [1000, 10000]}
    add("--memory", **counts, help="numbers of images")
    add("--peak", type=int, help=argparse.SUPPRESS)
    add("--kept", help=argparse.SUPPRESS)
    return parser


def main(argv=None):
    args = parser().parse_args(argv)
    data = load("mnist", args.data_dir)
    x, y = data[1]
    if args.kept:  # these two in a process of their own
        print(json.dumps(kept_memory(args.kept, x[:100], y[:100])))
        return
    if args.peak:
        model = trained("plain", data, args.cache)
        del data  # the training images
        print(json.dumps(peak_memory(model, x[: args.peak], y[: args.peak])))
        return

    args.output.mkdir(parents=True, exist_ok=True)

    def measure(name, run, *arguments):
        path = args.output / f"robustness-{name}.json"
        if not path.exists():
            result = run(*arguments)
            save_result(path, result)
            shown = {key: result[key] for key in result if key != "report"}
            print(name, json.dumps(shown, ensure_ascii=False), flush=True)

    def by_itself(*options):
        options = ["--cache", args.cache.resolve(), *options]
        if args.data_dir:
            options += ["--data-dir", pathlib.Path(args.data_dir).resolve()]
        return in_a_process("benchmarks.robustness", *options)

    for network in args.networks:
        model = trained(network, data, args.cache)
        images, labels = x[: args.images], y[: args.images]
        for name in args.sweeps:
            measure(
                *(f"{network}-{name}-{args.images}", timed, SWEEPS[name]),
                *(model, images, labels),
            )
    for count in args.memory:
        measure(f"memory-{count}", by_itself, "--peak", count)
    for by in ("cleverhans", "ours") if args.memory else ():
        measure(f"kept-{by}", by_itself, "--kept", by)
    for network in args.networks if args.flagged else []:
        model = trained(network, data, args.cache)
        checkpoint = args.output / f"robustness-{network}.unfinished.json"
        images, labels = x[: args.flagged], y[: args.flagged]
        measure(f"flags-{network}", flags, model, images, labels, checkpoint)
        checkpoint.unlink(missing_ok=True)
    print()
    print_rows(sweep_table(timed_sweeps(args.output)))


if __name__ == "__main__":
    main()
