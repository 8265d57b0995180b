"""Power laws fitted to eigenvalues, and figures of whatever has such a fit."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import scipy.stats
from numpy.typing import NDArray

from keras_powerlaw.arguments import invalid_value, is_finite_number

Interval = tuple[float, float]

# A spectrum whose local exponent changes by no more than this over the range of the fit
# is called a power law even where its bend can be told from zero.
TOLERATED_CURVATURE = 0.1

_UNKNOWN = float("nan"), (float("nan"), float("nan"))


class Distance(NamedTuple):
    """Median and maximum of |log λₙ/γₙ| over a range."""

    median: float
    maximum: float


class PowerLawFits:
    """A `Spectrum` or a `CrossValidatedSpectrum`, with what is fitted to it."""

    eigenvalues: NDArray[np.float64]
    fit_range: tuple[int, int] | None

    @property
    def rank(self) -> int:
        """Number of leading eigenvalues that are more than errors."""
        raise NotImplementedError

    @property
    def dimension_90(self) -> int | float:
        """Number of leading eigenvalues that hold 90 % of the variance."""
        raise NotImplementedError

    @property
    def exponent(self) -> float:
        """α of the power law n^(−α) fitted to `fit_range`.

        Least squares of log λₙ on log n with weights 1/n, so that every octave of n
        counts equally (Stringer et al. 2019). NaN if fewer than three eigenvalues in
        the range are above `floor`.
        """
        return self._fit[0]

    @property
    def exponent_interval(self) -> Interval:
        """95 % interval of `exponent`.

        From a jackknife over up to ten blocks of `fit_range`, of equal length in log n:
        it shows how much the exponent depends on the part of the range that is used. It
        is narrow where the spectrum is a straight line on log-log axes, and wide where
        it bends, however many examples were measured.
        """
        return self._fit[1]

    @property
    def curvature(self) -> float:
        """How much the local exponent grows over `fit_range`, from its first n to last.

        Zero for a power law, positive where the spectrum falls faster and faster, as an
        exponential or a log-normal one. That of the parabola fitted to log λₙ on log n
        with the weights of `exponent`; NaN if fewer than four eigenvalues in the range
        are above `floor`.
        """
        return self._curvature[0]

    @property
    def curvature_interval(self) -> Interval:
        """95 % interval of `curvature`, from the jackknife of `exponent_interval`."""
        return self._curvature[1]

    @property
    def follows_power_law(self) -> bool:
        """Whether `exponent` describes the spectrum over `fit_range`.

        It does if `curvature` can't be told from zero, or is within ±0.1: from n = 11
        to 500, a local exponent between 0.95 and 1.05 still counts as 1/n.
        """
        low, high = self.curvature_interval
        return low <= 0 <= high or abs(self.curvature) <= TOLERATED_CURVATURE

    def distance(
        self,
        target: float | PowerLawFits = 1.0,
        fit_range: tuple[int, int] | None = None,
    ) -> Distance:
        """How far the spectrum is from a target: |log λₙ/γₙ| over a range.

            γₙ = λ_τ (n/τ)^(−α)

        with τ the first n of the range. Of a spectrum as the target, γₙ are its
        eigenvalues times the factor that makes γ_τ = λ_τ.

        Args:
            target: The exponent α, or another spectrum. Defaults to 1.0.
            fit_range: `(first, last)`, 1-based and inclusive. Defaults to `fit_range`
                of this spectrum. Either is cut off at the end of the shorter spectrum.

        Returns:
            `(median, maximum)`. NaN where there is no eigenvalue above zero at τ or
            behind it.

        Raises:
            ValueError: If `target` is neither, or `fit_range` not within the spectrum.

        Reference:
            Nassar et al. (2020), eq. (2), for γₙ.
        """
        first, last = self._fitted
        if fit_range is not None:
            first, last = validate_fit_range(fit_range, len(self.eigenvalues))
            last = min(last, self.rank)
        if isinstance(target, PowerLawFits):
            last = min(last, target.rank)
            gamma = target.eigenvalues[first - 1 : last]
        elif is_finite_number(target):
            gamma = np.arange(first, last + 1, dtype="float64") ** -float(target)
        else:
            raise invalid_value("target", "a finite number or a spectrum", repr(target))
        own = self.eigenvalues[first - 1 : last]
        positive = (own > 0) & (gamma > 0)
        if np.sum(positive) < 2 or not positive[0]:
            return Distance(float("nan"), float("nan"))
        ratios = np.log(own[positive] / own[0]) - np.log(gamma[positive] / gamma[0])
        return Distance(float(np.median(np.abs(ratios))), float(np.max(np.abs(ratios))))

    def _complete_fit_range(self) -> None:
        """Validates `fit_range`, or sets the default; for `__post_init__`."""
        if self.fit_range is None:
            fit_range = default_fit_range(self.rank)
        else:
            fit_range = validate_fit_range(self.fit_range, len(self.eigenvalues))
        object.__setattr__(self, "fit_range", fit_range)

    @cached_property
    def _fit(self) -> tuple[float, Interval]:
        return fit_power_law(self.eigenvalues, *self._fitted)

    @cached_property
    def _curvature(self) -> tuple[float, Interval]:
        return fit_curvature(self.eigenvalues, *self._fitted)

    @property
    def _fitted(self) -> tuple[int, int]:
        first, last = self.fit_range or (11, 11)
        return first, min(last, self.rank)


def validate_fit_range(fit_range: Any, units: int) -> tuple[int, int]:
    """Returns `fit_range`, or raises a `ValueError` if it is not within `units`."""
    try:
        first, last = (int(n) for n in fit_range)
        valid = (first, last) == tuple(fit_range)
    except (TypeError, ValueError):
        valid = False
    if not valid or not 1 <= first < last <= units:
        raise invalid_value(
            "fit_range",
            f"two integers 1 <= first < last <= {units} (the layer's width)",
            fit_range,
        )
    return (first, last)


def default_fit_range(rank: int) -> tuple[int, int]:
    """That of Stringer et al. (2019), cut off at the rank."""
    return (11, max(11, min(500, rank)))


def fit_power_law(
    eigenvalues: NDArray[np.float64], first: int, last: int, blocks: int = 10
) -> tuple[float, Interval]:
    """Exponent of the power law through eigenvalues `first` … `last` (1-based).

    Returns:
        The exponent and its 95 % interval; see `Spectrum` for both definitions.
    """

    def exponent(log_n: NDArray[Any], log_variance: NDArray[Any]) -> float:
        # polyfit's weights multiply the residuals, not their squares: n^(−1/2) for 1/n.
        weights = np.exp(-log_n / 2)
        return float(-np.polyfit(log_n, log_variance, 1, w=weights)[0])

    return _with_interval(exponent, eigenvalues, first, last, blocks, fewest=3)


def fit_curvature(
    eigenvalues: NDArray[np.float64], first: int, last: int, blocks: int = 10
) -> tuple[float, Interval]:
    """Change of the local exponent over eigenvalues `first` … `last` (1-based).

    Returns:
        `Spectrum.curvature` and its 95 % interval.
    """
    length = np.log(last / first) if last > first else 0.0
    middle = np.log(first * last) / 2 if last > first else 0.0

    def curvature(log_n: NDArray[Any], log_variance: NDArray[Any]) -> float:
        weights = np.exp(-log_n / 2)
        square = np.polyfit(log_n - middle, log_variance, 2, w=weights)[0]
        return float(-2 * square * length)

    return _with_interval(curvature, eigenvalues, first, last, blocks, fewest=4)


def _with_interval(
    statistic: Callable[[NDArray[Any], NDArray[Any]], float],
    eigenvalues: NDArray[np.float64],
    first: int,
    last: int,
    blocks: int,
    fewest: int,
) -> tuple[float, Interval]:
    """A statistic of log n and log λₙ > −∞, and its interval by the jackknife."""
    n = np.arange(first, last + 1)
    selected = eigenvalues[first - 1 : last]
    positive = selected > 0
    if np.sum(positive) < fewest:
        return _UNKNOWN
    log_n, log_variance = np.log(n[positive]), np.log(selected[positive])
    estimate = statistic(log_n, log_variance)
    position = (log_n - log_n[0]) / (log_n[-1] - log_n[0])
    block = np.minimum((position * blocks).astype(int), blocks - 1)
    kept = [block != b for b in np.unique(block)]
    jackknifed = np.array(
        [
            statistic(log_n[keep], log_variance[keep])
            for keep in kept
            if np.sum(keep) >= fewest - 1
        ]
    )
    groups = len(jackknifed)
    if groups < 2:
        return estimate, (-np.inf, np.inf)
    variance = (groups - 1) / groups * np.sum((jackknifed - np.mean(jackknifed)) ** 2)
    margin = scipy.stats.t.ppf(0.975, groups - 1) * np.sqrt(variance)
    return estimate, (float(estimate - margin), float(estimate + margin))
