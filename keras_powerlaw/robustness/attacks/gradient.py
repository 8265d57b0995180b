"""Attacks along the gradient of a loss: FGSM, PGD, and PGD from several starts.

FGSM and PGD are cleverhans's, except on JAX, where it does not run.
"""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from keras_powerlaw.arguments import Tensor
from keras_powerlaw.backends import vjp
from keras_powerlaw.robustness.attacks.attack import (
    Attack,
    Batch,
    Package,
    ball_points,
    seed_of,
)
from keras_powerlaw.robustness.classifier import LOSSES, Classifier, logits_and_gradient

# Number of steps after which broken images are removed from the batch.
STEPS_BETWEEN_LOOKS = 5

# Where the attacks of cleverhans are; it has none for JAX.
MODULES = {
    "tensorflow": "cleverhans.tf2.attacks.",
    "torch": "cleverhans.torch.attacks.",
}.get(keras.backend.backend())
CLEVERHANS = (
    Package(MODULES + "projected_gradient_descent", "cleverhans", "robustness")
    if MODULES
    else None
)


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
        direction = gradient / _length(gradient)
    change = ops.clip(points + size * direction, *limits) - images
    if norm == 2:
        change = change * ops.minimum(1.0, epsilon / _length(change))
    else:
        change = ops.clip(change, -epsilon, epsilon)
    return ops.clip(images + change, *limits)


def _length(rows: Tensor) -> Tensor:
    """The Euclidean length of each row, above 0."""
    # Scaled first, since the square of a small float32 gradient underflows to zero.
    axes = tuple(range(1, len(rows.shape)))
    largest = ops.maximum(ops.max(ops.abs(rows), axis=axes, keepdims=True), 1e-30)
    scaled = ops.sum(ops.square(rows / largest), axis=axes, keepdims=True)
    return ops.maximum(largest * ops.sqrt(scaled), 1e-30)


class Fgsm(Attack):
    """s + ε sign(∇ₛ L(f(s), y)), clipped to the pixel range.

    Reference:
        Nassar et al. (2020), equation (6).
    """

    name = "fgsm"
    title = "FGSM"
    package = CLEVERHANS
    white_box = True

    def perturb(
        self, classifier: Classifier, batch: Batch, epsilon: float, start: Any = 0
    ) -> Tensor:
        if MODULES is None:
            return step_by_step(self, classifier, batch, epsilon, epsilon, 1)
        return _call_cleverhans(
            "fast_gradient_method", self, classifier, batch, epsilon
        )


class Pgd(Attack):
    """s + δ after the last δ ← Proj(δ + η sign(∇_δ L(f(s + δ), y))), from δ = 0.

    Reference:
        Nassar et al. (2020), equations (7) and (8).
    """

    name = "pgd"
    title = "PGD"
    package = CLEVERHANS
    white_box = True
    iterative = True

    def require(self, shape: tuple[int, ...], epsilon: float) -> None:
        super().require(shape, epsilon)
        reach = self.pgd_steps * self.pgd_step_size
        if reach < epsilon and not math.isclose(reach, epsilon):
            warnings.warn(
                f"{self.pgd_steps} PGD steps of {self.pgd_step_size:g} change a pixel "
                f"by at most {reach:g}, less than the largest epsilon, {epsilon:g}. "
                "Raise `pgd_steps` or `pgd_step_size`.",
                stacklevel=3,
            )

    def perturb(
        self, classifier: Classifier, batch: Batch, epsilon: float, start: Any = 0
    ) -> Tensor:
        size = min(self.pgd_step_size, epsilon)  # cleverhans rejects a larger one
        if MODULES is None:
            return step_by_step(self, classifier, batch, epsilon, size, self.pgd_steps)
        return _call_cleverhans(
            *("projected_gradient_descent", self, classifier, batch),
            *(epsilon, size, self.pgd_steps),
            rand_init=False,  # the default differs between the two backends
            sanity_checks=False,  # they reject an epsilon above the pixel range
        )


def step_by_step(
    attack: Attack,
    classifier: Classifier,
    batch: Batch,
    epsilon: float,
    size: float,
    steps: int,
) -> Tensor:
    """What cleverhans does, written out."""
    points: Tensor = batch.images
    for _ in range(steps):
        slope = classifier.gradient(points, batch.labels)
        points = projected_step(
            points, slope, batch.images, epsilon, size, attack.limits, attack.norm
        )
    return points


