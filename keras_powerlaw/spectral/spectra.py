"""Covariance spectra: the mathematics of the package as pure functions.

Everything here is a function of arrays. The functions used inside a training step
are written on `keras.ops` and are differentiable; those that describe a finished
measurement use NumPy in float64. Eigenvalue indices are 1-based, as in the paper.
"""

from __future__ import annotations

import dataclasses
import math
from functools import cached_property

import keras
import numpy as np
import scipy.linalg
import scipy.stats
from keras import ops
from keras.backend import standardize_dtype

from keras_powerlaw.support.arguments import invalid_value
from keras_powerlaw.support.replicas import replica_context, sum_over_replicas

# --- inside a training step ----------------------------------------------------------


def covariance(activity):
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


def projected_variances(activity, basis):
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


def exact_variances(activity):
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


def power_law_penalty(tail, alpha=1.0, tau=10, beta=1.0, log_ratio=False):
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


REDUCTIONS = ("flatten", "channels", "mean")


def to_samples(activity, reduction="flatten"):
    """Activations as samples of units.

    Args:
        activity: Tensor of shape `(batch, …)`, with P positions of C channels each if
            it has more than two dimensions; see `channel_axis()`.
        reduction: `"flatten"`: every channel at every position is a unit.
            `"channels"`: the channels are the units, and every position of every
            example is a sample. `"mean"`: the channels are the units, and an example's
            mean over its positions is a sample.

    Returns:
        Tensor of shape `(batch, P · C)`, `(batch · P, C)` or `(batch, C)`.
    """
    units = count_units(activity.shape, reduction)
    if units is None:
        raise invalid_value(
            "activity",
            f"a number of units that is known (with reduction='{reduction}')",
            f"an activity of shape {tuple(activity.shape)}",
        )
    if reduction != "flatten" and len(activity.shape) > 2:
        channels = channel_axis(len(activity.shape))
        if reduction == "mean":
            positions = set(range(1, len(activity.shape))) - {channels}
            return ops.mean(activity, axis=tuple(sorted(positions)))
        activity = ops.moveaxis(activity, channels, -1)
    return ops.reshape(activity, (-1, units))


def count_units(shape, reduction="flatten"):
    """The number of units of activations of some shape; None if it is not fixed."""
    if reduction == "flatten" or len(shape) < 2:
        return None if None in shape[1:] else math.prod(shape[1:])
    return shape[channel_axis(len(shape))]


def channel_axis(rank):
    """Where the channels of an activity with `rank` dimensions are.

    The last axis; of images, volumes and anything else with more than three dimensions
    it is axis 1 where `keras.config.image_data_format()` is `"channels_first"`.
    """
    first = rank > 3 and keras.config.image_data_format() == "channels_first"
    return 1 if first else rank - 1


def check_reduction(reduction):
    """Raises a `ValueError` if there is no such reduction."""
    if not isinstance(reduction, str) or reduction not in REDUCTIONS:
        raise invalid_value(
            "reduction", "'flatten', 'channels' or 'mean'", repr(reduction)
        )


def count_examples(activity):
    """The number of examples in the global batch, in the dtype of `activity`."""
    count = ops.cast(ops.shape(activity)[0], activity.dtype)
    return ops.stop_gradient(sum_over_replicas(count))


# --- over a whole data set -----------------------------------------------------------


