"""Checks: figures for the flags that need more than the results of the attacks.

Measuring them takes a few more evaluations of the model, on the first images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from keras import ops
from numpy.typing import NDArray

from keras_powerlaw.robustness.attacks.restarted_pgd import broken_by_pgd
from keras_powerlaw.robustness.attacks.steps import gradient_program
from keras_powerlaw.robustness.attacks.table import BY_NAME
from keras_powerlaw.robustness.classification import is_correct
from keras_powerlaw.robustness.flags import CHANGED, least_share
from keras_powerlaw.robustness.problem import Indices, Problem

# Number of images that the checks use.
CHECKED = 500

# Rounding changes outputs by at most this share of their standard deviation.
ROUNDING = 1e-3


def measure_checks(
    problem: Problem, epsilons: Sequence[float], names: Sequence[str]
) -> dict[str, Any]:
    """Figures for the flags, and the limits above which the flags are raised.

    Args:
        problem: Model and images, of which only the first are used.
        epsilons: Strengths at which to try more steps.
        names: The attacks of the evaluation. If none of them uses gradients, no figure
            about gradients is measured.
    """
    count = min(CHECKED, len(problem.images))
    first = replace(
        problem, images=problem.images[:count], labels=problem.labels[:count]
    )
    one_batch = replace(first, images=first.images[: problem.settings.batch_size])
    outputs = _outputs(one_batch)
    spread = max(float(outputs.std()), 1e-30)

    def difference(others: NDArray[np.float32]) -> float:
        return float(np.abs(outputs[: len(others)] - others).max()) / spread

    values = {
        "probabilities": float(
            ((outputs >= 0) & (outputs <= 1)).all(axis=1).mean(dtype=float)
        ),
        "outputs_change": difference(_outputs(one_batch)),
    }
    # The outputs of a random model differ between any two calls.
    if len(outputs) > 1 and values["outputs_change"] <= ROUNDING:
        half = replace(first, images=one_batch.images[: (len(outputs) + 1) // 2])
        values["batch_dependence"] = difference(_outputs(half))
    least = least_share(CHANGED, count)
    chance = 1 / outputs.shape[1]
    limits = {
        "probabilities": 0.99,
        "outputs_change": ROUNDING,
        "batch_dependence": ROUNDING,
        "zero_gradients": 0.0,
        "more_steps": float(np.nextafter(least, 0)),
        "large_epsilon": chance,
    }
    attacks = [BY_NAME[name] for name in names]
    if any(attack.white_box for attack in attacks):
        values["zero_gradients"] = _zero_gradients(first)
        values["large_epsilon"] = _at_large_epsilon(first)
    if any(attack.iterative for attack in attacks):
        values["more_steps"] = _gain_of_steps(first, epsilons)
    return {**values, "limits": limits}


def _outputs(problem: Problem) -> NDArray[np.float32]:
    array: NDArray[np.float32] = ops.convert_to_numpy(
        problem.classifier(problem.images)
    )
    return array


def _zero_gradients(problem: Problem) -> float:
    gradient = gradient_program(problem)
    zeros = 0
    for batch in problem.batches(problem.indices):
        _, slopes = gradient(problem.images[batch], problem.labels[batch])
        zeros += (slopes == 0).reshape(len(slopes), -1).all(axis=1).sum()
    return float(zeros / len(problem.images))


def _at_large_epsilon(problem: Problem) -> float:
    """Accuracy under PGD at an ε that allows every image to become the same gray."""
    low, high = problem.settings.clip or (problem.images.min(), problem.images.max())
    epsilon = 0.5 * float(high - low)
    if problem.settings.norm == 2:
        epsilon *= np.sqrt(problem.images[0].size)
    steps = 40
    correct = _correctly_classified(problem)
    unbroken = _unbroken_by_pgd(problem, epsilon, steps, 2.5 * epsilon / steps, correct)
    return unbroken.size / len(problem.images)


def _gain_of_steps(problem: Problem, epsilons: Sequence[float]) -> float:
    """Largest share over ε of the images that PGD breaks only with twice the steps."""
    steps, size = problem.settings.pgd_steps, problem.settings.pgd_step_size
    unbroken = unbroken_by_twice = _correctly_classified(problem)
    gain = 0
    for epsilon in epsilons:
        if epsilon == 0:
            continue
        unbroken = _unbroken_by_pgd(problem, epsilon, steps, size, unbroken)
        unbroken_by_twice = np.intersect1d(unbroken_by_twice, unbroken)
        unbroken_by_twice = _unbroken_by_pgd(
            problem, epsilon, 2 * steps, size, unbroken_by_twice
        )
        gain = max(gain, unbroken.size - unbroken_by_twice.size)
    return gain / len(problem.images)


def _unbroken_by_pgd(
    problem: Problem, epsilon: float, steps: int, step_size: float, indices: Indices
) -> Indices:
    unbroken = [
        batch[~broken_by_pgd(problem, "ce", epsilon, steps, step_size, batch)]
        for batch in problem.batches(indices)
    ]
    return np.concatenate([indices[:0], *unbroken])


def _correctly_classified(problem: Problem) -> Indices:
    return np.concatenate(
        [
            batch[is_correct(problem, problem.images[batch], batch)]
            for batch in problem.batches(problem.indices)
        ]
    )
