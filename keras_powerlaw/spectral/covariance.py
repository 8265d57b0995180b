"""The covariance of a whole data set, in float64, and its eigendecomposition."""

from __future__ import annotations

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

# Distance from 1 to the next larger number. NumPy does not know bfloat16.
_EPSILON = {"bfloat16": 2.0**-7, "float16": 2.0**-10, "float32": 2.0**-23}


class Degenerate(ValueError):
    """A layer's activations have no spectrum that could be penalized."""


class StreamingCovariance:
    """Mean and covariance of data that arrive in batches.

    Sums are accumulated in float64, relative to the first batch's mean, so that neither
    many batches nor a large mean costs the small eigenvalues their precision.

    Args:
        computed_in: Dtype in which the data were computed, where it is less precise
            than that of the arrays. Defaults to `"float64"`.
    """

    def __init__(self, computed_in: str = "float64") -> None:
        self.count = 0
        self._epsilon = epsilon_of(computed_in)

    def update(self, activity: NDArray[np.floating]) -> None:
        """Adds a batch, an array of shape `(batch, units)`."""
        self._epsilon = max(self._epsilon, epsilon_of(activity.dtype.name))
        if self.count == 0:
            self.units = activity.shape[1]
            self._shift = activity.mean(axis=0, dtype="float64")
            self._sum = np.zeros(self.units)
            self._gram = np.zeros((self.units, self.units), order="F")
        # In chunks, since a batch of feature maps is large in float64.
        rows = max(1024, 2**22 // self.units)
        for start in range(0, len(activity), rows):
            centered = activity[start : start + rows] - self._shift
            self._sum += centered.sum(axis=0)
            # Added to the lower triangle in place: a separate product would need a
            # second matrix of that size, and be mirrored.
            self._gram = scipy.linalg.blas.dsyrk(
                1.0, centered.T, beta=1.0, c=self._gram, lower=True, overwrite_c=True
            )
        self.count += len(activity)

    def mean(self) -> NDArray[np.float64]:
        """The mean of everything added so far, shape `(units,)`."""
        mean: NDArray[np.float64] = self._shift + self._sum / self.count
        return mean

    def covariance(self) -> NDArray[np.float64]:
        """The sample covariance (divisor M − 1) of everything added so far."""
        mean = self._sum / self.count
        gram = self._gram + np.tril(self._gram, -1).T
        return (gram - self.count * np.outer(mean, mean)) / (self.count - 1)

    def floor(self) -> float:
        """The variance that rounding of the data adds to a direction, at most."""
        mean = self._sum / self.count
        variance = np.diag(self._gram) / self.count - mean**2
        largest = np.max((self._shift + mean) ** 2 + np.maximum(variance, 0.0))
        return rounding_floor(self._epsilon, largest, self.units, self.count)


def rounding_floor(epsilon: float, largest: float, units: int, count: int) -> float:
    """The variance that rounding of activations adds to a direction, at most.

    ((8ε₃₂)² + ε²) · maxᵤ E[xᵤ²] · (1 + √(units/count))², with ε₃₂ that of the sums
    within a layer, float32 or better; derived under "What is rounding" in
    docs/theory.md.

    Args:
        epsilon: The ε of the dtype in which the activations were computed.
        largest: maxᵤ E[xᵤ²], the largest mean square of a unit.
        units: Number of units.
        count: Number of samples.
    """
    accumulated = 8 * min(epsilon, _EPSILON["float32"])
    spread = (1 + np.sqrt(units / count)) ** 2
    return float((accumulated**2 + epsilon**2) * largest * spread)


def epsilon_of(dtype: str) -> float:
    """The distance from 1 to the next larger number."""
    return _EPSILON.get(dtype, float(np.finfo("float64").eps))


def eigendecomposition(
    sigma: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Eigenvalues, largest first, and eigenvectors (columns) of a covariance.

    Runs in LAPACK (`syevd`), outside any compiled program.

    Reference:
        Nassar et al. (2020), eq. (3).
    """
    ascending, vectors = scipy.linalg.eigh(sigma, driver="evd")
    # Rounding can leave eigenvalues of a singular covariance slightly below zero.
    return np.maximum(ascending[::-1], 0.0), vectors[:, ::-1]


def variances_along(
    sigma: NDArray[np.floating], basis: NDArray[np.floating]
) -> NDArray[np.float32]:
    """Variances along fixed directions, from a covariance: the diagonal of VᵀΣV.

    Args:
        sigma: Array of shape `(units, units)`.
        basis: Array of shape `(units, directions)`, one direction vₙ per column.

    Returns:
        Array of shape `(directions,)`, float32, the precision of the penalty.

    Reference:
        Nassar et al. (2020), eq. (5).
    """
    basis = np.asarray(basis, "float32")
    variances: NDArray[np.float32] = np.einsum(
        "un,un->n", basis, np.asarray(sigma, "float32") @ basis
    )
    return variances
