"""Trainings that end in a spectrum of 1/n, to be compared in time and robustness."""

import json
import time

import keras
import numpy as np
from matplotlib.figure import Figure

import keras_powerlaw as kp
from benchmarks.measuring import Clock, measured, progress, ratios, seconds
from benchmarks.networks import PENALTY, shallow
from examples.experiments.table import over_seeds

# Trainings to compare: the form of the penalty and its settings, those of `fit()` and
# Adam, and those of `EigenbasisRefresh`. With "decay", the learning rate falls to zero
# along a cosine. With "stop", training ends once the exponent is within TOLERANCE and
# the test accuracy at most so far below the plain network's.
PAPER = {
    **{"batch_size": 3000, "learning_rate": 1e-3, "epochs": 30},
    "refresh": {"every_epochs": 1, "max_samples": None},
}
LOG_RATIO = {**PENALTY, "beta": 1.0, "log_ratio": True}


def fast(batch_size, epochs, learning_rate=7e-3, penalty=LOG_RATIO):
    return {
        **{"form": "regularized", "penalty": penalty, "batch_size": batch_size},
        **{"learning_rate": learning_rate, "decay": True, "epochs": epochs},
        # Three examples per unit of the 2,000: see docs/benchmarks.md.
        "refresh": {"every_steps": 20, "max_samples": 6000},
    }


SCHEDULES = {
    "literal": {"form": "literal", "penalty": PENALTY, **PAPER},
    "paper": {"form": "regularized", "penalty": PENALTY, **PAPER},
    "fast": fast(128, 1),
    "fast-eq2": fast(128, 2, 3e-3, {**PENALTY, "beta": 1.0}),
    "fast-64": fast(64, 1),
    "fast-256": fast(256, 2),
    "fast-500": fast(500, 4),
    "fast-3000": fast(3000, 24),
}
# Of `EigenbasisRefresh`, to compare: steps from one to the next, and examples over
# units.
INTERVALS = [
    *((steps, 5) for steps in (5, 10, 20, 40, 100, 500)),
    *((20, ratio) for ratio in (1.5, 3, 10, None)),
]
TOLERANCE = 0.05  # of the exponent
# The exponent over all images is measured where that of a refresh, over what it saw of
# them, is so close to 1.
NEAR = 0.1
EPSILONS = [0.05, 0.1]


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

    def __init__(self, refresh, data, clock, near, enough):
        super().__init__()
        self.refresh, self.data, self.clock = refresh, data, clock
        self.near, self.enough = near, enough
        self.candidates, self.staleness = [], []
        self._steps, self._seen, self._said = 0, {}, time.monotonic()

    def on_train_batch_begin(self, batch, logs=None):
        # A refresh took place, at the epoch's begin or right before this.
        if self.refresh.spectra is not self._seen:
            self._seen = self.refresh.spectra
            self.staleness.append(self.refresh.staleness["hidden"])
            if abs(self._seen["hidden"].exponent - 1) <= self.near:
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


def start(seed):
    """As in a new process, but that the backend is up and running."""
    shallow("plain", 10).train_on_batch(np.zeros((2, 28, 28, 1)), np.zeros(2))
    keras.utils.clear_session()
    keras.utils.set_random_seed(seed)


def train(schedule, seed, width, data, plain_accuracy, near):
    """Trains by a schedule. The model, and what was seen on the way.

    On the clock: building and compiling the model, and all of `fit()`, refreshes
    included; but not looking at the exponent over all images and the test accuracy.

    Args:
        schedule: A value of `SCHEDULES`.
        seed: Seed of weights and batches.
        width: Units of the hidden layer.
        data: `(x_train, y_train), (x_test, y_test)`.
        plain_accuracy: Test accuracy of the plain network after each epoch.
        near: Look at the network where a refresh says that its exponent is so close
            to 1, and in the end.
    """
    (x, y), _ = data

    def enough(found):
        return "stop" in schedule and arrived(found, plain_accuracy, schedule["stop"])

    start(seed)
    clock = Clock()
    model = shallow(
        schedule["form"], width, schedule["penalty"], learning_rate(schedule, len(x))
    )
    renewal = kp.EigenbasisRefresh(x, seed=seed, verbose=0, **schedule["refresh"])
    watch = Watch(renewal, data, clock, near, enough)
    model.fit(
        *(x, y),
        batch_size=schedule["batch_size"],
        epochs=schedule["epochs"],
        callbacks=[renewal, watch],
        verbose=0,
    )
    watch.measure()  # the trained network, whatever its exponent
    return model, {
        "candidates": watch.candidates,
        "plain_accuracy": plain_accuracy,
        # That of the first refresh is not defined.
        "staleness": watch.staleness[1:],
    }


