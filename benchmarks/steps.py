"""The time of a training step, without the penalty and with each of its forms."""

import time

import keras
import numpy as np

import keras_powerlaw as kp
from benchmarks.measuring import Clock, medians, ratios
from benchmarks.networks import mnist, shallow


def cases(args):
    for size in args.sizes:
        settings = {"forms": args.forms, "rounds": args.rounds, "limit": args.limit}
        yield {"size": size, **settings}, lambda s: steps(**s, data=mnist(args.data))


def steps(size, forms, data, rounds, limit):
    """Times the steps of each form within `fit()`, where they are compiled.

    A step's time is that of an epoch from its begin to its end, over its number of
    steps. It includes handing a batch to the compiled program, but nothing that happens
    once per `fit()`. The forms take turns.

    Args:
        size: Width and batch.
        forms: Some of `FORMS`.
        data: `(x_train, y_train), (x_test, y_test)`.
        rounds: Turns of each form.
        limit: Seconds. A form whose first step takes longer is left out, and one that
            has taken as long in all its turns gets no more of them.
    """
    width, batch = size
    (x, y), _ = data
    models, first, count, times, left_out = {}, {}, {}, {}, {}
    for form in forms:
        model = with_basis(form, width, x)
        first[form], _ = epoch_seconds(model, x, y, batch, 1)
        if first[form] > limit:
            left_out[form] = f"the first step took {first[form]:.0f} s"
            continue
        _, reading = epoch_seconds(model, x, y, batch, 1)
        count[form] = int(np.clip(1 / reading[0], 1, min(50, len(x) // batch)))
        models[form], times[form] = model, []
    for _ in range(rounds):
        for form, model in models.items():
            if count[form] * sum(seconds for seconds, _ in times[form]) > limit:
                continue
            _, reading = epoch_seconds(model, x, y, batch, count[form])
            times[form].append([value / count[form] for value in reading])
    return {"first_step_seconds": first, "times": times, "left_out": left_out}


def with_basis(form, width, x):
    """The network, ready for a training step."""
    model = shallow(form, width)
    if form == "regularized":
        # Which eigenvectors they are makes no difference to the time of a step.
        kp.refresh_eigenbasis(model, x, max_samples=min(len(x), 2 * width), verbose=0)
    return model


def epoch_seconds(model, x, y, batch, steps):
    """Seconds of a `fit()` of one epoch, and a clock's reading of the epoch alone."""
    epoch, count = Epoch(), steps * batch
    begin = time.perf_counter()
    model.fit(
        *(x[:count], y[:count], batch), shuffle=False, callbacks=[epoch], verbose=0
    )
    return time.perf_counter() - begin, epoch.reading


class Epoch(keras.callbacks.Callback):
    """Times an epoch. Its metrics are numbers at its end, so all steps are done."""

    def on_epoch_begin(self, epoch, logs=None):
        self._clock = Clock()

    def on_epoch_end(self, epoch, logs=None):
        self.reading = self._clock.read()


def table(results):
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
