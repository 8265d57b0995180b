"""Times the penalty, the refresh and whole trainings, side by side in one run.

Every finished measurement leaves a JSON file in the output folder and is not repeated,
so that the script can be stopped, or killed, and started again. What is compared takes
turns: A B A B …, and a ratio is the median over the turns. Seconds are of the wall
clock, CPU seconds of all threads; on a machine that is shared, trust those of the CPU.

    python benchmarks/speed.py                               # all of them: hours
    python benchmarks/speed.py --measure step refresh memory --data random
    python benchmarks/speed.py --measure step --sizes 2000x3000 --forms plain literal
    python benchmarks/speed.py --measure spectrum --schedules paper fast --seeds 0 1 2
    KERAS_BACKEND=jax python benchmarks/speed.py --data mnist.npz   # no TensorFlow

The network is that of section 4.1: 2,000 tanh units with batch normalization, on MNIST.

    step      a training step without and with the penalty, in each of its forms
    refresh   `refresh_eigenbasis` on all images, and its bare parts
    memory    peak memory of a process that trains, one process for each form
    spectrum  training until the layer's exponent is 1, by each of the SCHEDULES
"""

import argparse
import contextlib
import functools
import importlib
import json
import os
import pathlib
import platform
import subprocess
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

sys.path.append(str(pathlib.Path(__file__).parents[1] / "examples"))

import example_data
import keras
import numpy as np
import scipy.linalg
from literal import LiteralRegularizer
from robustness import status

import keras_powerlaw as kp

PENALTY = {"alpha": 1.0, "tau": 10, "beta": 5.0}

# What computes the penalty: called with its settings.
FORMS = {
    "plain": lambda **settings: None,
    "regularized": kp.SpectralActivityRegularizer,
    "exact": functools.partial(kp.SpectralActivityRegularizer, exact=True),
    "literal": LiteralRegularizer,
    "literal-unrolled": functools.partial(LiteralRegularizer, unrolled=True),
}
# The program of the last takes minutes to compile.
DEFAULT_FORMS = ("plain", "regularized", "exact", "literal")

SIZES = [
    *((2000, batch) for batch in (64, 256, 500, 1500, 3000)),
    *((width, 3000) for width in (500, 1000, 4000, 8000)),
]

# Trainings to compare: the form of the penalty and its settings, those of `fit()` and
# Adam, and those of `EigenbasisRefresh`. With "stop", training ends once the exponent
# is within TOLERANCE and the test accuracy at most so far below the plain network's.
PAPER = {"batch_size": 3000, "learning_rate": 1e-3, "epochs": 30, "refresh": {}}
SCHEDULES = {
    "literal": {"form": "literal", "penalty": PENALTY, **PAPER},
    "paper": {"form": "regularized", "penalty": PENALTY, **PAPER},
    "fast": {
        "form": "regularized",
        "penalty": PENALTY,
        "batch_size": 500,
        "learning_rate": 1e-3,
        "epochs": 10,
        "refresh": {"every_steps": 20, "max_samples": 6000},
    },
}
TOLERANCE = 0.05  # of the exponent
# The exponent over all images is measured where that of a refresh, over what it saw of
# them, is so close to 1.
NEAR = 0.1
EPSILONS = [0.05, 0.1]


def build(form, width, penalty=PENALTY, learning_rate=1e-3):
    """The network, compiled as in `examples/experiments.py`."""
    model = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            keras.layers.Flatten(),
            keras.layers.Dense(width, activation="tanh"),
            keras.layers.BatchNormalization(
                momentum=0.9,
                epsilon=1e-5,
                activity_regularizer=FORMS[form](**penalty),
                name="hidden",
            ),
            keras.layers.Dense(10),
        ]
    )
    model.compile(
        keras.optimizers.Adam(learning_rate),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=keras.backend.backend() == "jax",
    )
    return model