def learning_rate(schedule, images):
    if not schedule.get("decay"):
        return schedule["learning_rate"]
    steps = schedule["epochs"] * -(-images // schedule["batch_size"])
    return keras.optimizers.schedules.CosineDecay(schedule["learning_rate"], steps)


def train_plain(schedule, seed, width, data):
    """Trains the same network without a penalty. The model, and its accuracies."""
    (x, y), test = data
    start(seed)
    accuracies = []
    clock = Clock()

    def look(epoch, logs):
        with clock.paused():
            accuracies.append(accuracy(model, *test))

    model = shallow("plain", width, learning_rate=learning_rate(schedule, len(x)))
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


def arrived(found, plain_accuracy, below):
    """Whether the exponent is within TOLERANCE, and the accuracy not too far below."""
    gap = after(found["epochs"], plain_accuracy) - found["accuracy"]
    return abs(found["exponent"] - 1) <= TOLERANCE and gap <= below


def after(epochs, plain_accuracy):
    """The plain network's accuracy after so many epochs, a begun one included."""
    return plain_accuracy[max(1, int(np.ceil(epochs))) - 1]


def time_to(result, below):
    """The clock at the first of the candidates that `arrived`, or None."""
    for found in result["candidates"]:
        if arrived(found, result["plain_accuracy"], below):
            return found["clock"]
    return None


def spectrum_table(results):
    """Mean ± standard deviation over the seeds."""
    yield (
        *("width", "schedule", "seeds", "epochs", "to the exponent", "CPU"),
        *("and the accuracy", "CPU", "over *literal*", "CPU"),
        *("exponent", "clean %", "plain"),
        *(f"{name} {epsilon:g}" for name in ("FGSM", "PGD") for epsilon in EPSILONS),
        *(*(f"worst {epsilon:g}" for epsilon in EPSILONS), "flags"),
    )
    networks = {}
    for result in results:
        settings = result["settings"]
        seeds = networks.setdefault((settings["width"], settings["name"]), {})
        seeds[settings["seed"]] = result
    for (width, name), runs in networks.items():
        literal = times(networks.get((width, "literal"), {}), below=0.01)
        arrived = times(runs, below=0.01)
        shared = arrived.keys() & literal.keys()
        ends = [run["candidates"][-1] for run in runs.values()]
        plain = [
            after(end["epochs"], run["plain_accuracy"])
            for end, run in zip(ends, runs.values(), strict=True)
        ]
        reports = [from_json(run["robustness"]) for run in runs.values()]
        strong = [from_json(run["strong"]) for run in runs.values() if "strong" in run]
        yield (
            *(width, name, len(runs), f"{ends[0]['epochs']:g}"),
            *seconds_over_seeds(runs, times(runs, below=1)),
            *seconds_over_seeds(runs, arrived),
            *ratios([arrived[s] for s in shared], [literal[s] for s in shared]),
            over_seeds([end["exponent"] for end in ends], 2),
            *percent_over_seeds([[end["accuracy"]] for end in ends]),
            *percent_over_seeds([[accuracy] for accuracy in plain]),
            *percent_over_seeds([report.accuracy["fgsm"] for report in reports]),
            *percent_over_seeds([report.accuracy["pgd"] for report in reports]),
            *(
                percent_over_seeds([report.worst_case_accuracy for report in strong])
                or ["–"] * len(EPSILONS)
            ),
            sum(len(report.flags) for report in strong),
        )


def times(runs, below):
    """`time_to` by seed, for the runs that arrived."""
    clocks = {seed: time_to(run, below) for seed, run in runs.items()}
    return {seed: clock for seed, clock in clocks.items() if clock}


def seconds_over_seeds(runs, clocks):
    if len(clocks) < len(runs):
        return f"{len(clocks)} of {len(runs)} arrive", "–"
    return [f"{over_seeds(values, 0)} s" for values in np.transpose([*clocks.values()])]


def percent_over_seeds(fractions):
    return [over_seeds(values, 1) for values in 100 * np.transpose(fractions)]


def from_json(report):
    return kp.RobustnessReport.from_json(json.dumps(report))


def percent(fraction):
    return f"{100 * fraction:.1f} %"


def interval_table(results):
    yield (
        *("schedule", "seed", "refresh every", "examples / units", "in all", "CPU"),
        *("staleness", "exponent", "clean"),
        *(f"PGD {epsilon:g}" for epsilon in EPSILONS),
    )
    for result in results:
        settings, end = result["settings"], result["candidates"][-1]
        ratio = settings["examples_per_unit"]
        yield (
            *(settings["name"], settings["seed"]),
            f"{settings['schedule']['refresh']['every_steps']} steps",
            "all" if ratio is None else f"{ratio:g}",
            *seconds(end["clock"]),
            f"{np.median(result['staleness']):.2f}" if result["staleness"] else "–",
            *(f"{end['exponent']:.3f}", percent(end["accuracy"])),
            *map(percent, from_json(result["robustness"]).accuracy["pgd"]),
        )


class Spectra:
    """Performs and keeps the trainings that the command line asks for."""

    def __init__(self, args, data):
        self.args, self.data = args, data
        self.sizes = {
            "width": args.width,
            "images": len(data[0][0]),
            "attacked": args.attacked,
            "strong": args.strong,
        }

    def plain(self, schedule, seed):
        keys = ("batch_size", "learning_rate", "decay", "epochs")
        same = {key: schedule[key] for key in keys if key in schedule}
        name = "plain-{batch_size}-{learning_rate:g}-{epochs}".format(**same)
        return self._measured(
            *("spectrum", name, same, seed, {}),
            lambda: train_plain(same, seed, self.args.width, self.data),
        )

    def regularized(self, kind, label, schedule, seed, near, **settings):
        accuracies = self.plain(schedule, seed)["plain_accuracy"]
        return self._measured(
            *(kind, label, schedule, seed, settings),
            lambda: train(
                *(schedule, seed, self.args.width, self.data, accuracies, near)
            ),
        )

    def _measured(self, kind, label, schedule, seed, settings, trained):
        def run():
            model, result = trained()
            report = attacked(model, self.data, self.args.attacked, self.args.strong)
            (x, _), _ = self.data
            spectrum = kp.measure_spectrum(model, x, "hidden", verbose=0)
            digits = [float(f"{value:.6g}") for value in spectrum.eigenvalues]
            return {**result, **report, "eigenvalues": digits}

        settings = {"name": label, "schedule": schedule, "seed": seed, **settings}
        return measured(
            self.args.output,
            f"{kind}-{self.args.width}-{label}-seed{seed}",
            {**settings, **self.sizes},
            run,
        )


def measure_spectra(args, data):
    """By turns: the first seed of each schedule, then the next."""
    spectra = Spectra(args, data)
    first, *_ = args.schedules
    results = {f"plain, like {first}": [], **{name: [] for name in args.schedules}}
    for seed in args.seeds:
        results[f"plain, like {first}"].append(spectra.plain(SCHEDULES[first], seed))
        for name in args.schedules:
            results[name].append(
                spectra.regularized("spectrum", name, SCHEDULES[name], seed, NEAR)
            )
    if args.draw:
        draw(results).savefig(args.draw, dpi=150)


def draw(results):
    """Spectra and accuracies under PGD, a curve for each label, its seeds averaged."""
    figure = Figure(figsize=(8.4, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    each = {
        label: [kp.Spectrum(run["eigenvalues"]) for run in runs]
        for label, runs in results.items()
    }
    kp.plot_spectrum(each, left, tau=PENALTY["tau"])
    each = {
        label: [from_json(run["robustness"]) for run in runs]
        for label, runs in results.items()
    }
    kp.plot_robustness(each, "pgd", right)
    return figure


def measure_intervals(args, data):
    """Trainings that differ in how often, and on what, they renew the basis."""
    spectra = Spectra(args, data)
    for seed in args.seeds:
        for name in args.schedules:
            for steps, ratio in INTERVALS:
                samples = None if ratio is None else int(ratio * args.width)
                refresh = {"every_steps": steps, "max_samples": samples}
                spectra.regularized(
                    *("interval", f"{name}-{steps}-{ratio or 'all'}"),
                    {**SCHEDULES[name], "refresh": refresh},
                    *(seed, 0),
                    **{"name": name, "examples_per_unit": ratio},
                )
