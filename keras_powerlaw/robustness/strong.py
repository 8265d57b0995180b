"""Attacks stronger than the paper's: restarts, a margin loss, AutoPGD and Square.

Each takes the indices of the images to attack and returns which of these it broke, so
that nothing is spent on the others.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from keras_powerlaw.robustness.attacks import projected_step
from keras_powerlaw.robustness.programs import (
    LOSSES,
    compiled,
    compiled_logits,
    logits_and_gradient,
)
from keras_powerlaw.support.arguments import invalid_value

# In the order in which they run: each attacks what those before it left.
STRONG_ATTACKS = ("pgd_ce", "pgd_dlr", "autopgd", "square")

# Broken images leave the batch once in so many steps.
LEAVE_EVERY = 5

# Those of AutoAttack, but for a fifth of its 5,000 queries.
AUTOPGD_STEPS = 100
SQUARE_QUERIES = 1000
SQUARE_FRACTION = 0.8  # of the pixels, in the first square

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Problem:
    """A classifier, its images, and what an attacker may do to them."""

    model: keras.Model  # returns logits
    images: NDArray[np.float32]
    labels: NDArray[np.int64]
    clip: tuple[float, float] | None
    norm: float  # inf or 2
    batch_size: int
    seed: int

    @property
    def limits(self) -> tuple[float, float]:
        return self.clip or (-np.inf, np.inf)


def strong_attack(
    problem: Problem,
    name: str,
    epsilon: float,
    indices: Indices,
    *,
    steps: int,
    step_size: float,
    restarts: int,
    progress: Callable[[float], None] = lambda fraction: None,
) -> NDArray[np.bool_]:
    """Which of the images `indices` the attack `name` breaks within `epsilon`."""
    left = np.ones(len(indices), dtype=bool)
    starts: list[Callable[[Indices], NDArray[np.bool_]]] = []
    for restart in range(restarts):
        if name == "square":
            starts.append(functools.partial(_square, problem, epsilon, restart))
        elif name == "autopgd":
            for loss in LOSSES:
                starts.append(
                    functools.partial(_autopgd, problem, loss, epsilon, restart)
                )
        else:
            loss = name.removeprefix("pgd_")
            # The paper's steps first; then longer ones, from elsewhere in the ball.
            size = step_size if restart == 0 else 2.5 * epsilon / steps
            starts.append(
                functools.partial(
                    pgd, problem, loss, epsilon, steps, size, restart=restart
                )
            )
    for number, start in enumerate(starts):
        rest = np.flatnonzero(left)
        for first in range(0, len(rest), problem.batch_size):
            batch = rest[first : first + problem.batch_size]
            left[batch] = ~start(indices[batch])
            progress((number + (first + len(batch)) / len(rest)) / len(starts))
    return ~left


def pgd(
    problem: Problem,
    loss: str,
    epsilon: float,
    steps: int,
    step_size: float,
    indices: Indices,
    *,
    restart: int = 0,
) -> NDArray[np.bool_]:
    """PGD on one batch: which images are misclassified at any point of their way.

    Start 0 is the image, the others are uniform in the ball.
    """
    program = compiled(
        problem.model,
        ("pgd", loss, problem.norm),
        functools.partial(_pgd_steps, LOSSES[loss], problem.norm),
    )
    images = problem.images[indices]
    points = images
    if restart:
        kind = list(LOSSES).index(loss)
        points = images + np.float32(epsilon) * ball_points(
            problem, indices, [kind, restart, _bits(epsilon)]
        )
        points = np.clip(points, *problem.limits)
    broken = np.zeros(len(indices), dtype=bool)
    active = np.arange(len(indices))
    for done in range(0, steps, LEAVE_EVERY):
        points, fell = program(
            points,
            np.zeros(len(active), dtype=bool),
            images[active],
            problem.labels[indices[active]],
            np.float32(epsilon),
            np.float32(min(step_size, epsilon)),
            np.float32(problem.limits[0]),
            np.float32(problem.limits[1]),
            np.int32(min(LEAVE_EVERY, steps - done)),
        )
        broken[active[fell]] = True
        points, active = points[~fell], active[~fell]
        if not len(active):
            return broken
    broken[active] = ~is_correct(problem, points, indices[active])
    return broken


def is_correct(
    problem: Problem, points: NDArray[np.float32], indices: Indices
) -> NDArray[np.bool_]:
    """Whether `points`, in place of the images `indices`, are classified correctly."""
    logits = compiled_logits(problem.model)(points)
    return correct_rows(logits, problem.labels[indices])


def correct_rows(logits: NDArray[Any], labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    if np.isnan(logits).any():
        raise ValueError(
            "The model returned NaN, so its accuracy is not defined. "
            "Check its weights for NaN and infinity."
        )
    return logits.argmax(axis=1) == labels


def _pgd_steps(
    loss, norm, forward, points, broken, images, labels, epsilon, size, low, high, steps
):
    """So many PGD steps; a misclassified point stays where it is."""
    labels = ops.cast(labels, "int32")

    def step(_, state):
        points, broken = state
        logits, gradient = logits_and_gradient(forward, points, labels, loss)
        missed = ops.cast(ops.argmax(logits, axis=-1), "int32") != labels
        # NaN is not an answer: the point goes on, to an error at the end.
        defined = ops.logical_not(ops.any(ops.isnan(logits), axis=-1))
        broken = ops.logical_or(broken, ops.logical_and(missed, defined))
        moved = projected_step(
            points, gradient, images, epsilon, size, (low, high), norm
        )
        stays = ops.reshape(broken, (-1, *[1] * (len(points.shape) - 1)))
        return ops.where(stays, points, moved), broken

    return ops.fori_loop(0, steps, step, (points, broken))


def ball_points(
    problem: Problem, indices: Indices, key: Sequence[int]
) -> NDArray[np.float32]:
    """Uniform in the ball of radius 1: one point for each index, seed and key.

    Keyed by the example, so that its point is the same in any batch.
    """
    shape = problem.images.shape[1:]
    points = np.empty((len(indices), *shape), dtype=np.float32)
    for point, index in zip(points, indices, strict=True):
        rng = np.random.default_rng([problem.seed, *key, int(index)])
        if problem.norm == 2:
            draw = rng.standard_normal(shape)
            radius = rng.random() ** (1 / draw.size)
            point[...] = radius * draw / np.linalg.norm(draw)
        else:
            point[...] = rng.uniform(-1, 1, shape)
    return points


def _bits(epsilon: float) -> int:
    return int(np.float64(epsilon).view(np.uint64))


def _autopgd(
    problem: Problem, loss: str, epsilon: float, restart: int, indices: Indices
) -> NDArray[np.bool_]:
    art = _toolbox("auto_projected_gradient_descent")
    estimator = _estimator(problem, loss)
    attack = art.AutoProjectedGradientDescent(
        estimator,
        norm=problem.norm,
        eps=epsilon,
        eps_step=2 * epsilon,
        max_iter=AUTOPGD_STEPS,
        nb_random_init=1,
        batch_size=len(indices),
        verbose=False,
    )
    estimator.broken = np.zeros(len(indices), dtype=bool)
    kind = list(LOSSES).index(loss)
    with _seeded(problem.seed, kind, restart, _bits(epsilon), int(indices[0])):
        attacked = attack.generate(problem.images[indices], problem.labels[indices])
    return estimator.broken | ~is_correct(problem, attacked, indices)


def _square(
    problem: Problem, epsilon: float, restart: int, indices: Indices
) -> NDArray[np.bool_]:
    art = _toolbox("square_attack")
    images = problem.images[indices]
    attack = art.SquareAttack(
        _estimator(problem, "ce"),
        norm=problem.norm,
        eps=epsilon,
        max_iter=SQUARE_QUERIES,
        p_init=SQUARE_FRACTION,
        batch_size=len(indices),
        verbose=False,
    )
    with _seeded(problem.seed, restart, _bits(epsilon), int(indices[0])):
        attacked = attack.generate(
            images.reshape(*images.shape[:3], -1), problem.labels[indices]
        )
    return ~is_correct(problem, attacked.reshape(images.shape), indices)


def check_square(shape: tuple[int, ...], norm: float) -> None:
    """Raises where the toolbox's Square cannot place its squares."""
    fits = len(shape) in (3, 4)
    if fits:
        height, width = shape[1:3]
        side = max(round(math.sqrt(SQUARE_FRACTION * height * width)), 1)
        if norm == 2:
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


