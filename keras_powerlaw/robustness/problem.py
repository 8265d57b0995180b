"""The attacked model, its images and the settings, as the one object attacks get."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keras_powerlaw.robustness.logits import Classifier

# Indices of images.
Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Settings:
    """The options of `evaluate_robustness` that affect the attacks.

    Attributes:
        norm: Infinity or 2.
        pgd_steps: Number of PGD steps.
        pgd_step_size: Size of a PGD step, in units of pixel values.
        restarts: Starts of each strong attack.
        noise_draws: Draws of noise per image.
        clip: Smallest and largest pixel value, or None.
        batch_size: Images per batch.
        seed: Seed of the noise and of the random starts.
    """

    norm: float
    pgd_steps: int
    pgd_step_size: float
    restarts: int
    noise_draws: int
    clip: tuple[float, float] | None
    batch_size: int
    seed: int

    @property
    def limits(self) -> tuple[float, float]:
        """Smallest and largest pixel value, which may be infinite."""
        return self.clip or (-np.inf, np.inf)

    @property
    def reach(self) -> float:
        """How far all PGD steps together can move a pixel."""
        return self.pgd_steps * self.pgd_step_size

    def reported(self) -> dict[str, Any]:
        """The settings that affect the results, as a report stores them in JSON."""
        return {
            "norm": "inf" if self.norm == np.inf else 2,
            "pgd_steps": self.pgd_steps,
            "pgd_step_size": self.pgd_step_size,
            "restarts": self.restarts,
            "noise_draws": self.noise_draws,
            "clip": None if self.clip is None else list(self.clip),
            "seed": self.seed,
        }


@dataclass(frozen=True)
class Problem:
    """A classifier, images, and the settings of the attacks on them.

    Attributes:
        classifier: Returns logits, shape `(batch, classes)`.
        images: Shape `(M, …)`.
        labels: Shape `(M,)`.
        settings: The settings.
    """

    classifier: Classifier
    images: NDArray[np.float32]
    labels: NDArray[np.int64]
    settings: Settings

    @property
    def indices(self) -> Indices:
        """The indices of all images."""
        return np.arange(len(self.images))

    def batches(self, indices: Indices) -> Iterator[Indices]:
        """Yields `indices` in batches of `batch_size`."""
        size = self.settings.batch_size
        for start in range(0, len(indices), size):
            yield indices[start : start + size]
