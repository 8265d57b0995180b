"""What single attacks are handed, without an evaluation around them."""

import numpy as np

from keras_powerlaw.robustness.logits import classifier_of
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
    images = np.asarray(images, "float32")
    return Problem(
        model and classifier_of(model, images),
        images,
        np.asarray(labels, "int64"),
        Settings(**{**defaults, **settings}),
    )
