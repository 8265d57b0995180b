"""Running an attack on many images, batch by batch and start by start."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from keras_powerlaw.arguments import ReportProgress, Tensor
from keras_powerlaw.robustness.classification import is_correct_eagerly
from keras_powerlaw.robustness.problem import Indices, Problem


def no_report(fraction: float) -> None:
    """Reports no progress."""


def classify_perturbed(
    problem: Problem,
    indices: Indices,
    perturb: Callable[[Indices], Tensor],
    progress: ReportProgress = no_report,
) -> NDArray[np.bool_]:
    """Which images are classified correctly after a perturbation.

    Args:
        problem: The problem.
        indices: Indices of the images.
        perturb: Maps the indices of a batch to the perturbed images.
        progress: Called after each batch.
    """
    correct, done = [], 0
    for batch in problem.batches(indices):
        correct.append(is_correct_eagerly(problem, perturb(batch), batch))
        done += len(batch)
        progress(done / len(indices))
    return np.concatenate(correct)


def classifying_the_end(
    perturb: Callable[[Problem, float, Indices], Tensor],
) -> Callable[[Problem, float, Indices, ReportProgress], NDArray[np.bool_]]:
    """The attack in which only the perturbed images count, not the way to them.

    Args:
        perturb: Maps a problem, ε and the indices of a batch to the perturbed images.
    """

    def run(
        problem: Problem, epsilon: float, indices: Indices, progress: ReportProgress
    ) -> NDArray[np.bool_]:
        return classify_perturbed(
            problem, indices, lambda batch: perturb(problem, epsilon, batch), progress
        )

    return run


def withstand_starts(
    problem: Problem,
    indices: Indices,
    starts: Sequence[Callable[[Indices], NDArray[np.bool_]]],
    progress: ReportProgress = no_report,
) -> NDArray[np.bool_]:
    """Which images withstand every start of an attack.

    A start is tried only on the images that withstand those before it.

    Args:
        problem: The problem.
        indices: Indices of the images.
        starts: Functions that map the indices of a batch to which of them they break.
        progress: Called after each batch.
    """
    unbroken = np.ones(len(indices), dtype=bool)
    for number, start in enumerate(starts):
        remaining, done = np.flatnonzero(unbroken), 0
        for batch in problem.batches(remaining):
            unbroken[batch] = ~start(indices[batch])
            done += len(batch)
            progress((number + done / len(remaining)) / len(starts))
    return unbroken
