"""The largest eigenvalues of a matrix that is too large for all of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

# A block is this share of the eigenvalues that are asked for.
SHARE_OF_A_BLOCK = 0.5
# The method stops when a block more changes none of them by more than this.
TOLERANCE = 1e-3


def leading_eigenvalues(
    parts: Sequence[NDArray[np.floating]],
    count: int,
    seed: int = 0,
    symmetric: bool = False,
    tolerance: float = TOLERANCE,
) -> NDArray[np.float64]:
    """The `count` largest eigenvalues of X Xᵀ, by randomized block Lanczos.

    The space that a random block Ω spans with (X Xᵀ)Ω, (X Xᵀ)²Ω, … grows by a block at
    a time, all of it orthogonalized, until its Ritz values, which approach the
    eigenvalues from below, have settled. Unlike ARPACK, which SciPy's `eigsh` and
    `svds` use, it multiplies blocks: one reading of X for hundreds of vectors.

    Args:
        parts: The rows of X, in arrays of shape `(rows, units)`.
        count: Number of eigenvalues, less than the number of rows.
        seed: Seed of Ω. Defaults to 0.
        symmetric: Whether X is symmetric and its own eigenvalues are meant, not those
            of X Xᵀ. Defaults to False.
        tolerance: Relative change at which a Ritz value has settled.

    Returns:
        Array of shape `(count,)`, largest first.

    Reference:
        Musco and Musco (2015), *Randomized block Krylov methods for stronger and faster
        approximate singular value decomposition*, algorithm 2.
    """
    rows = sum(map(len, parts))
    dtype = parts[0].dtype
    width = min(rows, max(8, int(SHARE_OF_A_BLOCK * count)))
    image = np.random.default_rng(seed).normal(size=(rows, width)).astype(dtype)
    basis = images = np.zeros((rows, 0), dtype)
    found = np.zeros(count)
    while True:
        block = _new_directions(image, basis, images)
        if not block.shape[1]:  # X Xᵀ leads nowhere else: the rest of it is zero
            return found
        image = _multiply(parts, block, symmetric)
        basis, images = np.hstack([basis, block]), np.hstack([images, image])
        projected = np.asarray(basis.T @ images, "float64")
        ritz = scipy.linalg.eigh((projected + projected.T) / 2, eigvals_only=True)
        previous, found = found, np.zeros(count)
        leading = np.maximum(ritz[::-1][:count], 0.0)
        found[: len(leading)] = leading
        if np.all(found - previous <= tolerance * found) and found[-1] > 0:
            return found


def _multiply(
    parts: Sequence[NDArray[np.floating]],
    block: NDArray[np.floating],
    symmetric: bool,
) -> NDArray[np.floating]:
    if symmetric:
        return np.concatenate([part @ block for part in parts])
    ends = np.cumsum([len(part) for part in parts])[:-1]
    pieces = np.split(block, ends)
    transposed = sum(part.T @ piece for part, piece in zip(parts, pieces, strict=True))
    return np.concatenate([part @ transposed for part in parts])


def _new_directions(
    block: NDArray[np.floating],
    basis: NDArray[np.floating],
    images: NDArray[np.floating],
) -> NDArray[np.floating]:
    """An orthonormal basis of what a block adds to the basis that there is.

    Args:
        block: Array of shape `(rows, columns)`.
        basis: Array of shape `(rows, directions)`, orthonormal.
        images: That of the basis, for its scale: less is rounding.
    """
    scale = max(float(np.linalg.norm(each)) for each in (block, images))
    least = 100 * np.finfo(block.dtype).eps * scale
    block = block - basis @ (basis.T @ block)
    block, triangle, _ = scipy.linalg.qr(
        block, mode="economic", pivoting=True, check_finite=False
    )
    room = basis.shape[0] - basis.shape[1]
    block = block[:, : min(room, int(np.sum(np.abs(np.diag(triangle)) > least)))]
    # Once more, since the first time leaves rounding errors.
    block = block - basis @ (basis.T @ block)
    new: NDArray[np.floating] = scipy.linalg.qr(
        block, mode="economic", check_finite=False
    )[0]
    return new