def with_basis(form, width, x):
    """The network, ready for a training step."""
    model = build(form, width)
    if form not in ("plain", "exact"):
        # Which eigenvectors they are makes no difference to the time of a step.
        kp.refresh_eigenbasis(model, x, max_samples=min(len(x), 2 * width), verbose=0)
    return model


class Clock:
    """Seconds and CPU seconds since it was made, but for its pauses."""

    def __init__(self):
        self._begin = self._now()

    def _now(self):
        return np.array([time.perf_counter(), time.process_time()])

    def read(self):
        """`[seconds, CPU seconds]`"""
        return [round(float(value), 5) for value in self._now() - self._begin]

    @contextlib.contextmanager
    def paused(self):
        begin = self._now()
        yield
        self._begin += self._now() - begin


def medians(times):
    """Cells of a table: seconds and CPU seconds."""
    return seconds(np.median(times, axis=0))


def ratios(times, per):
    """Cells of a table: both clocks over those of the same turn in `per`."""
    if not per:
        return "–", "–"
    turns = [np.divide(mine, its) for mine, its in zip(times, per, strict=False)]
    return [f"{ratio:.2f}" for ratio in np.median(turns, axis=0)]


def seconds(clock):
    return [f"{value:.3g} s" for value in clock]


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
    model, bare = build("regularized", width), build("plain", width)
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
    yield "form", "before the steps", "peak until then", "peak in them", "of the GPU"
    for result in results:
        values = [result[column] for column in columns]
        yield (
            result["settings"]["form"],
            *("–" if value is None else f"{value:,.0f} MiB" for value in values),
        )


# --- a spectrum of 1/n ---------------------------------------------------------------


def accuracy(model, x, y, batch_size=1000):
    if hasattr(model, "jax_state_sync"):  # within `fit()`, JAX holds newer weights
        model.jax_state_sync()
    correct = 0
    for start in range(0, len(x), batch_size):
        logits = model(x[start : start + batch_size], training=False)
        predicted = keras.ops.convert_to_numpy(keras.ops.argmax(logits, axis=1))
        correct += int(np.sum(predicted == y[start : start + batch_size]))
    return correct / len(x)


class Watch(keras.callbacks.Callback):
    """Measures exponent and accuracy where a refresh says 1/n, with the clock stopped.

    List it behind the `EigenbasisRefresh`.
    """

    def __init__(self, refresh, data, clock, enough):
        super().__init__()
        self.refresh, self.data, self.clock = refresh, data, clock
        self.enough = enough
        self.candidates = []
        self._steps, self._seen, self._said = 0, {}, time.monotonic()

    def on_train_batch_begin(self, batch, logs=None):
        # A refresh took place, at the epoch's begin or right before this.
        if self.refresh.spectra is not self._seen:
            self._seen = self.refresh.spectra
            if abs(self._seen["hidden"].exponent - 1) <= NEAR:
                self.measure()

    def on_train_batch_end(self, batch, logs=None):
        self._steps += 1

    def on_epoch_end(self, epoch, logs=None):
        if time.monotonic() - self._said >= 30:
            self._said = time.monotonic()
            exponent = self._seen["hidden"].exponent
            progress(
                f"  epoch {epoch + 1} of {self.params['epochs']}: "
                f"{self.clock.read()[0]:.0f} s, exponent {exponent:.2f}"
            )

    def measure(self):
        (x, _), test = self.data
        epochs = self._steps / self.params["steps"]
        with self.clock.paused():
            found = {
                "clock": self.clock.read(),
                "epochs": round(epochs, 3),
                "exponent": kp.measure_spectrum(
                    self.model, x, "hidden", verbose=0
                ).exponent,
                "accuracy": accuracy(self.model, *test),
            }
            self.candidates.append(found)
            progress(f"  {json.dumps(found)}")
        if self.enough(found):
            self.model.stop_training = True


