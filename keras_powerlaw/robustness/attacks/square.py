"""Square (Andriushchenko et al., 2020), from the Adversarial Robustness Toolbox.

It uses no gradient, and so finds what a misleading gradient hides.
"""

from __future__ import annotations

import functools
import math

import numpy as np
from numpy.typing import NDArray

from keras_powerlaw.arguments import ReportProgress, invalid_value
from keras_powerlaw.robustness.attacks.steps import seed_of
from keras_powerlaw.robustness.attacks.sweep import withstand_starts
from keras_powerlaw.robustness.attacks.toolbox import estimator_of, seeded
from keras_powerlaw.robustness.classification import is_correct
from keras_powerlaw.robustness.problem import Indices, Problem, Settings

# As in AutoAttack, but with a fifth of its 5,000 queries.
QUERIES = 1000
FIRST_SQUARE = 0.8  # share of the pixels


def run(
    problem: Problem, epsilon: float, indices: Indices, progress: ReportProgress
) -> NDArray[np.bool_]:
    starts = [
        functools.partial(_broken_by_square, problem, epsilon, restart)
        for restart in range(problem.settings.restarts)
    ]
    return withstand_starts(problem, indices, starts, progress)


def _broken_by_square(
    problem: Problem, epsilon: float, restart: int, indices: Indices
) -> NDArray[np.bool_]:
    from art.attacks.evasion.square_attack import SquareAttack

    images = problem.images[indices]
    attack = SquareAttack(
        estimator_of(problem, "ce"),
        norm=problem.settings.norm,
        eps=epsilon,
        max_iter=QUERIES,
        p_init=FIRST_SQUARE,
        batch_size=len(indices),
        verbose=False,
    )
    with seeded(problem.settings.seed, restart, seed_of(epsilon), int(indices[0])):
        attacked = attack.generate(
            images.reshape(*images.shape[:3], -1), problem.labels[indices]
        )
    return ~is_correct(problem, attacked.reshape(images.shape), indices)


def validate_shape(shape: tuple[int, ...], settings: Settings) -> None:
    """Raises a `ValueError` if the toolbox's Square cannot place its squares."""
    fits = len(shape) in (3, 4)
    if fits:
        height, width = shape[1:3]
        side = max(round(math.sqrt(FIRST_SQUARE * height * width)), 1)
        if settings.norm == 2:
            side += side % 2 == 0
            fits = height == width >= 10
        fits = fits and side < min(height, width)
    if not fits:
        raise invalid_value(
            "x",
            "images of shape (M, height, width) or (M, height, width, channels), about "
            'as high as wide and not too small, for the attack "square"',
            f"shape {shape}",
        )
