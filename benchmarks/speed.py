"""Times the penalty, the refresh and whole trainings, side by side in one run.

Every finished measurement leaves a JSON file in the output folder and is not repeated,
so that the script can be stopped, or killed, and started again. What is compared takes
turns: A B A B …, and a ratio is the median over the turns. Seconds are of the wall
clock, CPU seconds of all threads; on a machine that is shared, trust those of the CPU.

    python -m benchmarks.speed                               # all of them: hours
    python -m benchmarks.speed --measure step refresh memory --data random
    python -m benchmarks.speed --measure step --sizes 2000x3000 --forms plain literal
    python -m benchmarks.speed --measure spectrum --schedules paper fast --seeds 0 1 2
    KERAS_BACKEND=jax python -m benchmarks.speed --data mnist.npz   # no TensorFlow

The network is that of section 4.1: 2,000 tanh units with batch normalization, on MNIST.

    step      a training step without and with the penalty, in each of its forms
    refresh   `refresh_eigenbasis` on all images, and its bare parts
    memory    peak memory of a process that trains, one process for each form
    spectrum  training until the layer's exponent is 1, by each of the `SCHEDULES` in
              schedules.py
    interval  trainings that renew the basis more or less often, on more or fewer images
"""

import argparse
import json
import os
import pathlib
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import scipy.linalg

import keras_powerlaw as kp
from benchmarks.measuring import (
    Clock,
    device,
    measured,
    medians,
    print_table,
    progress,
    ratios,
)
from benchmarks.networks import FORMS, XLA, shallow
from benchmarks.processes import in_a_process
from benchmarks.robustness import status
from benchmarks.schedules import (
    SCHEDULES,
    interval_table,
    measure_intervals,
    measure_spectra,
    spectrum_table,
)
from examples.experiments import data as data_sets

# The program of "literal-unrolled" takes long to compile.
DEFAULT_FORMS = ("plain", "regularized", "exact", "literal")
SIZES = [
    *((2000, batch) for batch in (64, 256, 500, 1500, 3000)),
    *((width, 3000) for width in (500, 1000, 4000, 8000)),
]


def with_basis(form, width, x):
    """The network, ready for a training step."""
    model = shallow(form, width)
    if form.removesuffix(XLA) not in ("plain", "exact"):
        # Which eigenvectors they are makes no difference to the time of a step.
        kp.refresh_eigenbasis(model, x, max_samples=min(len(x), 2 * width), verbose=0)
    return model


# --- a training step -----------------------------------------------------------------