def train(schedule, seed, width, data, plain_accuracy):
    """Trains by a schedule. The model, and what was seen on the way.

    On the clock: building and compiling the model, and all of `fit()`, refreshes
    included; but not looking at the exponent over all images and the test accuracy.

    Args:
        schedule: A value of `SCHEDULES`.
        seed: Seed of weights and batches.
        width: Units of the hidden layer.
        data: `(x_train, y_train), (x_test, y_test)`.
        plain_accuracy: Test accuracy of the plain network after each epoch.
    """
    (x, y), _ = data

    def enough(found):
        if "stop" not in schedule:
            return False
        epoch = max(1, int(np.ceil(found["epochs"])))
        gap = plain_accuracy[epoch - 1] - found["accuracy"]
        return abs(found["exponent"] - 1) <= TOLERANCE and gap <= schedule["stop"]

    keras.utils.clear_session()
    keras.utils.set_random_seed(seed)
    clock = Clock()
    model = build(
        schedule["form"], width, schedule["penalty"], schedule["learning_rate"]
    )
    renewal = kp.EigenbasisRefresh(x, seed=seed, verbose=0, **schedule["refresh"])
    watch = Watch(renewal, data, clock, enough)
    model.fit(
        *(x, y),
        batch_size=schedule["batch_size"],
        epochs=schedule["epochs"],
        callbacks=[renewal, watch],
        verbose=0,
    )
    watch.measure()  # the trained network, whatever its exponent
    return model, {"candidates": watch.candidates, "plain_accuracy": plain_accuracy}


def train_plain(schedule, seed, width, data):
    """Trains the same network without a penalty. The model, and its accuracies."""
    (x, y), test = data
    keras.utils.clear_session()
    keras.utils.set_random_seed(seed)
    accuracies = []
    clock = Clock()

    def look(epoch, logs):
        with clock.paused():
            accuracies.append(accuracy(model, *test))

    model = build("plain", width, learning_rate=schedule["learning_rate"])
    model.fit(
        *(x, y),
        batch_size=schedule["batch_size"],
        epochs=schedule["epochs"],
        callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=look)],
        verbose=0,
    )
    trained = {
        "clock": clock.read(),
        "epochs": float(schedule["epochs"]),
        "exponent": kp.measure_spectrum(model, x, "hidden", verbose=0).exponent,
        "accuracy": accuracies[-1],
    }
    return model, {"candidates": [trained], "plain_accuracy": accuracies}


def attacked(model, data, images, strong):
    """Accuracy under attack on a choice of test images, the same for all networks."""
    _, (x, y) = data
    chosen = np.random.default_rng(0).permutation(len(x))

    def evaluate(count, attacks):
        report = kp.evaluate_robustness(
            *(model, x[chosen[:count]], y[chosen[:count]], EPSILONS, attacks), verbose=0
        )
        return json.loads(report.to_json())

    result = {"robustness": evaluate(images, ["fgsm", "pgd"])}
    if strong:
        result["strong"] = evaluate(strong, "strong")
    return result


def reached(result, points=None):
    """The clock where the exponent was first within TOLERANCE, or None.

    With `points`, where the test accuracy was at most so far below the plain network's
    after as many epochs, begun ones included.
    """
    for found in result["candidates"]:
        gap = plain_accuracy_at(result, found["epochs"]) - found["accuracy"]
        close = abs(found["exponent"] - 1) <= TOLERANCE
        if close and (points is None or gap <= points):
            return found["clock"]
    return None


def plain_accuracy_at(result, epochs):
    return result["plain_accuracy"][max(1, int(np.ceil(epochs))) - 1]