class StreamingCovariance:
    """Mean and covariance of data that arrive in batches.

    Sums are kept in float64 around the first batch's mean, so that neither the number
    of batches nor a large mean costs the small eigenvalues their digits.
    """

    def __init__(self):
        self.count = 0

    def update(self, activity):
        """Adds a batch, an array of shape `(batch, units)`."""
        if self.count == 0:
            self.units = activity.shape[1]
            self._shift = activity.mean(axis=0, dtype="float64")
            self._sum = np.zeros(self.units)
            self._gram = np.zeros((self.units, self.units), order="F")
        # In pieces: in float64, a batch of feature maps is large.
        rows = max(1024, 2**22 // self.units)
        for start in range(0, len(activity), rows):
            centred = activity[start : start + rows] - self._shift
            self._sum += centred.sum(axis=0)
            # Added to the lower triangle, in place: as a product of its own, it would
            # be mirrored, and a second matrix of that size.
            self._gram = scipy.linalg.blas.dsyrk(
                1.0, centred.T, beta=1.0, c=self._gram, lower=True, overwrite_c=True
            )
        self.count += len(activity)

    def mean(self):
        """The mean of everything added so far, shape `(units,)`."""
        return self._shift + self._sum / self.count

    def covariance(self):
        """The sample covariance (divisor M − 1) of everything added so far."""
        mean = self._sum / self.count
        gram = self._gram + np.tril(self._gram, -1).T
        return (gram - self.count * np.outer(mean, mean)) / (self.count - 1)


def eigendecomposition(sigma):
    """Eigenvalues, largest first, and eigenvectors (columns) of a covariance.

    Runs in LAPACK (`syevd`), outside of any compiled program.

    Reference:
        Nassar et al. (2020), eq. (3).
    """
    ascending, vectors = scipy.linalg.eigh(sigma, driver="evd")
    # Rounding leaves eigenvalues of a singular covariance slightly below zero.
    return np.maximum(ascending[::-1], 0.0), vectors[:, ::-1]


def variances_along(sigma, basis):
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
    return np.einsum("un,un->n", basis, np.asarray(sigma, "float32") @ basis)


@dataclasses.dataclass(frozen=True)
class Spectrum:
    """A covariance spectrum and the figures that describe it.

    Args:
        eigenvalues: Array of shape `(units,)`, variances, largest first.
        fit_range: `(first, last)`, 1-based and inclusive: the eigenvalues that the
            exponent is fitted to. Defaults to `(11, 500)` (Stringer et al. 2019), cut
            at the last eigenvalue that is not numerically zero.

    Example:

    ```python
    import numpy as np
    import keras_powerlaw as kp

    spectrum = kp.Spectrum(3.0 / np.arange(1, 1001))
    print(spectrum.exponent)  # 1.0
    print(spectrum.dimension_90)  # 473
    ```
    """

    eigenvalues: np.ndarray
    fit_range: tuple[int, int] | None = None

    def __post_init__(self):
        eigenvalues = np.asarray(self.eigenvalues, dtype="float64")
        if (
            eigenvalues.ndim != 1
            or not eigenvalues.size
            or not np.all(np.isfinite(eigenvalues))
            or np.any(eigenvalues < 0)
            or np.any(np.diff(eigenvalues) > 0)
        ):
            raise invalid_value(
                "eigenvalues",
                "a 1D array of at least one finite variance, none negative, largest "
                "first",
                self.eigenvalues,
            )
        object.__setattr__(self, "eigenvalues", eigenvalues)
        object.__setattr__(self, "fit_range", self._checked_fit_range())

    def _checked_fit_range(self):
        if self.fit_range is None:
            return (11, max(11, min(500, self.rank)))
        try:
            first, last = (int(n) for n in self.fit_range)
            valid = (first, last) == tuple(self.fit_range)
        except (TypeError, ValueError):
            valid = False
        if not valid or not 1 <= first < last <= len(self.eigenvalues):
            raise invalid_value(
                "fit_range",
                f"two integers 1 <= first < last <= {len(self.eigenvalues)} (the "
                "layer's width)",
                self.fit_range,
            )
        return (first, last)

    @property
    def rank(self) -> int:
        """Number of eigenvalues that are not numerically zero."""
        floor = self.eigenvalues[0] * len(self.eigenvalues) * np.finfo("float64").eps
        return int(np.sum(self.eigenvalues > floor))

    @property
    def exponent(self) -> float:
        """α of the power law n^(−α) fitted to `fit_range`.

        Least squares of log λₙ on log n with weights 1/n, so that every octave of n
        counts the same (Stringer et al. 2019). NaN if fewer than three eigenvalues
        of the range are above zero.
        """
        return self._fit[0]

    @property
    def exponent_interval(self) -> tuple[float, float]:
        """95 % interval of `exponent`.

        From a jackknife over up to ten blocks of `fit_range`, equally long in log n:
        it says how far the exponent depends on which part of the range is looked at.
        It is narrow where the spectrum is a straight line on log-log axes, and wide
        where it bends, however many examples were measured.
        """
        return self._fit[1]

    @cached_property
    def _fit(self):
        return fit_power_law(self.eigenvalues, *self.fit_range)

    @property
    def dimension_90(self) -> int:
        """Number of leading eigenvalues that hold 90 % of the variance."""
        cumulative = np.cumsum(self.eigenvalues)
        return int(np.searchsorted(cumulative, 0.9 * cumulative[-1]) + 1)

    @property
    def participation_ratio(self) -> float:
        """Effective dimension (Σ λₙ)² / Σ λₙ²."""
        squares = np.sum(self.eigenvalues**2)
        return float(np.sum(self.eigenvalues) ** 2 / squares) if squares else 0.0


def fit_power_law(eigenvalues, first, last, blocks=10):
    """Exponent of the power law through eigenvalues `first` … `last` (1-based).

    Returns:
        The exponent and its 95 % interval; see `Spectrum` for both definitions.
    """
    n = np.arange(first, last + 1)
    selected = eigenvalues[first - 1 : last]
    positive = selected > 0
    n, selected = n[positive], selected[positive]
    if len(n) < 3:
        return float("nan"), (float("nan"), float("nan"))
    log_n, log_variance, weights = np.log(n), np.log(selected), n**-0.5

    def exponent(keep):
        # polyfit's weights multiply the residuals: n^(−1/2) there is 1/n here.
        return -np.polyfit(log_n[keep], log_variance[keep], 1, w=weights[keep])[0]

    estimate = exponent(np.ones(len(n), dtype=bool))
    position = (log_n - log_n[0]) / (log_n[-1] - log_n[0])
    block = np.minimum((position * blocks).astype(int), blocks - 1)
    left_out = [
        exponent(block != b) for b in np.unique(block) if np.sum(block != b) >= 2
    ]
    groups = len(left_out)
    variance = (groups - 1) / groups * np.sum((left_out - np.mean(left_out)) ** 2)
    margin = scipy.stats.t.ppf(0.975, groups - 1) * np.sqrt(variance)
    return float(estimate), (float(estimate - margin), float(estimate + margin))
