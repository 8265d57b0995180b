"""Whether images are classified correctly."""

from __future__ import annotations

from typing import Any

import numpy as np
from keras import ops
from numpy.typing import NDArray

from keras_powerlaw.arguments import Tensor
from keras_powerlaw.robustness.compilation import compiled_logits
from keras_powerlaw.robustness.problem import Indices, Problem


def is_correct(
    problem: Problem, points: NDArray[np.float32], indices: Indices
) -> NDArray[np.bool_]:
    """Whether `points`, which replace the images `indices`, are classified correctly.

    Uses the compiled classifier, which the attacks have already called.
    """
    logits = compiled_logits(problem.classifier)(points)
    return correct_rows(logits, problem.labels[indices])


def is_correct_eagerly(
    problem: Problem, points: Tensor, indices: Indices
) -> NDArray[np.bool_]:
    """The same, without compiling the classifier for what may be a single call."""
    logits = ops.convert_to_numpy(problem.classifier(points))
    return correct_rows(logits, problem.labels[indices])


def correct_rows(logits: NDArray[Any], labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether the largest logit in each row is that of the label."""
    if np.isnan(logits).any():
        raise ValueError(
            "The model returned NaN, so its accuracy is not defined. "
            "Check its weights for NaN and infinity."
        )
    correct: NDArray[np.bool_] = logits.argmax(axis=1) == labels
    return correct
