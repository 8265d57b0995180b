"""The spectral penalty as pure functions of a batch of activations, eqs. (2) to (5).

They are written in `keras.ops` and are differentiable. Eigenvalue indices are 1-based,
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
        activity: Floating-point tensor of shape `(batch, units)`.

    Returns:
        The mean, of shape `(units,)`, and the covariance, `(units, units)`. The
        covariance of a single example is zero.
    """
    count = count_examples(activity)
    mean = sum_over_replicas(ops.sum(activity, axis=0)) / count
    centered = activity - mean
    gram = sum_over_replicas(ops.matmul(ops.transpose(centered), centered))
    return mean, gram / ops.maximum(count - 1, 1)


def projected_variances(activity: Tensor, basis: Tensor) -> Tensor:
    """Variances of a (global) batch of activations along fixed directions.

    λ̂ₙ = (Vᵀ Σ V)ₙₙ = 1/(B − 1) Σ_b (vₙ · (x_b − μ))²

    The covariance Σ is never formed. For orthonormal directions that do not depend on
    the batch, λ̂ₙ is an unbiased estimate of the variance along vₙ at any batch size.

    Args:
        activity: Floating-point tensor of shape `(batch, units)`.
        basis: Tensor of shape `(units, directions)`, one direction vₙ per column. The
            products with it are computed in its dtype.

    Returns:
        Tensor of shape `(directions,)`. The variances of a single example are zero.

    Reference:
        Nassar et al. (2020), eq. (5).
    """
    # Centered first, since a large mean would cost the small variances their precision.
    count = count_examples(activity)
    mean = sum_over_replicas(ops.sum(activity, axis=0)) / count
    replica = replica_context()
    if replica is not None:
        # The gradient through the mean is zero for the global batch, but not for one
        # replica's share of it.
        mean = ops.stop_gradient(mean)
    centered = ops.cast(activity - mean, standardize_dtype(basis.dtype))
    projections = ops.cast(ops.matmul(centered, basis), activity.dtype)
    squares = ops.sum(ops.square(projections), axis=0)
    if replica is not None:
        # Every replica computes the same penalty, and Keras divides it by the number of
        # replicas and adds up the gradients. So each replica only needs the gradient
        # for its own examples, times that number. This keeps collective operations out
        # of the backward pass, where TensorFlow does not fix their order if several
        # layers are regularized.
        local = squares - ops.stop_gradient(squares)
        total = sum_over_replicas(ops.stop_gradient(squares))
        squares = total + replica.num_replicas_in_sync * local
    return squares / ops.maximum(count - 1, 1)


def exact_variances(activity: Tensor) -> Tensor:
    """Eigenvalues of a batch's covariance, largest first.

    They are computed as the variances along the batch's own eigenvectors, held
    constant. Since ∂λₙ = vₙᵀ ∂Σ vₙ, both values and gradients are those of the
    eigenvalues, and they stay finite where eigenvalues coincide.

    Args:
        activity: Floating-point tensor of shape `(batch, units)`.

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
    anchor: Tensor | None = None,
) -> Tensor:
    """Distance of a spectrum from a power law.

    R = β/N Σ_{n=τ}^{N} [ (λₙ/γₙ − 1)² + max(0, λₙ/γₙ − 1) ],
    γₙ = κ n^(−α),  κ constant and such that γ_τ = λ_τ

    The gradient of these terms vanishes as λₙ approaches zero. That of the log-ratio
    form does not:

    R = β/N Σ_{n=τ}^{N} (log λₙ/γₙ)²,  log κ = mean of log λₙ n^α, n = τ … 4τ

    Its κ, a mean over several eigenvalues, is less noisy in small batches. In eq. (2),
    such a κ would decrease without bound: every eigenvalue there settles below its
    target, and would pull κ down with it.

    Args:
        tail: Tensor of shape `(N − tau + 1,)`: the eigenvalues λ_τ … λ_N.
        alpha: Exponent α of the target. Defaults to 1.
        tau: 1-based index of the first eigenvalue in `tail`. Defaults to 10.
        beta: Strength β. Defaults to 1.
        log_ratio: Whether to use the log-ratio form, in which eigenvalues below 1e-7
            (the resolution of float32) times the power law through λ_τ are raised to
            that. Defaults to `False`.
        anchor: The variance γ_τ through which the target passes, a scalar. Defaults to
            `None`: λ_τ.

    Returns:
        A scalar. It is zero where λ_τ is zero (a batch of one example, or constant
        activations), since there is no target without an anchor.

    Reference:
        Nassar et al. (2020), eq. (2).
    """
    width = tau - 1 + tail.shape[0]
    decay = (np.arange(tau, width + 1) / tau) ** -float(alpha)
    # `not_equal`, so that NaN propagates and does not count as a missing anchor.
    has_target = ops.not_equal(tail[0], 0)
    anchor = ops.stop_gradient(tail[0] if anchor is None else anchor)
    target = ops.where(has_target, anchor, 1) * ops.cast(decay, tail.dtype)
    ratio = tail / target
    if log_ratio:
        logs = ops.log(ops.maximum(ratio, 1e-7))
        terms = ops.square(logs - ops.stop_gradient(ops.mean(logs[: 3 * tau + 1])))
    else:
        terms = ops.square(ratio - 1) + ops.relu(ratio - 1)
    total = ops.sum(terms)
    return ops.where(has_target, total * (beta / width), 0)
