"""A model wrapped for the Adversarial Robustness Toolbox, on any backend."""

from __future__ import annotations

import contextlib
import functools
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keras_powerlaw.arguments import Tensor
from keras_powerlaw.robustness.classification import correct_rows
from keras_powerlaw.robustness.compilation import compiled, compiled_logits
from keras_powerlaw.robustness.losses import LOSSES, Loss, logits_and_gradient
from keras_powerlaw.robustness.problem import Problem


def estimator_of(problem: Problem, loss: str) -> Any:
    """An estimator of the toolbox that runs our own compiled programs."""
    from art.estimators.classification import BlackBoxClassifierNeuralNetwork
    from art.estimators.estimator import LossGradientsMixin

    program = compiled(
        problem.classifier,
        ("loss", loss),
        functools.partial(_logits_losses_gradient, LOSSES[loss]),
    )

    class Estimator(
        LossGradientsMixin,  # type: ignore[misc]
        BlackBoxClassifierNeuralNetwork,  # type: ignore[misc]
    ):
        # The toolbox returns the last point of AutoPGD. Like AutoAttack, we count an
        # image as broken if any point on the path is misclassified.
        broken: Any = None

        def predict(self, x: Any, batch_size: Any = None, **unused: Any) -> Any:
            x = np.asarray(x, "float32").reshape(-1, *problem.images.shape[1:])
            return compiled_logits(problem.classifier)(x)

        def loss_gradient(self, x: Any, y: Any, **unused: Any) -> Any:
            return self._evaluate(x, y)[2]

        def compute_loss(self, x: Any, y: Any, **unused: Any) -> NDArray[Any]:
            logits, losses, _ = self._evaluate(x, y)
            self.broken |= ~correct_rows(logits, y.argmax(axis=1))
            return losses

        def _evaluate(self, x: Any, y: Any) -> tuple[NDArray[Any], ...]:
            results: tuple[NDArray[Any], ...] = program(
                np.asarray(x, "float32"), y.argmax(axis=1)
            )
            return results

    shape = problem.images.shape[1:]
    classes = problem.classifier(problem.images[:1]).shape[1]
    square_shape = shape if len(shape) != 2 else (*shape, 1)
    return Estimator(
        lambda x: x,
        square_shape,
        classes,
        channels_first=False,
        clip_values=problem.settings.limits,
    )


def _logits_losses_gradient(
    loss: Loss, forward: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor
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
