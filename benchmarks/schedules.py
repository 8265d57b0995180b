"""The trainings that are compared, and when one of them has reached its aim.

`spectra` performs them.
"""

import numpy as np

from benchmarks.networks import PENALTY
from research.presets import PAPER_REFRESH, PRESETS

TOLERANCE = 0.05  # of the exponent
# Measuring the exponent over all images takes long. It is done when a refresh, which
# sees some of them, finds one as close to 1 as this.
NEAR = 0.1
EPSILONS = [0.05, 0.1]

LOG_RATIO = {**PENALTY, "beta": 1.0, "form": "log"}


def fast(batch_size, epochs, learning_rate=7e-3, penalty=LOG_RATIO):
    """A schedule of few steps in small batches."""
    return {
        **{"penalty": penalty, "batch_size": batch_size},
        **{"learning_rate": learning_rate, "decay": True, "epochs": epochs},
        # Three examples per unit of the 2,000: see docs/benchmarks.md.
        "refresh": {"every_steps": 20, "max_samples": 6000},
    }


# The settings of the penalty, those of `fit()` and Adam, and those of
# `EigenbasisRefresh`. With "decay", the learning rate falls to zero along a cosine.
SCHEDULES = {
    "paper": {
        "penalty": PENALTY,
        **{
            key: PRESETS["cpu"]["shallow"][key]
            for key in ("batch_size", "learning_rate", "epochs")
        },
        "refresh": PAPER_REFRESH,
    },
    "fast": fast(128, 1),
    # The same on the activations of the training steps.
    **{
        f"steps{suffix}": {**fast(batch, epochs), "refresh": {"x": None}}
        for suffix, batch, epochs in (
            ("", 128, 1),
            ("-64", 64, 1),
            ("-500", 500, 4),
            ("-3000", 3000, 24),
        )
    },
    # For Fashion-MNIST and 1,000 units.
    "fashion": {**fast(128, 4, 5e-3), "refresh": {"x": None, "every_steps": 10}},
    "fast-eq2": fast(128, 2, 3e-3, {**PENALTY, "beta": 1.0}),
    "fast-64": fast(64, 1),
    "fast-256": fast(256, 2),
    "fast-500": fast(500, 4),
    "fast-3000": fast(3000, 24),
}
# How often the basis is renewed, in steps, and on how many examples per unit; None for
# all examples.
INTERVALS = [
    *((steps, 5) for steps in (5, 10, 20, 40, 100, 500)),
    *((20, ratio) for ratio in (1.5, 3, 10, None)),
]
# A basis from the training steps is made of as many examples as there are.
WINDOW_INTERVALS = [(steps, "window") for steps in (10, 20, 25, 30, 40)]


def after(epochs, plain_accuracy):
    """The plain network's accuracy after as many epochs, rounded up to whole ones."""
    return plain_accuracy[max(1, int(np.ceil(epochs))) - 1]


def time_to(result, below):
    """The clock when exponent and accuracy were reached, or None if they never were.

    Args:
        result: Of a training, with what `Watch.measure` found in it.
        below: How far below that of the plain network the accuracy may be.
    """
    for found in result["candidates"]:
        gap = after(found["epochs"], result["plain_accuracy"]) - found["accuracy"]
        if abs(found["exponent"] - 1) <= TOLERANCE and gap <= below:
            return found["clock"]
    return None
