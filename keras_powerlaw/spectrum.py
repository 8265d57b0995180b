"""Covariance spectra of samples, and the figures that describe a spectrum."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple, TypeVar, cast

import keras
import numpy as np
import scipy.linalg
import scipy.stats
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from keras_powerlaw.arguments import (
    invalid_value,
    refuse_mask,
    require_memory,
    validate_number,
    validate_optional_integer,
)
from keras_powerlaw.targets import Configured, Target, as_target

Interval = tuple[float, float]

# A spectrum whose local exponent changes by no more than this over the range of the fit
# is called a power law even where its bend can be told from zero.
TOLERATED_CURVATURE = 0.1
# In float32, an eigenvalue has an error of a few rounding errors of the largest one.
EIGENVALUE_ERRORS = 8
# Rows of an array that are read at once.
ROWS = 1024

# Threads of BLAS wait for each other by spinning. On cores that other work shares, that
# costs many times what one thread does, and a refresh is next to training steps.
_BLAS = ThreadpoolController()
_Method = TypeVar("_Method", bound=Callable[..., Any])


def _on_one_thread(method: _Method) -> _Method:
    return cast("_Method", _BLAS.wrap(limits=1, user_api="blas")(method))


# Distance from 1 to the next larger number. NumPy does not know bfloat16.
_EPSILON = {"bfloat16": 2.0**-7, "float16": 2.0**-10, "float32": 2.0**-23}


class Degenerate(ValueError):
    """A layer's activations have no spectrum that could be penalized."""


class Distance(NamedTuple):
    """Median and maximum of |log λₙ/γₙ| over a range."""

    median: float
    maximum: float