def step(size, forms, data, rounds, limit):
    """Seconds of a training step within `fit()`, where it is compiled.

    From the begin of an epoch to its end, over its number of steps: with the way of a
    batch into the program, without what happens once per `fit()`. A form whose first
    step takes longer than `limit` seconds is left out, and one that has taken so long
    in all gets no more turns.
    """
    width, batch = size
    (x, y), _ = data
    models, first, steps, times, left_out = {}, {}, {}, {}, {}
    for form in forms:
        models[form] = with_basis(form, width, x)
        first[form], _ = epoch_seconds(models[form], x, y, batch, 1)
        progress(f"  {form}: first step {first[form]:.2f} s")
        if first[form] > limit:
            left_out[form] = f"the first step took {first[form]:.0f} s"
            del models[form]
            continue
        _, clock = epoch_seconds(models[form], x, y, batch, 1)
        steps[form] = int(np.clip(1 / clock[0], 1, min(50, len(x) // batch)))
        times[form] = []
    for turn in range(rounds):
        for form, model in models.items():
            spent = steps[form] * sum(seconds for seconds, _ in times[form])
            if spent > limit:
                continue
            _, clock = epoch_seconds(model, x, y, batch, steps[form])
            times[form].append([value / steps[form] for value in clock])
        progress(f"  turn {turn + 1} of {rounds}")
    return {
        "first_step_seconds": first,
        "steps_per_turn": steps,
        "times": times,
        "left_out": left_out,
    }


def epoch_seconds(model, x, y, batch, steps):
    """Seconds of a `fit()` of one epoch, and a clock's reading of the epoch alone."""
    epoch = Epoch()
    begin = time.perf_counter()
    count = steps * batch
    model.fit(
        *(x[:count], y[:count]),
        batch_size=batch,
        shuffle=False,
        callbacks=[epoch],
        verbose=0,
    )
    return time.perf_counter() - begin, epoch.clock


class Epoch(keras.callbacks.Callback):
    # By its end, the epoch's metrics are numbers: all steps are done.
    def on_epoch_begin(self, epoch, logs=None):
        self._clock = Clock()

    def on_epoch_end(self, epoch, logs=None):
        self.clock = self._clock.read()


def step_table(results):
    yield (
        *("width", "batch", "form", "time", "CPU", "over *plain*", "CPU"),
        *("over *regularized*", "CPU", "first step"),
    )
    for result in results:
        size, times = result["settings"]["size"], result["times"]
        for form, turns in times.items():
            yield (
                *(*size, form, *medians(turns)),
                *ratios(turns, times.get("plain")),
                *ratios(turns, times.get("regularized")),
                f"{result['first_step_seconds'][form]:.1f} s",
            )
        for form, why in result["left_out"].items():
            yield *size, form, f"left out: {why}", *[""] * 6


# --- a refresh -----------------------------------------------------------------------


def refresh(width, data, rounds):
    """Seconds of a refresh on all images, and of its parts without anything around."""
    (x, _), _ = data
    model, bare = shallow("regularized", width), shallow("plain", width)
    bare.set_weights(model.get_weights())
    outputs = [bare.get_layer("hidden").output, *bare.outputs]
    probe = keras.Model(bare.inputs[0], outputs)
    batches = [x[start : start + 1024] for start in range(0, len(x), 1024)]
    to_numpy = keras.ops.convert_to_numpy

    def forward():
        return [to_numpy(probe(batch, training=False)[0]) for batch in batches]

    def products(activities):
        gram = np.zeros((width, width), order="F")
        for activity in activities:
            columns = activity.astype("float64").T
            gram = scipy.linalg.blas.dsyrk(
                1.0, columns, beta=1.0, c=gram, lower=True, overwrite_c=True
            )
        return gram

    def decomposition(sigma):
        return scipy.linalg.eigh(sigma, driver="evd")

    kp.refresh_eigenbasis(model, x[:2048], verbose=0)  # warms up
    probe(batches[0], training=False)
    times = {"refresh": [], "forward": [], "products": [], "decomposition": []}

    def timed(part, run, *arguments):
        clock = Clock()
        result = run(*arguments)
        times[part].append(clock.read())
        return result

    for turn in range(rounds):
        timed("refresh", lambda: kp.refresh_eigenbasis(model, x, verbose=0))
        activities = timed("forward", forward)
        gram = timed("products", products, activities)
        mean = sum(each.sum(axis=0, dtype="float64") for each in activities) / len(x)
        del activities
        sigma = gram / len(x) - np.outer(mean, mean)  # eigh reads the lower triangle
        timed("decomposition", decomposition, sigma)
        progress(f"  turn {turn + 1} of {rounds}")
    return {"times": times}


def refresh_table(results):
    yield "width", "images", "part", "time", "CPU", "over *all parts*", "CPU"
    for result in results:
        size = [result["settings"][key] for key in ("width", "images")]
        times = dict(result["times"])
        whole = times.pop("refresh")
        parts = np.sum(list(times.values()), axis=0).tolist()
        for name, turns in {"refresh": whole, "all parts": parts, **times}.items():
            yield *size, name, *medians(turns), *ratios(turns, parts)


# --- memory --------------------------------------------------------------------------


def peak_memory(form, size, data, steps=5):
    """Memory of this process in MiB: before a few training steps, and its peaks."""
    width, batch = size
    (x, y), _ = data
    model = with_basis(form, width, x)
    result = {"before_mib": status("VmRSS"), "peak_before_mib": status("VmHWM")}
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    epoch_seconds(model, x, y, batch, min(steps, len(x) // batch))
    result["peak_mib"] = status("VmHWM")
    result["device_peak_mib"] = device_peak()
    return result


def device_peak():
    """Peak of the memory taken on a GPU in MiB, or None."""
    backend = keras.backend.backend()
    if device()[0] == "cpu":
        return None
    if backend == "jax":
        import jax

        peak = jax.devices()[0].memory_stats()["peak_bytes_in_use"]
    elif backend == "torch":
        import torch

        peak = torch.cuda.max_memory_allocated()
    else:
        import tensorflow as tf

        peak = tf.config.experimental.get_memory_info("GPU:0")["peak"]
    return peak / 2**20


def memory_table(results):
    columns = ("before_mib", "peak_before_mib", "peak_mib", "device_peak_mib")
    yield (
        *("width", "batch", "form", "before the steps"),
        *("peak until then", "peak in them", "of the GPU"),
    )
    for result in results:
        values = [result[column] for column in columns]
        yield (
            *(result["settings"][key] for key in ("width", "batch", "form")),
            *("–" if value is None else f"{value:,.0f} MiB" for value in values),
        )


# --- the command line ----------------------------------------------------------------


TABLES = {
    "step": step_table,
    "refresh": refresh_table,
    "memory": memory_table,
    "spectrum": spectrum_table,
    "interval": interval_table,
}


def random_data(images):
    """Noise of MNIST's shape, where only time and memory matter."""
    rng = np.random.default_rng(0)
    x = rng.random((images, 28, 28, 1), dtype="float32")
    return (x, rng.integers(10, size=images)), (x[:1000], np.zeros(1000, "int64"))


def size(text):
    width, batch = text.split("x")
    return int(width), int(batch)


def measure_steps(args, data):
    forms = "" if tuple(args.forms) == DEFAULT_FORMS else "-" + "+".join(args.forms)
    for width, batch in args.sizes:
        settings = {
            **{"size": (width, batch), "forms": args.forms},
            **{"rounds": args.rounds, "limit": args.limit},
        }
        measured(
            args.output,
            f"step-{width}x{batch}{forms}",
            settings,
            lambda settings=settings: step(**settings, data=data),
        )


def measure_refresh(args, data):
    settings = {"width": args.width, "images": len(data[0][0]), "rounds": args.rounds}
    measured(
        args.output,
        f"refresh-{args.width}-{settings['images']}",
        settings,
        lambda: refresh(args.width, data, args.rounds),
    )


def measure_memory(args):
    def by_itself(form):
        options = ("--peak", form, "--width", args.width, "--batch", args.batch)
        return in_a_process("benchmarks.speed", *options)

    for form in args.forms:
        measured(
            args.output,
            f"memory-{args.width}x{args.batch}-{form}",
            {"form": form, "width": args.width, "batch": args.batch},
            lambda form=form: by_itself(form),
        )


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--measure", nargs="+", choices=TABLES, default=list(TABLES))
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
        (x, y), test = data_sets.load("mnist", args.data)
        data = (x[: args.images], y[: args.images]), test
    args.output.mkdir(parents=True, exist_ok=True)

    measurements = {
        "step": lambda: measure_steps(args, data),
        "refresh": lambda: measure_refresh(args, data),
        "memory": lambda: measure_memory(args),
        "spectrum": lambda: measure_spectra(args, data),
        "interval": lambda: measure_intervals(args, data),
    }
    for name in args.measure:
        measurements[name]()
    for name in args.measure:
        print_table(name, args.output, TABLES[name])


if __name__ == "__main__":
    main()
