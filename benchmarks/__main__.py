"""Times the penalty and what is around it, side by side; keeps and prints the figures.

Every finished measurement is a line of JSON in the output file and is not repeated, so
this can be stopped or killed at any time and started again. What is compared takes
turns (A B A B …), and a ratio is the median over the turns. Seconds are those of the
wall clock, CPU seconds those of all threads; on a shared machine, trust the latter.

    python -m benchmarks                        # measures nothing, prints all tables
    python -m benchmarks --measure step window --data random
    python -m benchmarks --measure spectrum --schedules paper fast --seeds 0 1 2
    python -m benchmarks --measure zoo --networks digits --penalties none nearest
    KERAS_BACKEND=jax python -m benchmarks --measure step --data mnist.npz

    step         a training step without the penalty and with each of its forms
    window       a refresh from the training's activations, and its bare parts
    spectrum     training until the layer's exponent is 1, by each of the schedules
    interval     trainings that renew the basis more or less often, on more or less
    zoo          ordinary networks, each with the penalty in each of its forms
    knob         exponents asked for and measured, by three ways to a spectrum
    repeats      two simulated repeats by moments, cvPCA and PCA: time, memory
    laws         the same, many small ones of known laws: bias, coverage
    flags        the strong attacks, and the flags they raise

The network is that of section 4.1, 2,000 tanh units with batch normalization, where a
module does not say another one.
"""

import argparse
import itertools
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from benchmarks import (
    knob,
    measuring,
    networks,
    recordings,
    refreshes,
    robustness,
    schedules,
    spectra,
    spectrum_tables,
    steps,
    zoo,
    zoo_networks,
)
from research.printed import print_rows

# Of each kind: its measurements, as pairs of settings and a function of them, and the
# rows that show all results.
KINDS = {
    "step": (steps.cases, steps.table),
    "window": (refreshes.cases, refreshes.table),
    "spectrum": (spectra.cases, spectrum_tables.spectrum_table),
    "interval": (spectra.interval_cases, spectrum_tables.interval_table),
    "zoo": (zoo.cases, zoo.table),
    "knob": (knob.cases, knob.table),
    "repeats": (recordings.cases, recordings.table),
    "laws": (recordings.law_cases, recordings.law_table),
    "flags": (robustness.cases, robustness.table),
}


def parser():
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add, path, several = parser.add_argument, pathlib.Path, {"nargs": "+"}
    add("--measure", choices=KINDS, **several, default=[])
    add("--output", type=path, default="docs/benchmarks/measurements.jsonl")
    add("--data", help="an .npz file, a folder (for the zoo, of .npz files), or random")
    add("--forms", choices=networks.FORMS, **several, default=networks.FORMS)
    sizes = {"default": [(2000, 3000)], "metavar": "WIDTHxBATCH"}
    add("--sizes", type=size, **several, **sizes)
    add("--rounds", type=int, default=5, help="turns of each")
    add("--limit", type=float, default=60, help="seconds; leave out slower steps")
    add("--width", type=int, default=2000, help="for all but step")
    names = list(schedules.SCHEDULES)
    add("--schedules", choices=names, **several, default=names)
    add("--seeds", type=int, **several, default=[0])
    add("--attacked", type=int, default=2000, help="attack so many test images")
    add("--strong", type=int, default=0, help="and so many with the strong attacks")
    add("--draw", type=path, help="a figure of the schedules")
    names = list(zoo_networks.NETWORKS)
    add("--networks", choices=names, **several, default=names)
    add("--penalties", choices=zoo.FORMS, **several, default=zoo.FORMS)
    add("--settings", type=setting, **several, default=[{}], help="as beta=1,tau=5")
    add("--stimuli", type=int, default=2800)
    add("--units", type=int, default=10_000)
    return parser


def size(text):
    width, batch = text.split("x")
    return int(width), int(batch)


def setting(text):
    """`{"beta": 0.5}` from `"beta=0.5"`: arguments of regularizer or refresh."""
    pairs = (pair.split("=") for pair in text.split(","))
    return {k: float(v) if k == "beta" else int(v) for k, v in pairs}


def main(argv=None):
    args = parser().parse_args(argv)
    for kind in args.measure:
        cases, _ = KINDS[kind]
        for settings, run in cases(args):
            measuring.measured(
                *(args.output, kind, settings),
                lambda settings=settings, run=run: run(settings),
            )
    stored = measuring.lines(args.output)
    places = sorted({(line["backend"], line["device"]) for line in stored})
    for place, kind in itertools.product(places, args.measure or KINDS):
        results = [
            line
            for line in stored
            if (line["backend"], line["device"], line["kind"]) == (*place, kind)
        ]
        if results:
            print(f"\n{kind}, {' on '.join(place)}\n")
            print_rows(KINDS[kind][1](results))
    if args.draw:
        here = {"kind": "spectrum", **measuring.place()}.items()
        results = [line for line in stored if here <= line.items()]
        drawn = spectrum_tables.draw(results, args.schedules, args.seeds, args.width)
        drawn.savefig(args.draw, dpi=150)


if __name__ == "__main__":
    main()