class PgdOnCrossEntropy(Attack):
    """A stronger PGD: from the image, and from points drawn from the ball.

    An image counts as broken if any point on a path is misclassified.
    """

    name = "pgd_ce"
    title = "PGD, cross-entropy"
    white_box = True
    iterative = True
    follows_up = True
    loss: ClassVar[str] = "ce"

    def starts(self) -> Sequence[int]:
        return range(self.restarts)

    def run(
        self, classifier: Classifier, batch: Batch, epsilon: float, start: int = 0
    ) -> NDArray[np.bool_]:
        images, labels, indices = batch
        points = images
        size = self.pgd_step_size
        if start:  # from a random point, with steps in proportion to ε
            size = 2.5 * epsilon / self.pgd_steps
            key = [self.seed, list(LOSSES).index(self.loss), start, seed_of(epsilon)]
            offsets = ball_points(self.norm, images.shape[1:], key, indices)
            points = np.clip(images + np.float32(epsilon) * offsets, *self.limits)
        take_steps = classifier.compiled(
            ("pgd", self.loss, self.norm), self._take_steps
        )
        unbroken = np.ones(len(images), dtype=bool)
        active = np.arange(len(images))
        for done in range(0, self.pgd_steps, STEPS_BETWEEN_LOOKS):
            points, broken = take_steps(
                points,
                images[active],
                labels[active],
                np.float32(epsilon),
                np.float32(min(size, epsilon)),
                np.int32(min(STEPS_BETWEEN_LOOKS, self.pgd_steps - done)),
            )
            unbroken[active[broken]] = False
            points, active = points[~broken], active[~broken]
            if not len(active):
                return unbroken
        unbroken[active] = classifier.is_correct(points, labels[active])
        return unbroken

    def _take_steps(
        self,
        forward: Tensor,
        points: Tensor,
        images: Tensor,
        labels: Tensor,
        epsilon: Tensor,
        size: Tensor,
        steps: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Takes some steps, in which a misclassified point no longer moves."""
        labels = ops.cast(labels, "int32")
        loss = LOSSES[self.loss]

        def step(_: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            points, broken = state
            logits, gradient = logits_and_gradient(forward, points, labels, loss)
            missed = ops.cast(ops.argmax(logits, axis=-1), "int32") != labels
            # NaN does not count as misclassified; it raises an error at the end.
            defined = ops.logical_not(ops.any(ops.isnan(logits), axis=-1))
            broken = ops.logical_or(broken, ops.logical_and(missed, defined))
            moved = projected_step(
                points, gradient, images, epsilon, size, self.limits, self.norm
            )
            stays = ops.reshape(broken, (-1, *[1] * (len(points.shape) - 1)))
            return ops.where(stays, points, moved), broken

        none_broken = ops.zeros_like(labels, dtype="bool")
        state: tuple[Tensor, Tensor] = ops.fori_loop(
            0, steps, step, (points, none_broken)
        )
        return state


class PgdOnMargin(PgdOnCrossEntropy):
    """The same on the margin of the logits, the DLR loss."""

    name = "pgd_dlr"
    title = "PGD, margin loss"
    loss = "dlr"


def _call_cleverhans(
    name: str,
    attack: Attack,
    classifier: Classifier,
    batch: Batch,
    *sizes: float,
    **options: Any,
) -> Tensor:
    """Calls one of cleverhans's functions."""
    module = importlib.import_module(f"{MODULES}{name}")
    if "cleverhans" not in classifier.programs:
        # The same in all calls of one evaluation, for which cleverhans compiles once.
        makers = {"tensorflow": _without_weights, "torch": _cut_from_weights}
        classifier.programs["cleverhans"] = makers[keras.backend.backend()](classifier)
    low, high = attack.clip or (None, None)
    return getattr(module, name)(
        classifier.programs["cleverhans"],
        ops.convert_to_tensor(batch.images),
        *sizes,
        attack.norm,
        y=ops.convert_to_tensor(batch.labels),
        clip_min=low,
        clip_max=high,
        **options,
    )


def _without_weights(classifier: Classifier) -> Callable[[Tensor], Tensor]:
    """The logits on TensorFlow, as a function whose graph holds no weights.

    cleverhans keeps the graph of every function that it has attacked, and a graph keeps
    the variables that it reads. These are copies, which are emptied when the evaluation
    ends.
    """
    import tensorflow as tf

    variables = classifier.model.variables
    copies = [
        tf.Variable(variable.value, trainable=False, shape=tf.TensorShape(None))
        for variable in variables
    ]
    for copy in copies:
        nothing = np.zeros(0, copy.dtype.as_numpy_dtype)
        classifier.at_end.callback(copy.assign, nothing)

    @tf.autograph.experimental.do_not_convert  # type: ignore[untyped-decorator]
    def logits(images: Tensor) -> Tensor:
        values = [
            tf.ensure_shape(copy.value(), variable.shape)
            for copy, variable in zip(copies, variables, strict=True)
        ]
        with keras.StatelessScope(list(zip(variables, values, strict=True))) as scope:
            outputs = classifier(images)
        for variable, value, copy in zip(variables, values, copies, strict=True):
            changed = scope.get_current_value(variable)
            if changed is not value:  # the state of a random generator
                copy.assign(changed)
        # A model that rounds its inputs leaves no path to them, and cleverhans needs
        # one: along this one, the gradient is zero.
        first_pixels = tf.reshape(images, (tf.shape(images)[0], -1))[:, :1]
        return outputs + 0.0 * first_pixels

    function: Callable[[Tensor], Tensor] = logits
    return function


def _cut_from_weights(classifier: Classifier) -> Callable[[Tensor], Tensor]:
    """The logits on PyTorch, whose `backward()` adds no gradients to the weights."""
    import torch

    class CutFromWeights(torch.autograd.Function):  # type: ignore[misc]
        @staticmethod
        def forward(context: Any, images: Tensor) -> Tensor:
            logits, context.product, _ = vjp(classifier, images)
            return logits.detach()

        @staticmethod
        def backward(context: Any, cotangent: Tensor) -> Tensor:
            # cleverhans averages the loss over the batch. An image's share of it would
            # vanish in float16; of the gradient, the attacks use the direction alone.
            # A power of two changes no digit of it.
            scale = 2.0 ** (len(cotangent) - 1).bit_length()
            return context.product(scale * cotangent).detach()

    apply: Callable[[Tensor], Tensor] = CutFromWeights.apply
    return apply
