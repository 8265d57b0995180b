"""One training by a schedule, with the clock stopped while the network is examined.

`schedules` says what is trained, `spectra` keeps the results.
"""

import json
import time

import keras
import numpy as np

import keras_powerlaw as kp
from benchmarks.clock import Clock
from benchmarks.forms import shallow
from benchmarks.measuring import progress
from benchmarks.schedules import EPSILONS, arrived
from examples.experiments.data import choose
from examples.experiments.networks import learning_rate
from examples.experiments.results import report_to_json


def train(schedule, seed, width, data, plain_accuracy, near):
    """Trains by a schedule.

    On the clock are building and compiling the model and all of `fit()`, refreshes
    included; examining the network is not.

    Args:
        schedule: A value of `SCHEDULES`.
        seed: Seed of weights and batches.
        width: Units of the hidden layer.
        data: `(x_train, y_train), (x_test, y_test)`.
        plain_accuracy: Test accuracy of the plain network after each epoch.
        near: Examine the network when a refresh finds an exponent as close to 1 as
            this, besides after training.

    Returns:
        The model, and what was found.
    """
    (x, y), _ = data

    def enough(found):
        return "stop" in schedule and arrived(found, plain_accuracy, schedule["stop"])

    start(seed)
    clock = Clock()
    model = shallow(
        schedule["form"], width, schedule["penalty"], learning_rate(schedule, len(x))
    )
    refresh = {"x": x} | schedule["refresh"]
    renewal = kp.EigenbasisRefresh(**refresh, seed=seed, verbose=0)
    watch = Watch(renewal, data, clock, near, enough)
    fit(model, schedule, x, y, renewal, watch)
    watch.measure()  # the trained network, whatever its exponent
    return model, {
        "candidates": watch.candidates,
        "plain_accuracy": plain_accuracy,
        # That of the first refresh is not defined.
        "staleness": watch.staleness[1:],
    }


def train_plain(schedule, seed, width, data):
    """Trains the same network without a penalty. Returns what `train` does."""
    (x, y), test = data
    start(seed)
    accuracies = []
    clock = Clock()

    def examine(epoch, logs):
        with clock.paused():
            accuracies.append(accuracy(model, *test))

    model = shallow("plain", width, learning_rate=learning_rate(schedule, len(x)))
    each_epoch = keras.callbacks.LambdaCallback(on_epoch_end=examine)
    fit(model, schedule, x, y, each_epoch)
    trained = {
        "clock": clock.read(),
        "epochs": float(schedule["epochs"]),
        "exponent": kp.measure_spectrum(model, x, "hidden", verbose=0).exponent,
        "accuracy": accuracies[-1],
    }
    return model, {"candidates": [trained], "plain_accuracy": accuracies}


def start(seed):
    """Makes a fresh start, except that the backend is already up and running."""
    shallow("plain", 10).train_on_batch(np.zeros((2, 28, 28, 1)), np.zeros(2))
    keras.utils.clear_session()
    keras.utils.set_random_seed(seed)


def fit(model, schedule, x, y, *callbacks):
    model.fit(
        *(x, y),
        batch_size=schedule["batch_size"],
        epochs=schedule["epochs"],
        callbacks=list(callbacks),
        verbose=0,
    )


class Watch(keras.callbacks.Callback):
    """Examines the network when a refresh finds an exponent near 1.

    List it after the `EigenbasisRefresh`.
    """

    def __init__(self, refresh, data, clock, near, enough):
        super().__init__()
        self.refresh, self.data, self.clock = refresh, data, clock
        self.near, self.enough = near, enough
        self.candidates, self.staleness = [], []
        self._steps, self._seen, self._said = 0, {}, time.monotonic()

    def on_train_batch_begin(self, batch, logs=None):
        # Refreshes take place when an epoch begins, or right before this.
        if self.refresh.spectra and self.refresh.spectra is not self._seen:
            self._seen = self.refresh.spectra
            self.staleness.append(self.refresh.staleness["hidden"])
            if abs(self._seen["hidden"].exponent - 1) <= self.near:
                self.measure()

    def on_train_batch_end(self, batch, logs=None):
        self._steps += 1

    def on_epoch_end(self, epoch, logs=None):
        if self._seen and time.monotonic() - self._said >= 30:
            self._said = time.monotonic()
            exponent = self._seen["hidden"].exponent
            progress(
                f"  epoch {epoch + 1} of {self.params['epochs']}: "
                f"{self.clock.read()[0]:.0f} s, exponent {exponent:.2f}"
            )

    def measure(self):
        """Adds exponent, over all images, and test accuracy to the candidates."""
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


def accuracy(model, x, y, batch_size=1000):
    """Accuracy of a model, also within `fit()`, where `evaluate()` cannot be called."""
    if hasattr(model, "jax_state_sync"):  # within `fit()`, JAX holds newer weights
        model.jax_state_sync()
    correct = 0
    for start in range(0, len(x), batch_size):
        logits = model(x[start : start + batch_size], training=False)
        predicted = keras.ops.convert_to_numpy(keras.ops.argmax(logits, axis=1))
        correct += int(np.sum(predicted == y[start : start + batch_size]))
    return correct / len(x)


def attacked(model, data, images, strong):
    """Robustness on a choice of test images, the same for all networks.

    Args:
        model: A trained model.
        data: `(x_train, y_train), (x_test, y_test)`.
        images: How many are attacked by FGSM and PGD.
        strong: How many of these by the strong attacks; 0 for none.
    """

    def evaluate(count, attacks):
        report = kp.evaluate_robustness(
            *(model, *choose(data[1], count), EPSILONS, attacks), verbose=0
        )
        return report_to_json(report)

    result = {"robustness": evaluate(images, ["fgsm", "pgd"])}
    if strong:
        result["strong"] = evaluate(strong, "strong")
    return result
