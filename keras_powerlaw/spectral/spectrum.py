"""A covariance spectrum and the figures that describe it."""

from __future__ import annotations

import dataclasses
from functools import cached_property
from typing import Any, cast

import numpy as np
import scipy.stats
from numpy.typing import NDArray

from keras_powerlaw.support.arguments import invalid_value, validate_number


@dataclasses.dataclass(frozen=True)
class Spectrum:
    """A covariance spectrum and the figures that describe it.

    Args:
        eigenvalues: Array of shape `(units,)`, variances, largest first.
        fit_range: `(first, last)`, 1-based and inclusive: the eigenvalues to which the
            exponent is fitted. Defaults to `(11, 500)` (Stringer et al. 2019), cut off
            at the last eigenvalue above `floor`.
        floor: Variance at or below which an eigenvalue is rounding error: it counts
            neither for `rank` nor for `exponent`. Measured spectra have that of the
            layer's activations. At least, and by default, that of float64, λ₁ · units ·
            2.2e-16.

    Example:

    ```python
    import numpy as np
    import keras_powerlaw as kp

    spectrum = kp.Spectrum(3.0 / np.arange(1, 1001))
    print(spectrum.exponent)  # 1.0
    print(spectrum.dimension_90)  # 473
    ```
    """

    eigenvalues: NDArray[np.float64]
    fit_range: tuple[int, int] | None = None
    floor: float | None = None

    def __post_init__(self) -> None:
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
        floor = float(eigenvalues[0] * len(eigenvalues) * np.finfo("float64").eps)
        if self.floor is not None:
            floor = max(floor, validate_number("floor", self.floor))
        object.__setattr__(self, "floor", floor)
        if self.fit_range is None:
            fit_range = (11, max(11, min(500, self.rank)))
        else:
            fit_range = validate_fit_range(self.fit_range, len(eigenvalues))
        object.__setattr__(self, "fit_range", fit_range)

    @property
    def rank(self) -> int:
        """Number of eigenvalues above `floor`."""
        return int(np.sum(self.eigenvalues > cast(float, self.floor)))

    @property
    def exponent(self) -> float:
        """α of the power law n^(−α) fitted to `fit_range`.

        Least squares of log λₙ on log n with weights 1/n, so that every octave of n
        counts equally (Stringer et al. 2019). NaN if fewer than three eigenvalues in
        the range are above `floor`.
        """
        return self._fit[0]

    @property
    def exponent_interval(self) -> tuple[float, float]:
        """95 % interval of `exponent`.

        From a jackknife over up to ten blocks of `fit_range`, of equal length in log n:
        it shows how much the exponent depends on the part of the range that is used. It
        is narrow where the spectrum is a straight line on log-log axes, and wide where
        it bends, however many examples were measured.
        """
        return self._fit[1]

    @cached_property
    def _fit(self) -> tuple[float, tuple[float, float]]:
        first, last = cast(tuple[int, int], self.fit_range)
        return fit_power_law(self.eigenvalues, first, min(last, self.rank))

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


def fit_power_law(
    eigenvalues: NDArray[np.float64], first: int, last: int, blocks: int = 10
) -> tuple[float, tuple[float, float]]:
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

    def exponent(keep: NDArray[np.bool_]) -> Any:
        # polyfit's weights multiply the residuals, not their squares: n^(−1/2) for 1/n.
        return -np.polyfit(log_n[keep], log_variance[keep], 1, w=weights[keep])[0]

    estimate = exponent(np.ones(len(n), dtype=bool))
    position = (log_n - log_n[0]) / (log_n[-1] - log_n[0])
    block = np.minimum((position * blocks).astype(int), blocks - 1)
    jackknifed = [
        exponent(block != b) for b in np.unique(block) if np.sum(block != b) >= 2
    ]
    groups = len(jackknifed)
    variance = (groups - 1) / groups * np.sum((jackknifed - np.mean(jackknifed)) ** 2)
    margin = scipy.stats.t.ppf(0.975, groups - 1) * np.sqrt(variance)
    return float(estimate), (float(estimate - margin), float(estimate + margin))
