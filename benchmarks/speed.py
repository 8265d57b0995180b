"""Times the penalty, the refresh and whole trainings, side by side in one run.

Every finished measurement leaves a JSON file in the output folder and is not repeated,
so the script can be stopped or killed at any time and started again. What is compared
takes turns (A B A B …), and a ratio is the median over the turns. Seconds are those of
the wall clock, CPU seconds those of all threads; on a shared machine, trust the latter.

    python -m benchmarks.speed                               # all of them: hours
    python -m benchmarks.speed --measure step refresh memory --data random
    python -m benchmarks.speed --measure step --sizes 2000x3000 --forms plain literal
    python -m benchmarks.speed --measure spectrum --schedules paper fast --seeds 0 1 2
    KERAS_BACKEND=jax python -m benchmarks.speed --data mnist.npz   # no TensorFlow

The network is that of section 4.1: 2,000 tanh units with batch normalization, on MNIST.

    step      a training step without the penalty and with each of its forms (steps.py)
    refresh   `refresh_eigenbasis` on all images, and its bare parts (refreshes.py)
    window    a refresh from the training's activations, and its bare parts
              (window_refreshes.py)
    epoch     an epoch of an ordinary CNN, the basis from its training or the data
              (epochs.py)
    memory    peak memory of a process that trains, one for each form (step_memory.py)
    spectrum  training until the layer's exponent is 1, by each of the `SCHEDULES`
              (schedules.py, trainings.py, spectra.py, spectrum_tables.py)
    interval  trainings that renew the basis more or less often, on more or fewer images
              (the same modules)

measuring.py keeps the files, forms.py holds the network and the forms of the penalty.
"""

import argparse
import json
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from benchmarks.epochs import epoch_table, measure_epoch
from benchmarks.forms import DEFAULT_FORMS, FORMS
from benchmarks.measuring import print_table
from benchmarks.refreshes import measure_refresh, refresh_table
from benchmarks.schedules import SCHEDULES
from benchmarks.spectra import measure_intervals, measure_spectra
from benchmarks.spectrum_tables import interval_table, spectrum_table
from benchmarks.step_memory import measure_memory, memory_table, peak_memory
from benchmarks.steps import measure_steps, step_table
from benchmarks.window_refreshes import measure_window, window_table
from examples.experiments.data import load

SIZES = [
    *((2000, batch) for batch in (64, 256, 500, 1500, 3000)),
    *((width, 3000) for width in (500, 1000, 4000, 8000)),
]
# What measures each kind, and what shows all results of that kind.
KINDS = {
    "step": (measure_steps, step_table),
    "refresh": (measure_refresh, refresh_table),
    "window": (measure_window, window_table),
    "epoch": (measure_epoch, epoch_table),
    "memory": (measure_memory, memory_table),
    "spectrum": (measure_spectra, spectrum_table),
    "interval": (measure_intervals, interval_table),
}


def random_data(images):
    """Noise in the shape of MNIST, for where only time and memory matter."""
    rng = np.random.default_rng(0)
    x = rng.random((images, 28, 28, 1), dtype="float32")
    return (x, rng.integers(10, size=images)), (x[:1000], np.zeros(1000, "int64"))


def size(text):
    width, batch = text.split("x")
    return int(width), int(batch)


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--measure", nargs="+", choices=KINDS, default=list(KINDS))
    add("--data", help="an .npz file like mnist.npz, tfds' folder, or random")
    add("--output", type=pathlib.Path, default="docs/benchmarks")
    add("--images", type=int, help="train on so many; default: all")
    add("--forms", nargs="+", choices=FORMS, default=DEFAULT_FORMS)
    add("--sizes", nargs="+", type=size, default=SIZES, metavar="WIDTHxBATCH")
    add("--rounds", type=int, default=5, help="turns of each")
    add("--limit", type=float, default=60, help="seconds; leave out slower steps")
    add("--width", type=int, default=2000, help="for all but step")
    add("--batch", type=int, default=3000, help="for memory")
    add("--schedules", nargs="+", choices=SCHEDULES, default=list(SCHEDULES))
    add("--seeds", nargs="+", type=int, default=[0])
    add("--attacked", type=int, default=2000, help="attack so many test images")
    add("--strong", type=int, default=0, help="and so many with the strong attacks")
    add("--draw", type=pathlib.Path, help="a figure of the networks of spectrum")
    add("--peak", choices=FORMS, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)

    if args.peak:  # in a process of its own
        data = random_data(max(5 * args.batch, 2 * args.width))
        print(json.dumps(peak_memory(args.peak, (args.width, args.batch), data)))
        return
    if args.data == "random":
        if {"spectrum", "interval"} & set(args.measure):
            raise SystemExit("A network can't learn random data: no spectrum.")
        data = random_data(args.images or 60_000)
    else:
        (x, y), test = load("mnist", args.data)
        data = (x[: args.images], y[: args.images]), test
    args.output.mkdir(parents=True, exist_ok=True)

    for kind in args.measure:
        measure, _ = KINDS[kind]
        measure(args, data)
    for kind in args.measure:
        _, table = KINDS[kind]
        print_table(kind, args.output, table)


if __name__ == "__main__":
    main()
