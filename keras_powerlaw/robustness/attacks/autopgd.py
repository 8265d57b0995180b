"""AutoPGD (Croce & Hein, 2020), from the Adversarial Robustness Toolbox."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from keras_powerlaw.arguments import ReportProgress
from keras_powerlaw.robustness.attacks.steps import seed_of
from keras_powerlaw.robustness.attacks.sweep import withstand_starts
from keras_powerlaw.robustness.attacks.toolbox import estimator_of, seeded
from keras_powerlaw.robustness.classification import is_correct
from keras_powerlaw.robustness.losses import LOSSES
from keras_powerlaw.robustness.problem import Indices, Problem

STEPS = 100  # as in AutoAttack


def run(
    problem: Problem, epsilon: float, indices: Indices, progress: ReportProgress
) -> NDArray[np.bool_]:
    starts = [
        functools.partial(broken_by_autopgd, problem, loss, epsilon, restart)
        for restart in range(problem.settings.restarts)
        for loss in LOSSES
    ]
    return withstand_starts(problem, indices, starts, progress)


def broken_by_autopgd(
    problem: Problem, loss: str, epsilon: float, restart: int, indices: Indices
) -> NDArray[np.bool_]:
    """AutoPGD on one batch: which images are misclassified at any point on its path."""
    from art.attacks.evasion.auto_projected_gradient_descent import (
        AutoProjectedGradientDescent,
    )

    estimator = estimator_of(problem, loss)
    attack = AutoProjectedGradientDescent(
        estimator,
        norm=problem.settings.norm,
        eps=epsilon,
        eps_step=2 * epsilon,
        max_iter=STEPS,
        nb_random_init=1,
        batch_size=len(indices),
        verbose=False,
    )
    estimator.broken = np.zeros(len(indices), dtype=bool)
    key = [list(LOSSES).index(loss), restart, seed_of(epsilon), int(indices[0])]
    with seeded(problem.settings.seed, *key):
        attacked = attack.generate(problem.images[indices], problem.labels[indices])
    broken: NDArray[np.bool_] = estimator.broken
    return broken | ~is_correct(problem, attacked, indices)
