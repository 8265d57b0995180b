"""A stronger PGD: from several starts, and on two losses.

An image counts as broken if any point on a path is misclassified.
"""

from __future__ import annotations

import functools

import numpy as np
from keras import ops
from numpy.typing import NDArray

from keras_powerlaw.arguments import ReportProgress, Tensor
from keras_powerlaw.robustness.attacks.steps import (
    ball_points,
    projected_step,
    seed_of,
)
from keras_powerlaw.robustness.attacks.sweep import withstand_starts
from keras_powerlaw.robustness.classification import is_correct
from keras_powerlaw.robustness.compilation import compiled
from keras_powerlaw.robustness.losses import LOSSES, Loss, logits_and_gradient
from keras_powerlaw.robustness.problem import Indices, Problem

# Number of steps after which broken images are removed from the batch.
STEPS_BETWEEN_LOOKS = 5


def on_cross_entropy(
    problem: Problem, epsilon: float, indices: Indices, progress: ReportProgress
) -> NDArray[np.bool_]:
    return _run(problem, "ce", epsilon, indices, progress)


def on_logit_ratio(
    problem: Problem, epsilon: float, indices: Indices, progress: ReportProgress
) -> NDArray[np.bool_]:
    return _run(problem, "dlr", epsilon, indices, progress)


def _run(
    problem: Problem,
    loss: str,
    epsilon: float,
    indices: Indices,
    progress: ReportProgress,
) -> NDArray[np.bool_]:
    steps = problem.settings.pgd_steps
    starts = []
    for restart in range(problem.settings.restarts):
        # The paper's steps from the image, steps in proportion to ε from random starts.
        size = problem.settings.pgd_step_size if restart == 0 else 2.5 * epsilon / steps
        starts.append(
            functools.partial(
                broken_by_pgd, problem, loss, epsilon, steps, size, restart=restart
            )
        )
    return withstand_starts(problem, indices, starts, progress)


def broken_by_pgd(
    problem: Problem,
    loss: str,
    epsilon: float,
    steps: int,
    step_size: float,
    indices: Indices,
    *,
    restart: int = 0,
) -> NDArray[np.bool_]:
    """PGD on one batch: which images are misclassified at any point on their path.

    Restart 0 starts at the image, the others at a point drawn uniformly from the ball.
    """
    low, high = problem.settings.limits
    norm = problem.settings.norm
    program = compiled(
        problem.classifier,
        ("pgd", loss, norm),
        functools.partial(_take_steps, LOSSES[loss], norm),
    )
    images = problem.images[indices]
    points = images
    if restart:
        key = [list(LOSSES).index(loss), restart, seed_of(epsilon)]
        points = images + np.float32(epsilon) * ball_points(problem, indices, key)
        points = np.clip(points, low, high)
    broken = np.zeros(len(indices), dtype=bool)
    active = np.arange(len(indices))
    for done in range(0, steps, STEPS_BETWEEN_LOOKS):
        points, newly_broken = program(
            points,
            np.zeros(len(active), dtype=bool),
            images[active],
            problem.labels[indices[active]],
            np.float32(epsilon),
            np.float32(min(step_size, epsilon)),
            np.float32(low),
            np.float32(high),
            np.int32(min(STEPS_BETWEEN_LOOKS, steps - done)),
        )
        broken[active[newly_broken]] = True
        points, active = points[~newly_broken], active[~newly_broken]
        if not len(active):
            return broken
    broken[active] = ~is_correct(problem, points, indices[active])
    return broken


def _take_steps(
    loss: Loss,
    norm: float,
    forward: Tensor,
    points: Tensor,
    broken: Tensor,
    images: Tensor,
    labels: Tensor,
    epsilon: Tensor,
    size: Tensor,
    low: Tensor,
    high: Tensor,
    steps: Tensor,
) -> tuple[Tensor, Tensor]:
    """Takes `steps` PGD steps, in which a misclassified point no longer moves."""
    labels = ops.cast(labels, "int32")

    def step(_: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        points, broken = state
        logits, gradient = logits_and_gradient(forward, points, labels, loss)
        missed = ops.cast(ops.argmax(logits, axis=-1), "int32") != labels
        # NaN does not count as misclassified; it raises an error at the end.
        defined = ops.logical_not(ops.any(ops.isnan(logits), axis=-1))
        broken = ops.logical_or(broken, ops.logical_and(missed, defined))
        moved = projected_step(
            points, gradient, images, epsilon, size, (low, high), norm
        )
        stays = ops.reshape(broken, (-1, *[1] * (len(points.shape) - 1)))
        return ops.where(stays, points, moved), broken

    state: tuple[Tensor, Tensor] = ops.fori_loop(0, steps, step, (points, broken))
    return state