def spectrum_table(results):
    yield (
        *("schedule", "seed", "epochs", "to the exponent", "CPU"),
        *("and the accuracy", "CPU", "over *literal*", "CPU"),
        *("in all", "exponent", "clean", "plain"),
        *(f"{name} {epsilon:g}" for name in ("FGSM", "PGD") for epsilon in EPSILONS),
        *("strong", "flags"),
    )
    nothing = "–", "–"
    arrived = [reached(result, points=0.01) for result in results]
    literal = {
        result["settings"]["seed"]: clock
        for result, clock in zip(results, arrived, strict=True)
        if result["settings"]["name"] == "literal" and clock
    }
    for result, clock in zip(results, arrived, strict=True):
        name, seed = (result["settings"][key] for key in ("name", "seed"))
        first, end = reached(result), result["candidates"][-1]
        per = literal.get(seed)
        report = strong = from_json(result["robustness"])
        worst = ["–"]
        if "strong" in result:
            strong = from_json(result["strong"])
            worst = map(percent, strong.worst_case_accuracy)
        yield (
            *(name, seed, f"{end['epochs']:g}"),
            *(seconds(first) if first else nothing),
            *(seconds(clock) if clock else nothing),
            *(ratios([clock], [per]) if clock and per else nothing),
            *(seconds(end["clock"])[0], f"{end['exponent']:.3f}"),
            percent(end["accuracy"]),
            percent(plain_accuracy_at(result, end["epochs"])),
            *map(percent, (*report.accuracy["fgsm"], *report.accuracy["pgd"])),
            *(", ".join(worst), len(strong.flags)),
        )


def from_json(report):
    return kp.RobustnessReport.from_json(json.dumps(report))


def percent(fraction):
    return f"{100 * fraction:.1f} %"


# --- tables --------------------------------------------------------------------------


def print_table(name, output):
    """Prints a table of all measurements of a kind in the folder."""
    paths = output.glob(f"{prefix(name)}-*.json")
    results = sorted(
        (json.loads(path.read_text()) for path in paths),
        key=lambda result: result["finished"],
    )
    if not results:
        return
    machines = {json.dumps(result["machine"]) for result in results}
    print(f"\n{name}, on {' and '.join(sorted(machines))}\n")
    for index, row in enumerate(TABLES[name](results)):
        print(f"| {' | '.join(map(str, row))} |")
        if index == 0:
            print("|" + "---|" * len(row))


TABLES = {
    "step": step_table,
    "refresh": refresh_table,
    "memory": memory_table,
    "spectrum": spectrum_table,
}


# --- the machine, and the command line -----------------------------------------------


def device():
    """`"cpu"` or `"gpu"`, and the latter's name."""
    backend = keras.backend.backend()
    name = None
    if backend == "jax":
        import jax

        if jax.default_backend() != "cpu":
            name = jax.devices()[0].device_kind
    elif backend == "torch":
        import torch

        name = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    else:
        import tensorflow as tf

        for gpu in tf.config.list_physical_devices("GPU")[:1]:
            name = tf.config.experimental.get_device_details(gpu)["device_name"]
    return ("cpu", None) if name is None else ("gpu", name)


def machine():
    info = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.split(":")[1].strip() for line in info if "model name" in line]
    backend = keras.backend.backend()
    return {
        "cores": len(os.sched_getaffinity(0)),
        "cpu": models[0] if models else platform.machine(),
        "gpu": device()[1],
        "backend": f"{backend} {importlib.import_module(backend).__version__}",
        "python": platform.python_version(),
        **{module.__name__: module.__version__ for module in (keras, np, scipy, kp)},
    }


def prefix(name):
    """How the files of a measurement are called, so far as the machine is concerned."""
    return f"speed-{keras.backend.backend()}-{device()[0]}-{name}"


def progress(line):
    print(line, flush=True)


def random_data(images):
    """Noise of MNIST's shape, where only time and memory matter."""
    rng = np.random.default_rng(0)
    x = rng.random((images, 28, 28, 1), dtype="float32")
    return (x, rng.integers(10, size=images)), (x[:1000], np.zeros(1000, "int64"))


def size(text):
    width, batch = text.split("x")
    return int(width), int(batch)


