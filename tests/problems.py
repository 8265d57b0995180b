"""What single attacks are handed, without an evaluation around them."""

import numpy as np

from keras_powerlaw.robustness.problem import Problem, Settings


def problem_of(model, images, labels, **settings):
    """A `Problem` with the defaults of `evaluate_robustness`, but for `settings`."""
    defaults = {
        "norm": np.inf,
        "pgd_steps": 40,
        "pgd_step_size": 0.01,
        "restarts": 2,
        "noise_draws": 1,
        "clip": (0.0, 1.0),
        "batch_size": 500,
        "seed": 0,
    }
    return Problem(
        model,
        np.asarray(images, "float32"),
        np.asarray(labels, "int64"),
        Settings(**{**defaults, **settings}),
    )
