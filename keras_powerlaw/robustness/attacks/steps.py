"""The step of the gradient attacks, and random points to start from."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from keras import ops
from numpy.typing import NDArray

from keras_powerlaw.arguments import Tensor
from keras_powerlaw.robustness.compilation import Program, compiled
from keras_powerlaw.robustness.losses import cross_entropy, logits_and_gradient
from keras_powerlaw.robustness.problem import Indices, Problem


def projected_step(
    points: Tensor,
    gradient: Tensor,
    images: Tensor,
    epsilon: Tensor,
    size: Tensor,
    limits: tuple[Tensor, Tensor],
    norm: float,
) -> Tensor:
    """The steepest step of the given size, projected to the ball and the pixel range.

    Reference:
        Nassar et al. (2020), equations (7) and (8), for the maximum norm.
    """
    direction = ops.sign(gradient)
    if norm == 2:
        direction = gradient / ops.maximum(_length(gradient), 1e-30)
    change = ops.clip(points + size * direction, *limits) - images
    if norm == 2:
        change = change * ops.minimum(
            1.0, epsilon / ops.maximum(_length(change), 1e-30)
        )
    else:
        change = ops.clip(change, -epsilon, epsilon)
    return ops.clip(images + change, *limits)


def take_step(
    problem: Problem,
    points: Tensor,
    images: NDArray[np.float32],
    labels: NDArray[np.int64],
    epsilon: float,
    size: float,
) -> Tensor:
    """One step from `points`, along the steepest ascent of the cross-entropy."""
    _, slope = gradient_program(problem)(points, labels)
    settings = problem.settings
    return projected_step(
        points, slope, images, epsilon, size, settings.limits, settings.norm
    )


def gradient_program(problem: Problem) -> Program:
    """Maps images and labels to the logits and the gradient of the cross-entropy."""
    return compiled(
        problem.classifier,
        "gradient",
        functools.partial(logits_and_gradient, loss=cross_entropy),
    )


def ball_points(
    problem: Problem, indices: Indices, key: Sequence[int]
) -> NDArray[np.float32]:
    """Random points, uniform in the ball of radius 1, one per index.

    A point depends on the seed, the key and the index only, not on the batch.
    """
    shape = problem.images.shape[1:]
    points = np.empty((len(indices), *shape), dtype=np.float32)
    for point, index in zip(points, indices, strict=True):
        rng = np.random.default_rng([problem.settings.seed, *key, int(index)])
        if problem.settings.norm == 2:
            draw = rng.standard_normal(shape)
            radius = rng.random() ** (1 / draw.size)
            point[...] = radius * draw / np.linalg.norm(draw)
        else:
            point[...] = rng.uniform(-1, 1, shape)
    return points


def seed_of(epsilon: float) -> int:
    """An integer that represents ε in the seed of a random start."""
    return int(np.float64(epsilon).view(np.uint64))


def _length(rows: Tensor) -> Tensor:
    # Scaled first, since the square of a small float32 gradient underflows to zero.
    axes = tuple(range(1, len(rows.shape)))
    largest = ops.maximum(ops.max(ops.abs(rows), axis=axes, keepdims=True), 1e-30)
    scaled = ops.sum(ops.square(rows / largest), axis=axes, keepdims=True)
    return largest * ops.sqrt(scaled)
