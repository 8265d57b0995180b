"""The eigenvalues of the covariance of samples, whatever their number and width."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from keras_powerlaw.arguments import (
    invalid_value,
    validate_integer,
    validate_optional_integer,
)
from keras_powerlaw.spectral.covariance import (
    StreamingCovariance,
    epsilon_of,
    rounding_floor,
)
from keras_powerlaw.spectral.leading import leading_eigenvalues
from keras_powerlaw.support.batches import require_finite
from keras_powerlaw.support.memory import require_memory, require_memory_for_samples

# Rows of an array that are read at once.
ROWS = 1024


class StreamingSpectrum:
    """Eigenvalues of the covariance of data that arrive in batches.

    The samples are kept until there are more of them than units; from then on, their
    covariance is. So neither takes more than a square of the units.

    Args:
        computed_in: As in `StreamingCovariance`.
        name: What the data are, for errors.
    """

    def __init__(self, computed_in: str = "float64", name: str = "samples") -> None:
        self.count = 0
        self._epsilon = epsilon_of(computed_in)
        self._computed_in = computed_in
        self._name = name
        self._kept: list[NDArray[np.floating]] = []
        self._covariance: StreamingCovariance | None = None

    def update(self, activity: NDArray[np.floating]) -> None:
        """Adds a batch, an array of shape `(batch, units)`."""
        if self.count == 0:
            self.units = activity.shape[1]
            self._shift = activity.mean(axis=0, dtype="float64")
        self.count += len(activity)
        self._epsilon = max(self._epsilon, epsilon_of(activity.dtype.name))
        if self._covariance is None and self.count > self.units:
            require_memory([(self._name, self.units)])
            self._covariance = StreamingCovariance(self._computed_in)
            for batch in self._kept:
                self._covariance.update(batch + self._shift)
            self._kept = []
        if self._covariance is not None:
            self._covariance.update(activity)
        else:
            # A large mean would cost float32 its digits.
            self._kept.append((activity - self._shift).astype(activity.dtype))

    def eigenvalues(
        self, components: int | None = None, seed: int = 0
    ) -> tuple[NDArray[np.float64], float, float]:
        """The eigenvalues, largest first, their floor, and the sum of all of them."""
        if self._covariance is not None:
            floor = self._covariance.floor()
            sigma = self._covariance.covariance()
            total = float(np.trace(sigma))
            if components is not None and components < self.units:
                found = leading_eigenvalues([sigma], components, seed, symmetric=True)
                return found, floor, total
            return all_eigenvalues(sigma), floor, total
        sums = [batch.sum(axis=0, dtype="float64") for batch in self._kept]
        mean = np.sum(sums, axis=0) / self.count
        # In place, since there is no room for a second copy.
        for batch in self._kept:
            batch -= mean.astype(batch.dtype)
        squares = sum(
            np.einsum("mu,mu->u", batch, batch, dtype="float64") for batch in self._kept
        )
        largest = float(np.max((self._shift + mean) ** 2 + squares / self.count))
        self._shift = self._shift + mean
        floor = rounding_floor(self._epsilon, largest, self.units, self.count)
        total = float(np.sum(squares)) / (self.count - 1)
        if components is not None and components < self.count:
            found = leading_eigenvalues(self._kept, components, seed)
            return found / (self.count - 1), floor, total
        gram = gram_matrix(self._kept)
        found = np.zeros(self.units)
        found[: self.count] = all_eigenvalues(gram) / (self.count - 1)
        found[self.count - 1] = 0.0  # what centering has taken
        return found[:components], floor, total


def eigenvalues_of(
    samples: Any, components: int | None, seed: int
) -> tuple[NDArray[np.float64], float, float]:
    """Implements `Spectrum.from_samples()`."""
    validate_optional_integer("components", components, minimum=1)
    validate_integer("seed", seed, minimum=0)
    running = StreamingSpectrum()
    if hasattr(samples, "shape") and len(samples.shape) == 2:
        count, units = map(int, samples.shape)
        require_memory_for_samples([("samples", units)], count, components)
    for index, batch in enumerate(_batches(samples)):
        array = _real_array(batch, index)
        if running.count and array.shape[1] != running.units:
            raise invalid_value(
                "samples",
                f"batches of the same units, {running.units}",
                f"{array.shape[1]} units in batch {index}",
            )
        require_finite(array, "Invalid value for argument `samples`", "samples")
        running.update(array)
    if running.count < 2:
        raise invalid_value(
            "samples",
            "at least two samples, since fewer have no covariance",
            f"{running.count} sample(s)",
        )
    return running.eigenvalues(components, seed)


def gram_matrix(batches: Sequence[NDArray[np.floating]]) -> NDArray[np.float64]:
    """X Xᵀ of samples in batches, in float64, without a copy of them in float64."""
    count, units = sum(map(len, batches)), batches[0].shape[1]
    gram = np.zeros((count, count), order="F")
    # In slices of units, so that the copies stay small beside the matrix itself.
    width = max(256, 2**23 // count)
    for start in range(0, units, width):
        part = np.concatenate(
            [batch[:, start : start + width].astype("float64") for batch in batches]
        )
        # In place, as in `StreamingCovariance`.
        gram = scipy.linalg.blas.dsyrk(
            1.0, part, beta=1.0, c=gram, lower=True, overwrite_c=True
        )
    gram += np.tril(gram, -1).T
    return gram


def all_eigenvalues(sigma: NDArray[np.float64]) -> NDArray[np.float64]:
    """Eigenvalues of a covariance, largest first; its memory is overwritten."""
    ascending = scipy.linalg.eigh(sigma, eigvals_only=True, overwrite_a=True)
    # Rounding can leave eigenvalues of a singular covariance slightly below zero.
    eigenvalues: NDArray[np.float64] = np.maximum(ascending[::-1], 0.0)
    return eigenvalues


def _batches(samples: Any) -> Iterable[Any]:
    if hasattr(samples, "shape") or hasattr(samples, "__array__"):
        if not hasattr(samples, "shape"):
            samples = np.asarray(samples)
        if len(samples.shape) != 2:
            raise invalid_value(
                "samples",
                "an array of shape (samples, units), or an iterable of such batches",
                f"an array of shape {tuple(samples.shape)}",
            )
        return (samples[i : i + ROWS] for i in range(0, len(samples), ROWS))
    if not hasattr(samples, "__iter__") or isinstance(samples, str | dict):
        raise invalid_value(
            "samples", "an array or an iterable of batches", repr(samples)
        )
    batches: Iterable[Any] = samples
    return batches


def _real_array(batch: Any, index: int) -> NDArray[np.floating]:
    array = np.asarray(batch)
    if array.ndim != 2 or array.dtype.kind not in "fiub" or not array.shape[1]:
        raise invalid_value(
            "samples",
            "real numbers of shape (samples, units)",
            f"batch {index} of shape {array.shape} and dtype {array.dtype}",
        )
    return array if array.dtype in ("float32", "float64") else array.astype("float64")
