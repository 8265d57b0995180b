"""The covariance of the samples in a window and its eigendecomposition, in float32."""

from __future__ import annotations

import functools

import numpy as np
import scipy.linalg
from keras import ops
from numpy.typing import NDArray

from keras_powerlaw.arguments import Tensor
from keras_powerlaw.backends import is_on_host
from keras_powerlaw.penalty import covariance, projected_variances
from keras_powerlaw.spectral.renewal import Decomposition
from keras_powerlaw.spectrum import Degenerate, epsilon_of, rounding_floor

# In float32, an eigenvalue has an error of a few rounding errors of the largest one.
EIGENVALUE_ERRORS = 8


def decompose_samples(
    samples: Tensor, computed_in: str = "float32", on_host: bool | None = None
) -> Decomposition:
    """Decomposes the covariance of samples in float32, the precision of the penalty.

    Args:
        samples: Tensor of shape `(samples, units)`, float32.
        computed_in: Dtype in which a layer computed them. Defaults to `"float32"`.
        on_host: Whether to use LAPACK (`ssyrk`, `ssyevd`) on the host, or the backend's
            functions where the samples are. Defaults to `None`: where they are.

    Raises:
        Degenerate: If there is NaN or infinity in the samples.

    Reference:
        Nassar et al. (2020), eq. (3).
    """
    if not bool(ops.all(ops.isfinite(samples))):
        raise Degenerate("There is NaN or infinity in its activations.")
    if on_host is None:
        on_host = is_on_host(samples)
    decompose = _on_host if on_host else _on_device
    ascending, vectors, variances, largest = decompose(samples)
    # Rounding can leave eigenvalues of a singular covariance slightly below zero.
    eigenvalues = np.maximum(ascending[::-1], 0)
    count, units = samples.shape
    epsilon = max(epsilon_of(computed_in), epsilon_of("float32"))
    floor = max(
        rounding_floor(epsilon, largest, units, count),
        EIGENVALUE_ERRORS * epsilon_of("float32") * float(eigenvalues[0]),
    )
    along = functools.partial(projected_variances, samples)
    return Decomposition(eigenvalues, vectors, variances, floor, along)


# Both return the eigenvalues, smallest first, the eigenvectors, largest first, the
# variances of the units, and the largest mean square of one.


def _on_host(
    samples: Tensor,
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32], float]:
    array = np.asarray(ops.convert_to_numpy(samples))
    mean = array.mean(axis=0, dtype="float64").astype("float32")
    centered = array - mean
    # A view of its transpose is what BLAS reads without a copy.
    sigma = scipy.linalg.blas.ssyrk(1 / (len(array) - 1), centered.T, lower=True)
    del centered  # before LAPACK needs memory
    variances = sigma.diagonal().copy()  # LAPACK overwrites it
    largest = float(np.max(mean**2 + variances))
    ascending, vectors = scipy.linalg.eigh(
        sigma, driver="evd", overwrite_a=True, check_finite=False
    )
    return ascending, vectors[:, ::-1], variances, largest


def _on_device(
    samples: Tensor,
) -> tuple[NDArray[np.float32], Tensor, NDArray[np.float32], float]:
    mean, sigma = covariance(samples)
    variances = ops.diagonal(sigma)
    largest = float(ops.max(ops.square(mean) + variances))
    ascending, vectors = ops.linalg.eigh(sigma)
    ascending, variances = map(ops.convert_to_numpy, (ascending, variances))
    return ascending, ops.flip(vectors, axis=1), variances, largest