def measured(args, name, settings, run):
    """The result of `run()`, or what a file says that it was."""
    path = args.output / f"{prefix(name)}.json"
    settings = json.loads(json.dumps(settings))  # as the file has them
    if path.exists():
        result = json.loads(path.read_text())
        if result["settings"] != settings:
            raise SystemExit(
                f"{path} was made with other settings: {result['settings']}, not "
                f"{settings}. Remove it, or choose another --output."
            )
        return result
    progress(path.stem)
    result = {"settings": settings, "machine": machine(), **run()}
    result["finished"] = time.strftime("%Y-%m-%d %H:%M:%S")
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(json.dumps(result))
    unfinished.rename(path)  # a file that is there is whole
    return result


def measure_steps(args, data):
    forms = "" if tuple(args.forms) == DEFAULT_FORMS else "-" + "+".join(args.forms)
    for width, batch in args.sizes:
        settings = {
            **{"size": (width, batch), "forms": args.forms},
            **{"rounds": args.rounds, "limit": args.limit},
        }
        measured(
            args,
            f"step-{width}x{batch}{forms}",
            settings,
            lambda settings=settings: step(**settings, data=data),
        )


def measure_refresh(args, data):
    settings = {"width": args.width, "images": len(data[0][0]), "rounds": args.rounds}
    measured(
        args,
        f"refresh-{args.width}-{settings['images']}",
        settings,
        lambda: refresh(args.width, data, args.rounds),
    )


def measure_memory(args):
    def in_a_process(form):
        command = [sys.executable, __file__, "--peak", form]
        command += ["--width", str(args.width), "--batch", str(args.batch)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        return json.loads(done.stdout.splitlines()[-1])

    for form in args.forms:
        measured(
            args,
            f"memory-{args.width}x{args.batch}-{form}",
            {"form": form, "width": args.width, "batch": args.batch},
            lambda form=form: in_a_process(form),
        )


def measure_spectra(args, data):
    """By turns: the first seed of each schedule, then the next."""
    sizes = {
        "width": args.width,
        "images": len(data[0][0]),
        "attacked": args.attacked,
        "strong": args.strong,
    }

    def trained(name, schedule, seed, plain=None):
        def run():
            if plain is None:
                model, result = train_plain(schedule, seed, args.width, data)
            else:
                accuracies = plain["plain_accuracy"]
                model, result = train(schedule, seed, args.width, data, accuracies)
            return {**result, **attacked(model, data, args.attacked, args.strong)}

        settings = {"name": name, "schedule": schedule, "seed": seed, **sizes}
        return measured(args, f"spectrum-{args.width}-{name}-seed{seed}", settings, run)

    for seed in args.seeds:
        for name in args.schedules:
            schedule = SCHEDULES[name]
            same = {
                key: schedule[key] for key in ("batch_size", "learning_rate", "epochs")
            }
            label = "plain-{batch_size}-{learning_rate:g}-{epochs}".format(**same)
            plain = trained(label, same, seed)
            trained(name, schedule, seed, plain)


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
    add("--peak", choices=FORMS, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)

    if args.peak:  # in a process of its own
        data = random_data(max(5 * args.batch, 2 * args.width))
        print(json.dumps(peak_memory(args.peak, (args.width, args.batch), data)))
        return
    if args.data == "random":
        if "spectrum" in args.measure:
            raise SystemExit("A network can't learn random data: no spectrum.")
        data = random_data(args.images or 60_000)
    else:
        (x, y), test = example_data.load("mnist", args.data)
        data = (x[: args.images], y[: args.images]), test
    args.output.mkdir(parents=True, exist_ok=True)

    measurements = {
        "step": lambda: measure_steps(args, data),
        "refresh": lambda: measure_refresh(args, data),
        "memory": lambda: measure_memory(args),
        "spectrum": lambda: measure_spectra(args, data),
    }
    for name in args.measure:
        measurements[name]()
    for name in args.measure:
        print_table(name, args.output)


if __name__ == "__main__":
    main()