class PowerLawFits(Configured):
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

    def levels(self, n: NDArray[Any]) -> NDArray[np.float64]:
        """The eigenvalues as a target, at real numbers n ≥ 1.

        Linear in log n and log λ between them; beyond `rank`, where wider layers have
        units, n^(−α) with α the fitted `exponent`.
        """
        known = self.eigenvalues[: self.rank]
        (positive,) = np.nonzero(known > 0)
        if not positive.size:
            return np.zeros(np.shape(n))
        log_n, log_known = np.log(n), np.log(positive + 1)
        within = np.interp(log_n, log_known, np.log(known[positive]))
        beyond = np.maximum(log_n - log_known[-1], 0.0)
        slope = np.where(beyond > 0, self.exponent, 0.0)
        return np.asarray(np.exp(within - slope * beyond))

    def __str__(self) -> str:
        """For messages."""
        return f"a spectrum of rank {self.rank}, of exponent {self.exponent:.2f}"

    def distance(
        self,
        target: float | Target = 1.0,
        fit_range: tuple[int, int] | None = None,
    ) -> Distance:
        """How far the spectrum is from a target: |log λₙ/γₙ| over a range.

            γₙ = λ_τ (n/τ)^(−α)

        with τ the first n of the range. Of a spectrum as the target, γₙ are its
        eigenvalues times the factor that makes γ_τ = λ_τ.

        Args:
            target: The exponent α, at least 0, or another target: a `PowerLaw`, a
                `BrokenPowerLaw`, or another spectrum. Defaults to 1.0.
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
        target = as_target(target)
        if isinstance(target, PowerLawFits):
            last = min(last, target.rank)
        gamma = target.levels(np.arange(first, last + 1))
        own = self.eigenvalues[first - 1 : last]
        positive = (own > 0) & (gamma > 0)
        if np.sum(positive) < 2 or not positive[0]:
            return Distance(float("nan"), float("nan"))
        ratios = np.log(own[positive] / own[0]) - np.log(gamma[positive] / gamma[0])
        return Distance(float(np.median(np.abs(ratios))), float(np.max(np.abs(ratios))))

    def _complete_fit_range(self) -> None:
        """Validates `fit_range`, or sets the default; for `__post_init__`."""
        # That of Stringer et al. (2019), cut off at the rank.
        fit_range = (11, max(11, min(500, self.rank)))
        if not (self.fit_range is None or np.array_equal(self.fit_range, fit_range)):
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


@keras.saving.register_keras_serializable(package="keras_powerlaw")
@dataclasses.dataclass(frozen=True, eq=False)
class Spectrum(PowerLawFits):
    """A covariance spectrum and the figures that describe it.

    Args:
        eigenvalues: Array of shape `(units,)`, variances, largest first; or only the
            leading ones of them, with `variance`.
        fit_range: `(first, last)`, 1-based and inclusive: the eigenvalues to which the
            exponent is fitted. Defaults to `(11, 500)` (Stringer et al. 2019), cut off
            at the last eigenvalue above `floor`.
        floor: Variance at or below which an eigenvalue is rounding error: it counts
            neither for `rank` nor for `exponent`. Measured spectra have that of the
            layer's activations. At least, and by default, that of float64, λ₁ · units ·
            2.2e-16.
        variance: The sum of all eigenvalues, where `eigenvalues` are only the leading
            ones. Figures that need the others are NaN then. Defaults to the sum of
            `eigenvalues`.

    Example:

    ```python
    import numpy as np
    import keras_powerlaw as kp

    spectrum = kp.Spectrum(3.0 / np.arange(1, 1001))
    print(spectrum.exponent)  # 1.0
    print(spectrum.dimension_90)  # 473
    print(spectrum.follows_power_law, spectrum.distance(1.0).median)  # True 0.0
    ```
    """

    eigenvalues: NDArray[np.float64]
    fit_range: tuple[int, int] | None = None
    floor: float | None = None
    variance: float | None = None

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
        variance = float(np.sum(eigenvalues))
        if self.variance is not None:
            variance = max(variance, validate_number("variance", self.variance))
        object.__setattr__(self, "variance", variance)
        self._complete_fit_range()

    @classmethod
    def from_samples(
        cls,
        samples: Any,
        *,
        fit_range: tuple[int, int] | None = None,
        components: int | None = None,
    ) -> Spectrum:
        """The spectrum of samples of anything: a recording, or features of your own.

        In float64. Until there are more samples than units, they are kept, and
        decomposed through their `(samples, samples)` Gram matrix, which has the same
        eigenvalues; from then on, only the `(units, units)` covariance is.

        Args:
            samples: Array of shape `(samples, units)`, of real numbers, which may be in
                a file (`numpy.load(..., mmap_mode="r")`); or an iterable of batches
                of samples, which is read once, a generator for example.
            fit_range: As in `Spectrum`.
            components: Keep only so many of the largest eigenvalues. Defaults to
                `None`: all.

        Returns:
            A `Spectrum`, with as many eigenvalues as units, or as `components`.

        Raises:
            ValueError: If there are fewer than two samples, if they are not real or not
                finite, if batches differ in their units, or if there are too many for
                the available memory.

        Example:

        ```python
        import numpy as np
        import keras_powerlaw as kp

        recording = np.random.default_rng(0).normal(size=(100, 400))
        spectrum = kp.Spectrum.from_samples(recording)
        print(spectrum.rank)  # 99
        ```
        """
        validate_optional_integer("components", components, minimum=1)
        covariance = Covariance(keeps_samples=True)
        for batch in _batches(samples):
            array = real_array("samples", batch)
            if covariance.count and array.shape[1] != covariance.units:
                raise invalid_value(
                    "samples",
                    f"batches of the same units, {covariance.units}",
                    f"{array.shape[1]} units after {covariance.count} samples",
                )
            width = min(covariance.count + len(array), array.shape[1])
            require_memory([("samples", width)])
            covariance.update(array)
        if covariance.count < 2:
            raise invalid_value(
                "samples",
                "at least two samples, since fewer have no covariance",
                f"{covariance.count} sample(s)",
            )
        eigenvalues = covariance.eigenvalues(components)
        return cls(eigenvalues, fit_range, covariance.floor(), covariance.total)

    @property
    def rank(self) -> int:
        """Number of eigenvalues above `floor`."""
        return int(np.sum(self.eigenvalues > cast(float, self.floor)))

    @property
    def dimension_90(self) -> int | float:
        """Number of leading eigenvalues that hold 90 % of the variance.

        NaN if `eigenvalues` are only the leading ones and hold less.
        """
        cumulative = np.cumsum(self.eigenvalues)
        # The very sum of a complete spectrum: `variance` may differ in the last digit.
        total = cumulative[-1] if self._is_complete else cast(float, self.variance)
        if cumulative[-1] < 0.9 * total:
            return float("nan")
        return int(np.searchsorted(cumulative, 0.9 * total) + 1)

    @property
    def participation_ratio(self) -> float:
        """Effective dimension (∑ λₙ)² / ∑ λₙ².

        NaN if `eigenvalues` are only the leading ones.

        Reference:
            Gao et al. (2017), *A theory of multineuronal dimensionality, dynamics and
            measurement*.
        """
        if not self._is_complete:
            return float("nan")
        largest = self.eigenvalues[0]
        if not largest:
            return 0.0
        shares = self.eigenvalues / largest  # whose squares neither vanish nor overflow
        return float(np.sum(shares) ** 2 / np.sum(shares**2))

    @property
    def effective_rank(self) -> float:
        """exp(−∑ pₙ log pₙ) with pₙ = √λₙ / ∑ √λₘ, of the eigenvalues above `floor`.

        The exponential of the entropy of the normalized singular values of the centered
        samples; RankMe is that of samples as they are. Between 1 and `rank`; NaN if
        `eigenvalues` are only the leading ones.

        Reference:
            Roy and Vetterli (2007), *The effective rank*; Garrido et al. (2023),
            *RankMe*, eq. (1).
        """
        if not self._is_complete:
            return float("nan")
        singular = np.sqrt(self.eigenvalues[: self.rank])
        if not singular.size:
            return 0.0
        shares = singular / np.sum(singular)
        return float(np.exp(-np.sum(shares * np.log(shares))))

    @property
    def stable_rank(self) -> float:
        """∑ λₙ / λ₁: the squared Frobenius over the squared spectral norm of samples.

        Reference:
            Rudelson and Vershynin (2007), *Sampling from large matrices*.
        """
        largest = float(self.eigenvalues[0])
        return cast(float, self.variance) / largest if largest else 0.0

    @property
    def _is_complete(self) -> bool:
        rest = cast(float, self.variance) - float(np.sum(self.eigenvalues))
        return rest <= 1e-9 * cast(float, self.variance)


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
    eigenvalues: NDArray[np.float64], first: int, last: int
) -> tuple[float, Interval]:
    """Exponent of the power law through eigenvalues `first` … `last` (1-based).

    Returns:
        The exponent and its 95 % interval; see `Spectrum` for both definitions.
    """

    def exponent(log_n: NDArray[Any], log_variance: NDArray[Any]) -> float:
        # polyfit's weights multiply the residuals, not their squares: n^(−1/2) for 1/n.
        weights = np.exp(-log_n / 2)
        return float(-np.polyfit(log_n, log_variance, 1, w=weights)[0])

    return _with_interval(exponent, eigenvalues, first, last, fewest=3)


def fit_curvature(
    eigenvalues: NDArray[np.float64], first: int, last: int
) -> tuple[float, Interval]:
    """Change of the local exponent over eigenvalues `first` … `last` (1-based).

    Returns:
        `Spectrum.curvature` and its 95 % interval.
    """

    def curvature(log_n: NDArray[Any], log_variance: NDArray[Any]) -> float:
        weights, middle = np.exp(-log_n / 2), np.log(first * last) / 2
        square = np.polyfit(log_n - middle, log_variance, 2, w=weights)[0]
        return float(-2 * square * np.log(last / first))

    return _with_interval(curvature, eigenvalues, first, last, fewest=4)


def _with_interval(
    statistic: Callable[[NDArray[Any], NDArray[Any]], float],
    eigenvalues: NDArray[np.float64],
    first: int,
    last: int,
    fewest: int,
    blocks: int = 10,
) -> tuple[float, Interval]:
    """A statistic of log n and log λₙ > −∞, and its interval by the jackknife."""
    n = np.arange(first, last + 1)
    selected = eigenvalues[first - 1 : last]
    positive = selected > 0
    if np.sum(positive) < fewest:
        return np.nan, (np.nan, np.nan)
    log_n, log_variance = np.log(n[positive]), np.log(selected[positive])
    estimate = statistic(log_n, log_variance)
    position = (log_n - log_n[0]) / (log_n[-1] - log_n[0])
    block = np.minimum((position * blocks).astype(int), blocks - 1)
    jackknifed = [
        statistic(log_n[block != left_out], log_variance[block != left_out])
        for left_out in np.unique(block)
        if np.sum(block != left_out) >= fewest - 1
    ]
    groups = len(jackknifed)
    if groups < 2:
        return estimate, (-np.inf, np.inf)
    error = np.sqrt((groups - 1) * np.var(jackknifed))
    margin = float(scipy.stats.t.ppf(0.975, groups - 1) * error)
    return estimate, (estimate - margin, estimate + margin)


class Covariance:
    """Mean and covariance of samples that arrive in batches, and their eigenvalues.

    Sums are relative to the first batch's mean, so that neither many batches nor a
    large mean costs the small eigenvalues their precision.

    Args:
        computed_in: Dtype in which the samples were computed, where it is less precise
            than that of the arrays. Defaults to `"float64"`.
        dtype: Dtype of the sums and the decomposition: `"float64"`, the default, or
            `"float32"`, the precision of the penalty, which is twice as fast.
        keeps_samples: Whether to keep the samples until there are more of them than
            units. Until then, the eigenvalues are those of their `(samples, samples)`
            Gram matrix, and nothing takes more than that. Defaults to False.
    """

    def __init__(
        self,
        computed_in: str = "float64",
        dtype: str = "float64",
        keeps_samples: bool = False,
    ) -> None:
        self.count = self.units = 0
        self.keeps_samples = keeps_samples
        self._dtype = dtype
        self._epsilon = max(epsilon_of(computed_in), epsilon_of(dtype))
        self._kept: list[NDArray[np.floating]] | None = [] if keeps_samples else None
        self._gram: NDArray[np.floating] | None = None
        self._largest: float | None = None

    @_on_one_thread
    def update(self, samples: NDArray[np.floating]) -> None:
        """Adds a batch, an array of shape `(batch, units)`."""
        if self.count == 0:
            self.units = samples.shape[1]
            self._shift = samples.mean(axis=0, dtype="float64").astype(self._dtype)
            self._sum = np.zeros(self.units)
        self._epsilon = max(self._epsilon, epsilon_of(samples.dtype.name))
        self._largest = None
        self.count += len(samples)
        if self._kept is not None:
            self._kept.append(samples.copy())
        for centered in _centered(samples, self._shift):
            self._sum += centered.sum(axis=0)
            if self._kept is None:
                self._add(centered)
        if self.count > self.units:
            self._release()

    def mean(self) -> NDArray[np.float64]:
        """The mean of everything added so far, of shape `(units,)`."""
        return np.asarray(self._shift + self._sum / self.count)

    def matrix(self) -> NDArray[np.floating]:
        """The sample covariance (divisor `count - 1`), of shape `(units, units)`."""
        sigma = self._lower_triangle()
        sigma += np.tril(sigma, -1).T
        return sigma

    def variances(self) -> NDArray[np.float64]:
        """The variance of each unit, of shape `(units,)`."""
        if self._kept is not None:
            mean, squares = self.mean(), np.zeros(self.units)
            for batch in self._kept:
                for centered in _centered(batch, mean):
                    squares += np.einsum("mu,mu->u", centered, centered)
        else:
            squares = -(self._sum**2) / self.count
            squares += self._sums().diagonal()
        return np.maximum(squares, 0.0) / (self.count - 1)

    @property
    def total(self) -> float:
        """The sum of all variances, and of all eigenvalues."""
        return float(np.sum(self.variances()))

    def floor(self) -> float:
        """The variance that rounding adds to a direction, at most.

        That of the data; in float32, that of the decomposition too.
        """
        squares = self.mean() ** 2 + self.variances() * (1 - 1 / self.count)
        largest = float(np.max(squares))
        floor = rounding_floor(self._epsilon, largest, self.units, self.count)
        if self._dtype == "float32":
            if self._largest is None:
                self._largest = float(self.eigenvalues(components=1)[0])
            floor = max(floor, EIGENVALUE_ERRORS * _EPSILON["float32"] * self._largest)
        return floor

    def eigenvalues(self, components: int | None = None) -> NDArray[np.float64]:
        """The eigenvalues, largest first, none of them negative.

        Args:
            components: Only so many of the largest. Defaults to None: all.

        Returns:
            Array of shape `(units,)` or `(components,)`. Eigenvalues beyond the number
            of samples are zero.
        """
        matrix: NDArray[Any]
        with blas_on_idle_cores():
            if self._kept is not None:
                matrix = gram_matrix(self._kept, self.mean())
                divisor = rank = self.count - 1  # centering has taken one
            else:
                matrix, divisor, rank = self._lower_triangle(), 1, self.units
            # All of them, which costs no more than some: most of it is the reduction to
            # a tridiagonal matrix.
            ascending = scipy.linalg.eigh(matrix, eigvals_only=True, overwrite_a=True)
        # Rounding can leave eigenvalues of a singular covariance slightly below zero.
        largest = np.maximum(ascending[::-1][:rank], 0.0) / divisor
        found = np.zeros(self.units)
        found[: len(largest)] = largest
        self._largest = float(found[0])
        return found[:components]

    @_on_one_thread
    def eigenvectors(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Eigenvalues, largest first, and eigenvectors in columns, in LAPACK (`syevd`).

        Returns:
            Arrays of shape `(units,)` and `(units, units)`.

        Reference:
            Nassar et al. (2020), eq. (3).
        """
        ascending, vectors = scipy.linalg.eigh(
            self._lower_triangle(), driver="evd", overwrite_a=True, check_finite=False
        )
        eigenvalues = np.maximum(ascending[::-1], 0.0)
        self._largest = float(eigenvalues[0])
        return eigenvalues, vectors[:, ::-1]

    @_on_one_thread
    def variances_along(self, directions: NDArray[np.floating]) -> NDArray[np.float32]:
        """Variances along fixed directions: the diagonal of VᵀΣV.

        Args:
            directions: Array of shape `(units, directions)`, one vₙ per column.

        Returns:
            Array of shape `(directions,)`, float32, the precision of the penalty.

        Reference:
            Nassar et al. (2020), eq. (5).
        """
        sums = self._sums()
        symm = scipy.linalg.get_blas_funcs("symm", (sums,))
        directions = np.asarray(directions, self._dtype, order="F")
        products = symm(1.0, sums, directions, lower=True)
        squares = np.einsum("un,un->n", directions, products)
        squares -= (self._sum @ directions) ** 2 / self.count
        return np.asarray(squares / (self.count - 1), "float32")

    def _add(self, centered: NDArray[np.floating]) -> None:
        if self._gram is None:
            self._gram = np.zeros((self.units, self.units), self._dtype, order="F")
        syrk = scipy.linalg.get_blas_funcs("syrk", (self._gram,))
        # Added to the lower triangle in place: a separate product would need a second
        # matrix of that size, and be mirrored. A view of the transpose is what BLAS
        # reads without a copy.
        self._gram = syrk(
            1.0, centered.T, beta=1.0, c=self._gram, lower=True, overwrite_c=True
        )

    def _release(self) -> None:
        """Replaces samples that were kept by their sums."""
        kept, self._kept = self._kept or [], None
        while kept:
            for centered in _centered(kept.pop(0), self._shift):
                self._add(centered)

    def _sums(self) -> NDArray[np.floating]:
        """Σ_b (x_b − shift)(x_b − shift)ᵀ, of which the lower triangle is valid."""
        self._release()
        sums = cast("NDArray[np.floating]", self._gram)
        if not np.all(np.isfinite(sums.diagonal())):
            raise Degenerate("There is NaN or infinity in its activations.")
        return sums

    def _lower_triangle(self) -> NDArray[np.floating]:
        """That of the covariance, a new matrix, which LAPACK may overwrite."""
        sigma = self._sums() / (self.count - 1)
        syr = scipy.linalg.get_blas_funcs("syr", (sigma,))
        mean, scale = self._sum / self.count, -self.count / (self.count - 1)
        return np.asarray(syr(scale, mean, lower=True, a=sigma, overwrite_a=True))