def check_toolbox() -> None:
    """Raises if the Adversarial Robustness Toolbox is missing."""
    _toolbox("square_attack")


def _toolbox(module: str) -> Any:
    try:
        return importlib.import_module(f"art.attacks.evasion.{module}")
    except ImportError as error:
        raise ImportError(
            'The attacks "autopgd" and "square" need the Adversarial Robustness '
            "Toolbox. Install it with: pip install keras_powerlaw[strong]"
        ) from error


def _estimator(problem: Problem, loss: str) -> Any:
    """The model as the toolbox wants it, on any backend: our programs behind it."""
    from art.estimators.classification import BlackBoxClassifierNeuralNetwork
    from art.estimators.estimator import LossGradientsMixin

    program = compiled(
        problem.model,
        ("loss", loss),
        functools.partial(_logits_loss_gradient, LOSSES[loss]),
    )

    class Estimator(LossGradientsMixin, BlackBoxClassifierNeuralNetwork):
        # The toolbox keeps the last point of AutoPGD. AutoAttack counts an image that
        # was broken on the way, and so do we.
        broken = None

        def predict(self, x, batch_size=None, **unused):
            x = np.asarray(x, "float32").reshape(-1, *problem.images.shape[1:])
            return compiled_logits(problem.model)(x)

        def loss_gradient(self, x, y, **unused):
            return self._evaluate(x, y)[2]

        def compute_loss(self, x, y, reduction="none", **unused):
            logits, losses, _ = self._evaluate(x, y)
            self.broken |= ~correct_rows(logits, y.argmax(axis=1))
            return losses

        def _evaluate(self, x, y):
            return program(np.asarray(x, "float32"), y.argmax(axis=1))

    shape = problem.images.shape[1:]
    classes = problem.model.compute_output_shape((1, *shape))[-1]
    square_shape = shape if len(shape) != 2 else (*shape, 1)
    return Estimator(
        lambda x: x,
        square_shape,
        classes,
        channels_first=False,
        clip_values=problem.limits,
    )


def _logits_loss_gradient(loss, forward, images, labels):
    logits, gradient = logits_and_gradient(forward, images, labels, loss)
    return logits, loss(logits, labels), gradient


@contextlib.contextmanager
def _seeded(*key: int) -> Iterator[None]:
    """Within this context, the global generators that the toolbox draws from."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    [seed] = np.random.SeedSequence(key).generate_state(1)
    np.random.seed(seed)
    random.seed(int(seed))
    try:
        yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)
