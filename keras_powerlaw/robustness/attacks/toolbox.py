"""AutoPGD and Square, from the Adversarial Robustness Toolbox, on any backend."""

from __future__ import annotations

import contextlib
import functools
import math
import random
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from keras_powerlaw.arguments import Tensor, invalid_value
from keras_powerlaw.robustness.attacks.attack import Attack, Batch, Package, seed_of
from keras_powerlaw.robustness.classifier import (
    LOSSES,
    Classifier,
    Function,
    Loss,
    has_largest,
    logits_and_gradient,
)

TOOLBOX = Package("art", "the Adversarial Robustness Toolbox", "strong")


class AutoPgd(Attack):
    """PGD that chooses its own step sizes, on both losses (Croce & Hein, 2020).

    An image counts as broken if any point on a path is misclassified.
    """

    name = "autopgd"
    title = "AutoPGD"
    package = TOOLBOX
    white_box = True
    iterative = True
    follows_up = True
    steps: ClassVar[int] = 100  # as in AutoAttack

    def starts(self) -> Sequence[tuple[int, str]]:
        return [(restart, loss) for restart in range(self.restarts) for loss in LOSSES]

    def run(
        self,
        classifier: Classifier,
        batch: Batch,
        epsilon: float,
        start: tuple[int, str] = (0, "ce"),
    ) -> NDArray[np.bool_]:
        from art.attacks.evasion import AutoProjectedGradientDescent

        restart, loss = start
        images, labels, indices = batch
        estimator = estimator_of(classifier, images.shape[1:], self.limits, loss)
        attack = AutoProjectedGradientDescent(
            estimator,
            norm=self.norm,
            eps=epsilon,
            eps_step=2 * epsilon,
            max_iter=self.steps,
            nb_random_init=1,
            batch_size=len(images),
            verbose=False,
        )
        estimator.unbroken = np.ones(len(images), dtype=bool)
        key = [list(LOSSES).index(loss), restart, seed_of(epsilon), int(indices[0])]
        with seeded(self.seed, *key):
            attacked = attack.generate(images, labels)
        unbroken: NDArray[np.bool_] = estimator.unbroken
        return unbroken & classifier.is_correct(attacked, labels)


class Square(Attack):
    """Random squares of changed pixels (Andriushchenko et al., 2020).

    It uses no gradient, and so finds what a misleading gradient hides.
    """

    name = "square"
    title = "Square"
    package = TOOLBOX
    follows_up = True
    # As in AutoAttack, but with a fifth of its 5,000 queries.
    queries: ClassVar[int] = 1000
    first_square: ClassVar[float] = 0.8  # share of the pixels

    def require(self, shape: tuple[int, ...], epsilon: float) -> None:
        super().require(shape, epsilon)
        # Whether the toolbox can place its squares.
        height, width = shape[1:3] if len(shape) in (3, 4) else (0, 0)
        side = max(round(math.sqrt(self.first_square * height * width)), 1)
        fits = side < min(height, width)
        if self.norm == 2:
            fits = height == width >= 10 and side + (side % 2 == 0) < width
        if not fits:
            raise invalid_value(
                "x",
                "images of shape (M, height, width) or (M, height, width, channels), "
                "about as high as wide and not too small, for the attack "
                f'"{self.name}"',
                f"shape {shape}",
            )

    def starts(self) -> Sequence[int]:
        return range(self.restarts)

    def perturb(
        self, classifier: Classifier, batch: Batch, epsilon: float, start: int = 0
    ) -> Tensor:
        from art.attacks.evasion import SquareAttack

        images, labels, indices = batch
        attack = SquareAttack(
            estimator_of(classifier, images.shape[1:], self.limits, "ce"),
            norm=self.norm,
            eps=epsilon,
            max_iter=self.queries,
            p_init=self.first_square,
            batch_size=len(images),
            verbose=False,
        )
        with seeded(self.seed, start, seed_of(epsilon), int(indices[0])):
            attacked = attack.generate(images.reshape(*images.shape[:3], -1), labels)
        return attacked.reshape(images.shape)


def estimator_of(
    classifier: Classifier,
    shape: tuple[int, ...],
    limits: tuple[float, float],
    loss: str,
) -> Any:
    """An estimator of the toolbox that runs our own compiled programs."""
    from art.estimators.classification import BlackBoxClassifierNeuralNetwork
    from art.estimators.estimator import LossGradientsMixin

    program = classifier.compiled(
        ("loss", loss), functools.partial(_logits_losses_gradient, LOSSES[loss])
    )

    class Estimator(
        LossGradientsMixin,  # type: ignore[misc]
        BlackBoxClassifierNeuralNetwork,  # type: ignore[misc]
    ):
        # The toolbox returns the last point of AutoPGD. Like AutoAttack, we count an
        # image as broken if any point on the path is misclassified.
        unbroken: Any = None

        def predict(self, x: Any, batch_size: Any = None, **unused: Any) -> Any:
            return classifier.predict(np.asarray(x, "float32").reshape(-1, *shape))

        def loss_gradient(self, x: Any, y: Any, **unused: Any) -> Any:
            return program(np.asarray(x, "float32"), y.argmax(axis=1))[2]

        def compute_loss(self, x: Any, y: Any, **unused: Any) -> Any:
            labels = y.argmax(axis=1)
            logits, losses, _ = program(np.asarray(x, "float32"), labels)
            self.unbroken &= has_largest(logits, labels)
            return losses

    return Estimator(
        lambda x: x,
        shape if len(shape) != 2 else (*shape, 1),
        classifier.classes,
        channels_first=False,
        clip_values=limits,
    )


def _logits_losses_gradient(
    loss: Loss, forward: Function, images: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    logits, gradient = logits_and_gradient(forward, images, labels, loss)
    return logits, loss(logits, labels), gradient


@contextlib.contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Seeds the global generators that the toolbox draws from within this context."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    [seed] = np.random.SeedSequence(key).generate_state(1)
    np.random.seed(seed)
    random.seed(int(seed))
    try:
        yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)
