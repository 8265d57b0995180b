"""Noise: Gaussian, as in the paper, and uniform in the ball of radius ε."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from keras_powerlaw.arguments import ReportProgress
from keras_powerlaw.robustness.attacks.steps import ball_points
from keras_powerlaw.robustness.attacks.sweep import classify_perturbed
from keras_powerlaw.robustness.problem import Indices, Problem

# Maps the indices of a batch to noise of strength 1.
Draw = Callable[[Indices], NDArray[np.float32]]


def gaussian(
    problem: Problem, epsilon: float, indices: Indices, progress: ReportProgress
) -> NDArray[np.bool_]:
    def draw(number: int) -> Draw:
        # One stream for all images, restarted at each strength, so that no noise is
        # stored and the result does not depend on the batch size.
        seed = problem.settings.seed
        rng = np.random.default_rng([seed, number] if number else seed)
        shape = problem.images.shape[1:]
        return lambda batch: rng.standard_normal((len(batch), *shape), dtype=np.float32)

    return _under_draws(problem, epsilon, indices, draw, progress)


def uniform(
    problem: Problem, epsilon: float, indices: Indices, progress: ReportProgress
) -> NDArray[np.bool_]:
    def draw(number: int) -> Draw:
        return lambda batch: ball_points(problem, batch, [number])

    return _under_draws(problem, epsilon, indices, draw, progress)


def _under_draws(
    problem: Problem,
    epsilon: float,
    indices: Indices,
    draw: Callable[[int], Draw],
    progress: ReportProgress,
) -> NDArray[np.bool_]:
    """Which images are classified correctly in each draw, shape `(draws, images)`."""
    draws = problem.settings.noise_draws
    correct = []
    for number in range(draws):
        noise = draw(number)

        def perturb(batch: Indices, noise: Draw = noise) -> NDArray[np.float32]:
            noisy = problem.images[batch] + epsilon * noise(batch)
            # Without `clip`, the limits are infinite.
            return np.clip(noisy, *problem.settings.limits)

        def report(fraction: float, number: int = number) -> None:
            progress((number + fraction) / draws)

        correct.append(classify_perturbed(problem, indices, perturb, report))
    return np.stack(correct)
