"""The covariance of a whole data set, in float64, and its eigendecomposition."""

from __future__ import annotations

import numpy as np
import scipy.linalg
from numpy.typing import NDArray


class Degenerate(ValueError):
    """A layer's activations have no spectrum that could be penalized."""


class StreamingCovariance:
    """Mean and covariance of data that arrive in batches.

    Sums are accumulated in float64, relative to the first batch's mean, so that neither
    many batches nor a large mean costs the small eigenvalues their precision.
    """

    def __init__(self) -> None:
        self.count = 0

    def update(self, activity: NDArray[np.floating]) -> None:
        """Adds a batch, an array of shape `(batch, units)`."""
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
