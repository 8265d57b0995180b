"""Noise: Gaussian, as in the paper, and uniform in the ball of radius ε."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.random import Generator, default_rng
from numpy.typing import NDArray

from keras_powerlaw.robustness.attacks.attack import Attack, Batch, ball_points
from keras_powerlaw.robustness.classifier import Classifier


class GaussianNoise(Attack):
    """ε times standard normal noise."""

    name = "noise"
    title = "white noise"
    random = True
    bounded = False

    def starts(self) -> Sequence[Generator]:
        # One stream for all images, restarted at each strength, so that no noise is
        # stored and the result does not depend on the batch size.
        draws = range(self.noise_draws)
        return [default_rng([self.seed, n] if n else self.seed) for n in draws]

    def perturb(
        self, classifier: Classifier, batch: Batch, epsilon: float, start: Generator
    ) -> NDArray[np.float32]:
        noise = start.standard_normal(batch.images.shape, dtype=np.float32)
        return np.clip(batch.images + epsilon * noise, *self.limits)


class UniformNoise(Attack):
    """A random point of the ball of radius ε."""

    name = "uniform_noise"
    title = "uniform noise"
    random = True

    def starts(self) -> Sequence[int]:
        return range(self.noise_draws)

    def perturb(
        self, classifier: Classifier, batch: Batch, epsilon: float, start: Any
    ) -> NDArray[np.float32]:
        noise = ball_points(
            self.norm, batch.images.shape[1:], [self.seed, start], batch.indices
        )
        return np.clip(batch.images + epsilon * noise, *self.limits)
