"""The spectral penalty as pure functions of a batch of activations, eqs. (2) to (5).

They are written on `keras.ops` and are differentiable. Eigenvalue indices are 1-based,
as in the paper.
"""

from __future__ import annotations

import numpy as np
from keras import ops
from keras.backend import standardize_dtype

from keras_powerlaw.support.replicas import (
    count_examples,
    replica_context,
    sum_over_replicas,
)
from keras_powerlaw.support.types import Tensor


def covariance(activity: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and sample covariance of a (global) batch of activations.

    Σ = 1/(B − 1) Σ_b (x_b − μ)(x_b − μ)ᵀ

    Args:
        activity: Floating tensor of shape `(batch, units)`.

    Returns:
        The mean, of shape `(units,)`, and the covariance, `(units, units)`. The
        covariance of a single example is zero.
    """
    count = count_examples(activity)
    mean = sum_over_replicas(ops.sum(activity, axis=0)) / count
    centred = activity - mean
    gram = sum_over_replicas(ops.matmul(ops.transpose(centred), centred))
    return mean, gram / ops.maximum(count - 1, 1)


def projected_variances(activity: Tensor, basis: Tensor) -> Tensor:
    """Variances of a (global) batch of activations along fixed directions.

    λ̂ₙ = (Vᵀ Σ V)ₙₙ = 1/(B − 1) Σ_b (vₙ · (x_b − μ))²

    The covariance Σ is never formed. For orthonormal directions that do not depend on
    the batch, λ̂ₙ is an unbiased estimate of the variance along vₙ whatever the batch
    size.

    Args:
        activity: Floating tensor of shape `(batch, units)`.
        basis: Tensor of shape `(units, directions)`, one direction vₙ per column. The
            products with it are computed in its dtype.

    Returns:
        Tensor of shape `(directions,)`. The variances of a single example are zero.

    Reference:
        Nassar et al. (2020), eq. (5).
    """
    # Centred first: a large mean would eat the digits of the small variances.
    count = count_examples(activity)
    mean = sum_over_replicas(ops.sum(activity, axis=0)) / count
    replica = replica_context()
    if replica is not None:
        # The gradient for the mean is zero in the global batch, not in a replica's.
        mean = ops.stop_gradient(mean)
    centred = ops.cast(activity - mean, standardize_dtype(basis.dtype))
    projections = ops.cast(ops.matmul(centred, basis), activity.dtype)
    squares = ops.sum(ops.square(projections), axis=0)
    if replica is not None:
        # Every replica has the same penalty, and Keras adds up their gradients of
        # 1/replicas of it. So each hands on the gradient for its own examples, and
        # the backward pass does without collective operations, whose order TensorFlow
        # does not fix where several layers are regularized.
        local = squares - ops.stop_gradient(squares)
        total = sum_over_replicas(ops.stop_gradient(squares))
        squares = total + replica.num_replicas_in_sync * local
    return squares / ops.maximum(count - 1, 1)


def exact_variances(activity: Tensor) -> Tensor:
    """Eigenvalues of a batch's covariance, largest first.

    They are computed as the variances along the batch's own eigenvectors, held
    constant. Since ∂λₙ = vₙᵀ ∂Σ vₙ, value and gradient are those of the
    eigenvalues, and stay finite where eigenvalues coincide.

    Args:
        activity: Floating tensor of shape `(batch, units)`.

    Returns:
        Tensor of shape `(units,)`.

    Reference:
        Nassar et al. (2020), eqs. (3) and (4).
    """
    _, sigma = covariance(ops.stop_gradient(activity))
    _, ascending = ops.linalg.eigh(sigma)
    return projected_variances(activity, ops.flip(ascending, axis=1))


def power_law_penalty(
    tail: Tensor,
    alpha: float = 1.0,
    tau: int = 10,
    beta: float = 1.0,
    log_ratio: bool = False,
) -> Tensor:
    """Distance of a spectrum from a power law.

    R = β/N Σ_{n=τ}^{N} [ (λₙ/γₙ − 1)² + max(0, λₙ/γₙ − 1) ],
    γₙ = κ n^(−α),  κ constant and such that γ_τ = λ_τ

    The gradient of these terms vanishes with λₙ. That of their alternative does not:

    R = β/N Σ_{n=τ}^{N} (log λₙ/γₙ)²,  log κ = mean of log λₙ n^α, n = τ … 4τ

    Its κ, from several eigenvalues, has less noise in a small batch. In eq. (2) such a
    κ would sink without end: there, every eigenvalue comes to rest below its target.

    Args:
        tail: Tensor of shape `(N − tau + 1,)`: the eigenvalues λ_τ … λ_N.
        alpha: Exponent α of the target.
        tau: 1-based index of the first eigenvalue given.
        beta: Strength β.
        log_ratio: Whether to take the alternative. There, λₙ below 1e-7 times the power
            law through λ_τ, the resolution of float32, counts as that.

    Returns:
        A scalar. It is zero where λ_τ is zero (a batch of one example, activations
        that do not vary): without an anchor there is no target.

    Reference:
        Nassar et al. (2020), eq. (2).
    """
    width = tau - 1 + tail.shape[0]
    decay = (np.arange(tau, width + 1) / tau) ** -float(alpha)
    anchor = ops.stop_gradient(tail[0])
    # `not_equal`, so that a NaN is passed on and not taken for a missing anchor.
    has_target = ops.not_equal(anchor, 0)
    target = ops.where(has_target, anchor, 1) * ops.cast(decay, tail.dtype)
    ratio = tail / target
    if log_ratio:
        logs = ops.log(ops.maximum(ratio, 1e-7))
        terms = ops.square(logs - ops.stop_gradient(ops.mean(logs[: 3 * tau + 1])))
    else:
        terms = ops.square(ratio - 1) + ops.relu(ratio - 1)
    total = ops.sum(terms)
    return ops.where(has_target, total * (beta / width), 0)