def blas_on_idle_cores() -> contextlib.AbstractContextManager[Any]:
    """Gives BLAS the cores that have no work, at least one.

    Never more than it has: a user's limit, as in `OPENBLAS_NUM_THREADS`, holds. On
    Windows, which can't tell, it is one.
    """
    blas = _BLAS.select(user_api="blas").info()
    threads = [int(library["num_threads"]) for library in blas]
    cores = os.cpu_count() or 1
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else cores
    idle = max(1, min([cores - round(load), *threads]))
    return cast(
        "contextlib.AbstractContextManager[Any]",
        _BLAS.limit(limits=idle, user_api="blas"),
    )


def gram_matrix(
    batches: Sequence[NDArray[np.floating]], mean: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Y Yᵀ of centered samples Y, in float64, without a copy of them in float64.

    Args:
        batches: Arrays of shape `(batch, units)`.
        mean: Array of shape `(units,)`, which is subtracted.
    """
    count, units = sum(map(len, batches)), len(mean)
    gram = np.zeros((count, count), order="F")
    # In slices of units, so that the copies stay small beside the matrix itself.
    width = max(256, 2**23 // count)
    for start in range(0, units, width):
        some = slice(start, start + width)
        part = np.concatenate([batch[:, some] - mean[some] for batch in batches])
        gram = scipy.linalg.blas.dsyrk(
            1.0, part, beta=1.0, c=gram, lower=True, overwrite_c=True
        )
    gram += np.tril(gram, -1).T
    return gram


def _centered(
    samples: NDArray[np.floating], mean: NDArray[np.floating]
) -> Iterator[NDArray[np.floating]]:
    """In chunks, since a batch of feature maps is large in float64."""
    rows = max(ROWS, 2**22 // len(mean))
    for start in range(0, len(samples), rows):
        yield samples[start : start + rows] - mean


def rounding_floor(epsilon: float, largest: float, units: int, count: int) -> float:
    """The variance that rounding of activations adds to a direction, at most.

    ((8ε₃₂)² + ε²) · maxᵤ E[xᵤ²] · (1 + √(units/count))², with ε₃₂ that of the sums
    within a layer, float32 or better; derived under "What is rounding" in
    docs/theory.md.

    Args:
        epsilon: The ε of the dtype in which the activations were computed.
        largest: maxᵤ E[xᵤ²], the largest mean square of a unit.
        units: Number of units.
        count: Number of samples.
    """
    accumulated = 8 * min(epsilon, _EPSILON["float32"])
    spread = (1 + np.sqrt(units / count)) ** 2
    return float((accumulated**2 + epsilon**2) * largest * spread)


def epsilon_of(dtype: str) -> float:
    """The distance from 1 to the next larger number."""
    return _EPSILON.get(dtype, float(np.finfo("float64").eps))


def real_array(
    argument: str, value: Any, rows: str = "samples"
) -> NDArray[np.floating]:
    """Returns a matrix of finite real numbers as floats, or raises a `ValueError`."""
    refuse_mask(argument, value)
    array = np.asarray(value)
    if array.ndim != 2 or array.dtype.kind not in "fiub" or not array.shape[1]:
        raise invalid_value(
            argument,
            f"an array of real numbers of shape ({rows}, units)",
            f"an array of shape {array.shape} and dtype {array.dtype}",
        )
    if not np.isfinite(array).all():
        bad = np.sum(~np.isfinite(array).all(axis=1))
        raise invalid_value(
            argument, "finite numbers", f"NaN or infinity in {bad} of the {rows}"
        )
    return array if array.dtype in ("float32", "float64") else array.astype("float64")


def _batches(samples: Any) -> Iterable[Any]:
    if getattr(samples, "shape", ()):
        return (samples[i : i + ROWS] for i in range(0, len(samples), ROWS))
    if not isinstance(samples, Iterable) or isinstance(samples, str | dict):
        raise invalid_value(
            "samples", "an array or an iterable of batches", repr(samples)
        )
    return samples
