"""The spectral penalty, eqs. (2) to (5): pure functions of activations.

These are written in `keras.ops` and are differentiable. Eigenvalue indices are 1-based,
as in the paper.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from keras import ops
from keras.backend import standardize_dtype
from numpy.typing import NDArray

from keras_powerlaw.arguments import Form, Tensor
from keras_powerlaw.backends import replica_context
from keras_powerlaw.targets import Target, relative_levels
from keras_powerlaw.units import count_examples, sum_over_replicas

# Of an eigenvalue to its target: below the resolution of float32.
SMALLEST_RATIO = 1e-7
# In a batch of fewer samples, λ_τ is too noisy a target; docs/theory.md derives it.
FEWEST_FOR_ANCHOR = 16
# What the gradient of the default form may be, of a task's that is about 5, …
BOUND = 3.0
# … after so many steps. In the first ones, a penalty keeps a network from learning.
STEPS_TO_BOUND = 200
# A step uses a part of the directions where each of at most so many parts has at least
# so many: docs/cost.md has what they save and cost.
MOST_GROUPS = 8
DIRECTIONS_PER_GROUP = 125


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
    # Not `ops.matmul`: on PyTorch, Keras's product of float64 is float32.
    gram = sum_over_replicas(ops.transpose(centered) @ centered)
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


def spectral_penalty(
    tail: Tensor,
    target: float | Target = 1.0,
    tau: int = 10,
    beta: float = 1.0,
    form: Form = "nearest",
    anchor: Tensor | None = None,
) -> Tensor:
    """Distance of a spectrum from a target γₙ = κ tₙ, in one of three forms.

    R = β/N Σ_{n=τ}^{N} dₙ, in which κ is a constant for the gradient, and tₙ are the
    levels of the target, n^(−α) for a power law:

    - `"nearest"`: dₙ = (λₙ/γₙ − 1)², and κ makes R smallest:
      κ = Σ (λₙ/tₙ)² / Σ λₙ/tₙ, both n = τ … N.
    - `"paper"`: dₙ = (λₙ/γₙ − 1)² + max(0, λₙ/γₙ − 1), and γ_τ = λ_τ, eq. (2).
    - `"log"`: dₙ = (log λₙ/γₙ)², and log κ = mean of log λₙ/tₙ, n = τ … 4τ.

    Near the target, all three squares are (λₙ/γₙ − 1)². Far below it, the gradient with
    respect to a unit's activations grows without bound in the logarithm, and vanishes
    in the others. docs/theory.md compares them.

    Args:
        tail: Tensor of shape `(N − tau + 1,)`: the eigenvalues λ_τ … λ_N.
        target: The target, or the exponent α of a power law. Defaults to 1.
        tau: 1-based index of the first eigenvalue in `tail`. Defaults to 10.
        beta: Strength β. Defaults to 1.
        form: `"nearest"`, `"paper"` or `"log"`. In the last, eigenvalues below 1e-7
            (the resolution of float32) of their targets are raised to that. Defaults to
            `"nearest"`.
        anchor: With `"paper"`, the variance γ_τ through which the target passes, a
            scalar. Defaults to `None`: λ_τ.

    Returns:
        A scalar. It is zero where there is no target: where λ_τ is zero, or, with
        `"nearest"`, all eigenvalues are (a batch of one example, or constant
        activations).

    Reference:
        Nassar et al. (2020), eq. (2).
    """
    width = tau - 1 + tail.shape[0]
    decay = ops.cast(relative_levels(target, tau, width), tail.dtype)
    return (beta / width) * spectral_distance(tail, decay, 1.0, tau, form, anchor)


def spectral_distance(
    variances: Tensor,
    decay: Tensor,
    weights: Any,
    tau: int,
    form: Form,
    anchor: Tensor | None = None,
    bound: Tensor | None = None,
) -> Tensor:
    """Σₙ wₙ dₙ over some directions, whose dₙ are those of `spectral_penalty()`.

    Args:
        variances: Tensor of shape `(directions,)`: λₙ. The first are λ_τ, with
            `form="paper"`, or λ_τ … λ_4τ, with `"log"`.
        decay: Tensor of the same shape: tₙ/t_τ.
        weights: How many directions each of them stands for, a number or a tensor.
        tau: Index τ.
        form: As for `spectral_penalty()`.
        anchor: Likewise.
        bound: With `"nearest"`, what √(Σₙ wₙ λₙ (∂dₙ/∂λₙ)²), which is in proportion to
            the gradient with respect to the activations, may be. The gradient is scaled
            down to it; the value stays. Defaults to `None`: anything.

    Returns:
        A scalar.
    """
    known = ops.sum(variances) if form == "nearest" else variances[0]
    # `not_equal`, so that NaN propagates and does not count as a missing target.
    has_target = ops.not_equal(known, 0)
    variances = ops.where(has_target, variances, decay)
    levels = variances / decay
    if form == "paper":
        level = levels[0] if anchor is None else ops.where(has_target, anchor, 1)
    elif form == "log":
        band = levels[: 3 * tau + 1]
        level = ops.exp(ops.mean(ops.log(ops.maximum(band, SMALLEST_RATIO * band[0]))))
    else:
        shares = weights * ops.ones_like(levels)
        shares = shares / ops.sum(shares)
        mean = ops.sum(shares * levels)
        level = mean * ops.sum(shares * ops.square(levels / mean))  # at any scale
    # Exactly 1 where λ_τ is the anchor, at the kink of eq. (2).
    gammas = ops.stop_gradient(level) * decay
    ratios = variances / gammas
    if form == "log":
        terms = ops.square(ops.log(ops.maximum(ratios, SMALLEST_RATIO)))
    else:
        terms = ops.square(ratios - 1)
    if form == "paper":
        terms = terms + ops.relu(ratios - 1)
    distance = ops.sum(weights * terms)
    if bound is not None:
        slopes = ops.stop_gradient(2 * (ratios - 1) / gammas)
        size = ops.sqrt(ops.sum(weights * ops.square(slopes) * variances))
        yields = ops.stop_gradient(bound / ops.maximum(size, bound))
        distance = yields * distance + ops.stop_gradient((1 - yields) * distance)
    return ops.where(has_target, distance, 0)


def direction_groups(count: int, always: int) -> tuple[int, NDArray[np.int64]]:
    """Parts of the directions n = τ … N that take turns, a step each.

    The sum of the penalty over one part, in which the directions that take turns count
    as often as there are parts, is an unbiased estimate of the whole sum.

    Args:
        count: Number of directions.
        always: Number of the first directions that are in every part.

    Returns:
        How many directions are in every part, `always` or a few more, and the others:
        their 0-based indices, one part per row, every part evenly spread.
    """
    groups = min(MOST_GROUPS, (count - always) // DIRECTIONS_PER_GROUP)
    if groups < 2:
        return 0, np.arange(count)[np.newaxis]
    always += (count - always) % groups
    return always, np.arange(always, count).reshape(-1, groups).T


def gradient_bound(activity: Tensor, beta: float, step: Tensor) -> Tensor:
    """The bound of `spectral_distance()` with which a penalty yields to the task.

    The gradient of the penalty R with respect to a batch of activations A, B × N, of
    mean μ, is then at most

        ‖∂R/∂A‖ ≤ s/‖A − μ‖,  s = 3 min(1, t/200)

    in the Frobenius norm, in step t of training. That of a task's loss is about
    5/‖A − μ‖, whatever the layer and its width, once the network has begun to learn;
    docs/theory.md has figures.

    Args:
        activity: Floating-point tensor of shape `(batch, units)`.
        beta: Strength β.
        step: The number t of this step, 1 at first.

    Returns:
        A scalar: s N √(B − 1)/(2β ‖A − μ‖).
    """
    activity = ops.stop_gradient(activity)
    count = count_examples(activity)
    mean = sum_over_replicas(ops.sum(activity, axis=0)) / count
    squares = sum_over_replicas(ops.sum(ops.square(activity - mean)))
    share = ops.minimum(1.0, ops.cast(step, activity.dtype) / STEPS_TO_BOUND)
    scale = ops.sqrt(ops.maximum(count - 1, 1) / ops.maximum(squares, 1e-30))
    return BOUND * share * activity.shape[1] / (2 * beta) * scale


def steady_anchor(tail: Tensor, share: Tensor, count: Tensor) -> Tensor:
    """γ_τ of eq. (2) for a batch: λ_τ, or in a batch of few samples an estimate of it.

    The mean of the inverse square of λ̂_τ is infinite for up to five samples.

    Args:
        tail: The estimates λ̂_τ … λ̂_N, or, of a part of them, each times the number of
            directions that it stands for.
        share: λ_τ / (λ_τ + … + λ_N) at the last refresh; zero if it is unknown.
        count: The number of samples.

    Returns:
        A scalar.
    """
    steady = ops.convert_to_tensor(share) * ops.sum(tail)
    is_noise = ops.logical_and(count < FEWEST_FOR_ANCHOR, ops.not_equal(steady, 0))
    return ops.where(is_noise, steady, tail[0])
