"""Trainings that end in a spectrum of 1/n, on the clock.

`schedules` says what is trained, `spectrum_tables` shows the results. On the clock are
building and compiling the model and all of `fit()`, refreshes included; examining the
network is not.
"""

import itertools

import keras
import numpy as np

import keras_powerlaw as kp
from benchmarks.measuring import Clock, measured
from benchmarks.networks import mnist, shallow
from benchmarks.schedules import (
    EPSILONS,
    INTERVALS,
    NEAR,
    SCHEDULES,
    WINDOW_INTERVALS,
)
from research.data import choose
from research.networks import learning_rate
from research.table import DIGITS, report_row, rounded, sampled_at


def cases(args):
    """Each schedule, after the plain network's training that is like it."""
    for seed, name in itertools.product(args.seeds, args.schedules):
        yield case(args, SCHEDULES[name], seed, NEAR, name=name)


def interval_cases(args):
    """Trainings that differ in how often they renew the basis, and on how much."""
    for seed, name in itertools.product(args.seeds, args.schedules):
        from_training = "x" in SCHEDULES[name]["refresh"]
        for steps, ratio in WINDOW_INTERVALS if from_training else INTERVALS:
            refresh = {"every_steps": steps}
            if from_training:
                refresh["x"] = None
            else:
                refresh["max_samples"] = ratio and int(ratio * args.width)
            schedule = {**SCHEDULES[name], "refresh": refresh}
            yield case(args, schedule, seed, 0, name=name, examples_per_unit=ratio)


def case(args, schedule, seed, near, **names):
    sizes = {"width": args.width, "attacked": args.attacked, "strong": args.strong}
    data = mnist(args.data)
    common = {"seed": seed, "images": len(data[0][0]), **sizes}
    keys = ("batch_size", "learning_rate", "decay", "epochs")
    same = {key: schedule[key] for key in keys if key in schedule}
    label = "plain-{batch_size}-{learning_rate:g}-{epochs}".format(**same)

    def run(settings, *more):
        model, result = train(settings["schedule"], seed, args.width, data, *more)
        return result | examined(model, data, args.attacked, args.strong)

    def regularized(settings):
        plain = {"name": label, "schedule": same, **common}
        found = measured(args.output, "spectrum", plain, lambda: run(plain))
        return run(settings, near, found["plain_accuracy"])

    return {"schedule": schedule, **names, **common}, regularized


def train(schedule, seed, width, data, near=0, plain_accuracy=None):
    """Trains by a schedule, or without a penalty.

    Args:
        schedule: A value of `SCHEDULES`, without a penalty if it has none.
        seed: Seed of weights and batches.
        width: Units of the hidden layer.
        data: `(x_train, y_train), (x_test, y_test)`.
        near: Examine the network when a refresh finds an exponent as close to 1 as
            this, besides after training.
        plain_accuracy: Test accuracy of the plain network after each epoch.

    Returns:
        The model, and what was found.
    """
    (x, y), _ = data
    # A fresh start, except that the backend is already up and running.
    shallow("plain", 10).train_on_batch(np.zeros((2, 28, 28, 1)), np.zeros(2))
    keras.utils.clear_session()
    keras.utils.set_random_seed(seed)
    clock = Clock()
    rate = learning_rate(schedule, len(x))
    if "penalty" in schedule:
        model = shallow("regularized", width, schedule["penalty"], rate)
        refresh = {"x": x} | schedule["refresh"]
        refresh = kp.EigenbasisRefresh(**refresh, seed=seed, verbose=0)
        watch = Watch(data, clock, refresh, near)
        callbacks = [refresh, watch]
    else:
        model = shallow("plain", width, learning_rate=rate)
        watch = Watch(data, clock)
        callbacks = [watch]
    model.fit(
        *(x, y, schedule["batch_size"], schedule["epochs"]),
        callbacks=callbacks,
        verbose=0,
    )
    watch.measure()  # the trained network, whatever its exponent
    staleness = watch.staleness[1:]  # that of the first refresh is not defined
    return model, {
        "candidates": watch.candidates,
        "plain_accuracy": plain_accuracy or watch.accuracies,
        "staleness": float(np.median(staleness)) if staleness else None,
    }


class Watch(keras.callbacks.Callback):
    """Examines the network when a refresh finds an exponent near 1.

    List it after the `EigenbasisRefresh`. Without one, it takes the accuracy after each
    epoch.
    """

    def __init__(self, data, clock, refresh=None, near=0):
        super().__init__()
        self.data, self.clock, self.refresh, self.near = data, clock, refresh, near
        self.candidates, self.staleness, self.accuracies = [], [], []
        self._steps, self._seen = 0, {}

    def on_train_batch_begin(self, batch, logs=None):
        # Refreshes take place when an epoch begins, or right before this.
        spectra = self.refresh and self.refresh.spectra
        if spectra and spectra is not self._seen:
            self._seen = spectra
            self.staleness.append(self.refresh.staleness["hidden"])
            if abs(spectra["hidden"].exponent - 1) <= self.near:
                self.measure()

    def on_train_batch_end(self, batch, logs=None):
        self._steps += 1

    def on_epoch_end(self, epoch, logs=None):
        if self.refresh is None:
            with self.clock.paused():
                self.accuracies.append(accuracy(self.model, *self.data[1]))

    def measure(self):
        """Adds exponent, over all images, and test accuracy to the candidates."""
        (x, _), test = self.data
        with self.clock.paused():
            spectrum = kp.measure_spectrum(self.model, x, "hidden", verbose=0)
            self.candidates.append(
                {
                    "clock": self.clock.read(),
                    "epochs": round(self._steps / self.params["steps"], 3),
                    "exponent": spectrum.exponent,
                    "accuracy": accuracy(self.model, *test),
                }
            )
            print(f"  {self.candidates[-1]}", flush=True)


def accuracy(model, x, y):
    """Accuracy of a model, also within `fit()`, where `evaluate()` cannot be called."""
    if hasattr(model, "jax_state_sync"):  # within `fit()`, JAX holds newer weights
        model.jax_state_sync()
    correct = 0
    for start in range(0, len(x), 1000):
        logits = model(x[start : start + 1000], training=False)
        predicted = keras.ops.convert_to_numpy(keras.ops.argmax(logits, axis=1))
        correct += int(np.sum(predicted == y[start : start + 1000]))
    return correct / len(x)


def examined(model, data, images, strong):
    """Robustness on a choice of test images, the same for all networks, and spectrum.

    Args:
        model: A trained model.
        data: `(x_train, y_train), (x_test, y_test)`.
        images: How many are attacked by FGSM and PGD.
        strong: How many of these by the strong attacks; 0 for none.
    """

    def evaluate(count, attacks):
        chosen = choose(data[1], count)
        return report_row(
            kp.evaluate_robustness(model, *chosen, EPSILONS, attacks, verbose=0)
        )

    (x, _), _ = data
    spectrum = kp.measure_spectrum(model, x, "hidden", verbose=0)
    units = len(spectrum.eigenvalues)
    return {
        "robustness": evaluate(images, ["fgsm", "pgd"]),
        **({"strong": evaluate(strong, "strong")} if strong else {}),
        "units": units,
        "floor": float(f"{spectrum.floor:.6g}"),
        "sampled": rounded(spectrum.eigenvalues[sampled_at(units) - 1], DIGITS),
    }
