"""A basis that is turned by products alone, where an eigendecomposition is slow.

Of S = VᵀΣV, what is off the diagonal says which way to turn the directions V:

    A = S ∘ G / (G² + s² d dᵀ),   d = diag(S),  G_ij = d_j − d_i

of a spectral norm of at most 0.7, and V ← V (I + A)(I + AᵀA)^(−1/2) by its series. A
step of Newton and Schulz keeps V orthonormal.
"""

from keras import ops

SOFTENING = 0.3  # s
LARGEST_TURN = 0.7


def turned(basis, sigma):
    """Directions that are nearer to the eigenvectors of a covariance.

    Args:
        basis: Tensor of shape `(units, units)`, orthonormal columns.
        sigma: The covariance, `(units, units)`.
    """
    projected = ops.transpose(basis) @ (sigma @ basis)
    variances = ops.maximum(ops.diagonal(projected), 1e-12)
    gap = variances[None, :] - variances[:, None]
    scale = variances[None, :] * variances[:, None]
    turn = projected * gap / (ops.square(gap) + SOFTENING**2 * scale)
    turn = turn * ops.minimum(1.0, LARGEST_TURN / spectral_norm(turn))
    identity = ops.eye(turn.shape[0])
    square = ops.transpose(turn) @ turn
    # (I + AᵀA)^(−1/2) to the second order.
    inverse_root = identity - 0.5 * square + 0.375 * (square @ square)
    basis = basis @ ((identity + turn) @ inverse_root)
    return basis @ (1.5 * identity - 0.5 * (ops.transpose(basis) @ basis))


def spectral_norm(matrix, steps=8):
    """The largest singular value, by power iteration."""
    vector = ops.ones((matrix.shape[1], 1))
    for _ in range(steps):
        vector = ops.transpose(matrix) @ (matrix @ vector)
        vector = vector / ops.norm(vector)
    return ops.norm(matrix @ vector)
