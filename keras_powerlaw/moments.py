"""Moments of the signal's covariance, without bias; from two repeats, without noise.

The sums run over distinct stimuli, so that no stimulus is multiplied with itself. Their
noise is independent, and that of two repeats has a mean of zero in the sums.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, Literal, NamedTuple, TypeAlias, cast

import keras
import numpy as np
import scipy.linalg
import scipy.optimize
import scipy.special
import scipy.stats
from numpy.typing import NDArray

from keras_powerlaw.arguments import (
    Verbose,
    invalid_value,
    is_finite_number,
    require_memory,
    validate_integer,
    validate_verbose,
)
from keras_powerlaw.progress import Progress
from keras_powerlaw.recordings import one_or_two_repeats
from keras_powerlaw.spectrum import Interval
from keras_powerlaw.targets import BrokenPowerLaw, Configured, PowerLaw

Array: TypeAlias = NDArray[np.float64]
Breaks: TypeAlias = float | Literal["search"] | None

# How many moments determine one power law best, and a broken one: of more, the higher
# ones add errors that their covariance does not know well enough.
STRAIGHT, BROKEN = 4, 6
# Random pairings and orders of the stimuli that are averaged; halves of the stimuli of
# which the covariance is taken, and pairings of each.
PAIRINGS, HALVES, PAIRINGS_OF_A_HALF = 10, 100, 4
# Fewer stimuli leave a half fewer pairs than the highest moment multiplies.
FEWEST_STIMULI = 4 * BROKEN
STARTS = (0.5, 1.0, 1.5)
# Where the second variance is a millionth of the first: in effect there is one.
STEEPEST = 20.0
# What a break must lower χ² by: two parameters that mean nothing do so once in 1,000.
WORTH_A_BREAK = float(scipy.stats.chi2.isf(0.001, 2))
NORMAL = float(scipy.stats.norm.ppf(0.975))


class _Fit(NamedTuple):
    """log c, the exponents and, if it was searched, log b; their errors; χ²."""

    parameters: Array
    errors: Array
    cost: float


@keras.saving.register_keras_serializable(package="keras_powerlaw")
@dataclasses.dataclass(frozen=True, eq=False)
class MomentSpectrum(Configured):
    """A power law, or a broken one, fitted to the moments of a covariance.

        Hₖ = tr Σᵏ / N ≈ 1/N ∑ₙ (c γₙ)ᵏ,    n = 1 … N

    by least squares of Hₖ or of log Hₖ, with the residuals whitened by the covariance
    of the moments. It is itself a target: `levels(n)` are the fitted variances.

    Args:
        moments: H₁, H₂, …, an array of shape `(moments,)`, all above zero.
        covariance: That of their errors, of shape `(moments, moments)`.
        units: The number of units N, those without signal included.
        breaks: `None` for one power law, the n of a break, or `"search"` for the best
            one. Defaults to `None`.
        fitted: Fit only so many of the moments. Defaults to `None`: all.
        logarithms: Whether to fit log Hₖ. Of few stimuli, the errors of high moments
            grow with the moments, which biases a fit of Hₖ. Defaults to False.
    """

    moments: Array
    covariance: Array
    units: int
    breaks: Breaks = None
    fitted: int | None = None
    logarithms: bool = False

    def __post_init__(self) -> None:
        moments = np.asarray(self.moments, "float64")
        covariance = np.asarray(self.covariance, "float64")
        fewest = 3 if self.breaks is None else 5
        fitted = moments[: self.fitted]
        if moments.ndim != 1 or len(fitted) < fewest or not np.all(fitted > 0):
            raise invalid_value(
                "moments",
                f"at least {fewest} moments, all above zero",
                self.moments,
            )
        if covariance.shape != 2 * moments.shape or not np.all(
            np.isfinite(covariance) & (covariance.diagonal() > 0)
        ):
            raise invalid_value(
                "covariance",
                f"a finite covariance of {len(moments)} moments",
                self.covariance,
            )
        validate_integer("units", self.units, minimum=3)
        at = 1.0 if self.breaks in (None, "search") else self.breaks
        if not is_finite_number(at) or not 1 <= cast(float, at) <= self.units:
            raise invalid_value(
                "breaks",
                f'None, "search", or a number from 1 to {self.units} (the units)',
                repr(self.breaks),
            )
        object.__setattr__(self, "moments", moments)
        object.__setattr__(self, "covariance", covariance)

    @classmethod
    def from_moments(
        cls, moments: Any, bootstraps: Any, units: int, *, breaks: Breaks = None
    ) -> MomentSpectrum:
        """Fits moments that were estimated before, by others for example.

        Args:
            moments: tr Σᵏ / N for k = 1, 2, …, an array of shape `(moments,)`, all of
                which are fitted.
            bootstraps: The same of resampled stimuli, of shape `(resamples, moments)`.
                Only their covariance is used, not their mean.
            units: The number of units N.
            breaks: `None` for one power law, the n of a break, or `"search"`. Defaults
                to `None`.

        Returns:
            A `MomentSpectrum`.

        Raises:
            ValueError: If moments are not above zero or too few, if the shapes do not
                belong together, or if `breaks` is none of these.

        Example:

        ```python
        import numpy as np
        import keras_powerlaw as kp

        k = np.arange(1, 7)[:, np.newaxis]
        moments = np.mean((0.1 / np.arange(1, 1001)) ** k, axis=1)
        errors = 0.01 * np.random.default_rng(0).normal(size=(100, 6))
        spectrum = kp.MomentSpectrum.from_moments(moments, moments * (1 + errors), 1000)
        print(spectrum.target)  # PowerLaw(alpha=1.0)
        ```
        """
        bootstraps = np.asarray(bootstraps, "float64")
        count = np.size(moments)
        if bootstraps.ndim != 2 or bootstraps.shape[1] != count:
            raise invalid_value(
                "bootstraps",
                f"an array of shape (resamples, {count})",
                f"shape {bootstraps.shape}",
            )
        if len(bootstraps) <= count:
            raise invalid_value(
                "bootstraps", f"more than {count} resamples", len(bootstraps)
            )
        return cls(moments, np.cov(bootstraps, rowvar=False), units, breaks)

    @property
    def target(self) -> PowerLaw | BrokenPowerLaw:
        """The fitted law, to compare with, to draw, and to train toward."""
        _, alpha, *broken = map(float, self._fit.parameters)
        if not broken:
            return PowerLaw(alpha)
        at = np.exp(broken[1]) if self.breaks == "search" else self.breaks
        return BrokenPowerLaw(alpha, broken[0], cast(float, at))

    @property
    def level(self) -> float:
        """c, the fitted variance at n = 1."""
        return float(np.exp(self._fit.parameters[0]))

    def levels(self, n: NDArray[Any]) -> Array:
        """The fitted variances at integers n, as a target; zero beyond `units`."""
        return np.where(n <= self.units, self.level * self.target.levels(n), 0.0)

    @property
    def exponent(self) -> float:
        """α of the fitted law; of a broken one, α₂, that beyond the break."""
        return float(self._fit.parameters[1:3][-1])

    @property
    def exponent_interval(self) -> Interval:
        """95 % interval of `exponent`."""
        return list(self.intervals.values())[: len(self._fit.parameters[1:3])][-1]

    @property
    def intervals(self) -> dict[str, Interval]:
        """95 % intervals of the fields of `target`, that of a given break left out.

        By the delta method, from the covariance of the moments.
        """
        _, *values = self._fit.parameters
        margins = NORMAL * self._fit.errors[1:]
        ends = np.stack([values - margins, values + margins], axis=1)
        with np.errstate(over="ignore"):
            ends[2:] = np.exp(ends[2:])
        fields = ("alpha", "beyond", "at")
        return {
            field: (float(low), float(high))
            for field, (low, high) in zip(fields, ends, strict=False)
        }

    @property
    def moment_intervals(self) -> Array:
        """95 % intervals of `moments`, of shape `(moments, 2)`."""
        margins = NORMAL * np.sqrt(self.covariance.diagonal())
        return np.stack([self.moments - margins, self.moments + margins], axis=1)

    @property
    def chi_squared(self) -> float:
        """The sum of the squared residuals: about `degrees_of_freedom` in a good fit.

        Far above it, the law is not that of the moments, however narrow its interval.
        """
        return self._fit.cost

    @property
    def degrees_of_freedom(self) -> int:
        """Fitted moments less fitted parameters."""
        return (self.fitted or len(self.moments)) - len(self._fit.parameters)

    @property
    def p_value(self) -> float:
        """The probability of a larger `chi_squared` if the law is true."""
        return float(scipy.stats.chi2.sf(self.chi_squared, self.degrees_of_freedom))

    @property
    def break_gain(self) -> float:
        """By how much the best break lowers χ², with all moments fitted.

        NaN unless there are five moments above zero, which determine a broken law.
        """
        if len(self.moments) < 5 or np.any(self.moments <= 0):
            return float("nan")
        one, broken = (
            dataclasses.replace(self, breaks=breaks, fitted=None).chi_squared
            for breaks in (None, "search")
        )
        return one - broken

    @property
    def needs_break(self) -> bool:
        """Whether a broken law is worth its two parameters.

        It is if `break_gain` is above 13.8, the 99.9 % quantile of χ² with two degrees
        of freedom.
        """
        return bool(self.break_gain > WORTH_A_BREAK)

    @property
    def dimension_90(self) -> int:
        """Number of leading variances of the fitted law that hold 90 % of their sum."""
        cumulative = np.cumsum(self.levels(np.arange(1, self.units + 1)))
        return int(np.searchsorted(cumulative, 0.9 * cumulative[-1]) + 1)

    @cached_property
    def _fit(self) -> _Fit:
        used = slice(self.fitted)
        moments, covariance = self.moments[used], self.covariance[used, used]
        return _fitted(moments, covariance, self.units, self.breaks, self.logarithms)


def moment_spectrum(
    first: Any,
    second: Any | None = None,
    *,
    breaks: Breaks = None,
    seed: int = 0,
    verbose: Verbose = "auto",
) -> MomentSpectrum:
    """The power law of the signal that two repeats share, or of a layer, without bias.

        tr Σᵏ ≈ tr(Fᵏ⁻¹ A) / C(m, k),    A = Y₁Y₂ᵀ

    where Σ is the covariance of the responses without noise, the m rows of Y₁ and Y₂
    are differences of two stimuli each, over √2, in the first and in the second repeat,
    and F is A above its diagonal. The mean of the right side is the left side for any
    number of stimuli and units and any noise that is new in each repeat. It is averaged
    over ten random pairings and orders of the stimuli. The law is fitted to four
    moments, a broken one to six; their covariance is that over 100 random halves of the
    stimuli.

    The activations of a layer have no noise. They need no second repeat: without one,
    Y₂ is Y₁, and noise counts as signal. Nor do units that never change count then.

    The exponent is that of these units. Of a part of a population, whose eigenvectors
    may be localized, it can differ from the population's. All that were recorded
    belong into the arrays, not only those that respond well.

    Args:
        first: Responses in the first repeat, an array of shape `(stimuli, units)` of
            real numbers, which may be in a file (`numpy.load(..., mmap_mode="r")`).
        second: Those to the same stimuli in the second repeat, in the same order.
            Defaults to `None`: there is none.
        breaks: `None` for one power law, the n at which it breaks, or `"search"` for
            the best break. Defaults to `None`; `.needs_break` of the result says
            whether one is needed.
        seed: Seed of pairings and halves. Defaults to 0.
        verbose: `"auto"` shows progress when the measurement is slow, 0 never, 1
            always. Defaults to `"auto"`.

    Returns:
        A `MomentSpectrum`, with `.target`, `.exponent`, `.exponent_interval`,
        `.moments`, `.moment_intervals`, `.chi_squared`, `.p_value`, `.needs_break`.

    Raises:
        ValueError: If the repeats are not real, finite arrays of one shape with at
            least 24 stimuli, are one array twice, have no signal, or are too large for
            the available memory; or if units never change in either of two.

    Example:

    ```python
    import numpy as np
    import keras_powerlaw as kp

    rng = np.random.default_rng(0)
    signal = rng.normal(size=(300, 500)) * np.arange(1, 501) ** -0.5
    first, second = (signal + 0.1 * rng.normal(size=signal.shape) for _ in range(2))
    spectrum = kp.moment_spectrum(first, second)
    print(spectrum.exponent, spectrum.exponent_interval)
    print(kp.moment_spectrum(signal).exponent)  # as of a layer, without noise
    ```

    Reference:
        Pospisil and Pillow (2025), *Revisiting the high-dimensional geometry of
        population responses in visual cortex*; Kong and Valiant (2017), *Spectrum
        estimation from samples*.
    """
    repeats = one_or_two_repeats(first, second, fewest=FEWEST_STIMULI)
    validate_integer("seed", seed, minimum=0)
    validate_verbose(verbose)
    stimuli = len(repeats[0])
    require_memory([("stimuli", stimuli)])
    progress = Progress("Estimating the moments of the signal", verbose)
    rng = np.random.default_rng(seed)
    products, units = _products(repeats)
    total = np.trace(products) - products.sum() / stimuli
    if total <= 0:
        received = f"a covariance of {total / (stimuli - 1):.3g} in all"
        raise _no_signal(len(repeats), received)
    # Each about 1, so that their powers neither vanish nor overflow.
    products /= total / (stimuli - 1)

    def averaged(chosen: NDArray[np.integer], pairings: int) -> Array:
        orders = (rng.permutation(chosen) for _ in range(pairings))
        traces = [_traces(products, order) for order in orders]
        return np.asarray(np.mean(traces, axis=0))

    moments, halves = averaged(np.arange(stimuli), PAIRINGS), []
    for done in range(HALVES):
        half = rng.permutation(stimuli)[: stimuli // 2]
        halves.append(averaged(half, PAIRINGS_OF_A_HALF))
        progress.update(done + 1, HALVES)
    progress.finish()
    covariance = np.cov(halves, rowvar=False)
    fitted = STRAIGHT if breaks is None else BROKEN
    if moments[0] < 2 * np.sqrt(covariance[0, 0]) or np.any(moments[:fitted] <= 0):
        raise _no_signal(len(repeats), f"tr Σᵏ / (tr Σ)ᵏ of {moments}")
    scale = (total / (stimuli - 1)) ** np.arange(1, BROKEN + 1) / units
    return MomentSpectrum(
        moments * scale,
        covariance * np.outer(scale, scale),
        units,
        breaks,
        fitted,
        logarithms=True,
    )


def participation_ratio(
    first: Any, second: Any | None = None, *, sampled_units: bool = True
) -> float:
    """Effective dimension (tr Σ)² / tr Σ², corrected for few stimuli and few units.

        (tr Σ)² ∝ ∑ (a_iα − a_lα) b_iα (a_jβ − a_rβ) b_jβ
        tr Σ²   ∝ ∑ (a_iα − a_lα) b_iβ (a_jβ − a_rβ) b_jα

    over distinct stimuli i, j, l, r and units α ≠ β, a and b the responses in the first
    and the second repeat, or both those of the only one. Either sum is unbiased; the
    ratio is, but for its own curvature, that of infinitely many stimuli and units.
    Without a second repeat, noise counts as signal.

    Args:
        first: Responses, an array of shape `(stimuli, units)`, or activations.
        second: Those in a second repeat. Defaults to `None`: there is none.
        sampled_units: Whether the units are a sample of many, as neurons are. If False,
            they are all that exist, as in a layer, and α = β counts too. Defaults to
            True.

    Returns:
        The participation ratio. NaN if the estimate of tr Σ² is not above zero.

    Raises:
        ValueError: If the arrays are not real, finite and of one shape, with at least
            four stimuli and two units, or are one array twice.

    Example:

    ```python
    import numpy as np
    import keras_powerlaw as kp

    responses = np.random.default_rng(0).normal(size=(100, 1000))
    responses[:, :500] *= 3  # of a population whose participation ratio is without end
    print(kp.Spectrum.from_samples(responses).participation_ratio)  # 87
    print(kp.participation_ratio(responses, sampled_units=False))  # about 610
    ```

    Reference:
        Chun et al. (2026), *Estimating dimensionality of neural representations from
        finite samples*, whose package `dimensionality` has the same estimates.
    """
    repeats = one_or_two_repeats(first, second, fewest=4)
    stimuli, units = repeats[0].shape
    if units < 2:
        raise invalid_value("first", "at least two units", f"{units}")
    require_memory([("stimuli", stimuli)])
    products, _ = _products(repeats)
    own = products.diagonal().copy()
    np.fill_diagonal(products, 0.0)
    sums = _distinct_sums(
        own,
        products.sum(axis=1),
        products.sum(axis=0),
        np.sum(products**2),
        np.sum(products * products.T),
    )
    if sampled_units:
        for parts in _slices(repeats):
            sums -= _of_single_units(parts[0], parts[-1]).sum(axis=1)
    numerator, denominator = sums
    return float(numerator / denominator) if denominator > 0 else float("nan")


def _of_single_units(a: Array, b: Array) -> Array:
    """The sums with α = β, of shape `(2, units)`: the products are a_iα b_jα."""
    both = a * b
    squares = np.sum(both**2, axis=0)
    return _distinct_sums(
        both,
        a * b.sum(axis=0) - both,
        b * a.sum(axis=0) - both,
        np.sum(a**2, axis=0) * np.sum(b**2, axis=0) - squares,
        np.sum(both, axis=0) ** 2 - squares,
    )


def _distinct_sums(
    own: Array, rows: Array, columns: Array, squares: Any, crossed: Any
) -> Array:
    """Estimates of (tr Σ)² and tr Σ² from products K_ij of stimuli i ≠ j.

    Inclusion and exclusion leave only distinct stimuli in each mean.

    Args:
        own: K_ii, of shape `(stimuli, ...)`.
        rows: ∑_j K_ij, of the same shape.
        columns: ∑_i K_ij.
        squares: ∑ K_ij².
        crossed: ∑ K_ij K_ji.
    """
    m, total, paths = len(own), rows.sum(axis=0), np.sum(rows * columns, axis=0)
    pairs, triples = m * (m - 1), m * (m - 1) * (m - 2)
    trace, ends = own.sum(axis=0), np.sum(own * (rows + columns), axis=0)
    four = total**2 - np.sum(rows**2 + columns**2, axis=0) - 2 * paths
    four = (four + squares + crossed) / (triples * (m - 3))
    numerator = (trace**2 - np.sum(own**2, axis=0)) / pairs
    numerator -= 2 * (trace * total - ends) / triples - four
    denominator = crossed / pairs - 2 * (paths - crossed) / triples + four
    return np.array([numerator, denominator])


def _slices(repeats: Sequence[NDArray[np.floating]]) -> Iterator[list[Array]]:
    """Some units of all repeats at a time, centered by the first, in float64."""
    stimuli, units = repeats[0].shape
    width = max(256, 2**22 // stimuli)
    for start in range(0, units, width):
        parts = [
            np.asarray(repeat[:, start : start + width], "float64")
            for repeat in repeats
        ]
        # A large mean, which no difference of stimuli holds, would cost digits.
        mean = parts[0].mean(axis=0)
        yield [part - mean for part in parts]


def _products(repeats: Sequence[NDArray[np.floating]]) -> tuple[Array, int]:
    """Y₁Y₂ᵀ, of shape `(stimuli, stimuli)`, and the number of units that change.

    A neuron that never responds was hardly recorded, so it is refused in two repeats.
    A layer may well have dead units.
    """
    products = np.zeros(2 * (len(repeats[0]),))
    units = 0
    for parts in _slices(repeats):
        units += int(np.sum(np.any([np.ptp(part, axis=0) > 0 for part in parts], 0)))
        products += parts[0] @ parts[-1].T
    constant = repeats[0].shape[1] - units
    if constant and len(repeats) == 2:
        raise invalid_value(
            "first",
            "units that respond to something; leave out the others, here and in "
            "`second`",
            f"{constant} units that are constant in both repeats",
        )
    return products, units


def _traces(products: Array, order: NDArray[np.integer]) -> Array:
    """Estimates of tr Σᵏ, k = 1 … 6, from one pairing and order of stimuli."""
    pairs = len(order) // 2
    one, other = order[:pairs], order[pairs : 2 * pairs]
    rows = products[one] - products[other]
    a = np.asfortranarray(rows[:, one] - rows[:, other]) / 2
    multiply = scipy.linalg.blas.dtrmm
    f = np.triu(a, 1)
    f2 = multiply(1.0, f, f)
    f3 = multiply(1.0, f, f2)
    f2_a = multiply(1.0, f2, a)
    sums = [
        np.trace(a),
        *(np.vdot(power, a.T) for power in (f, f2, f3)),
        *(np.vdot(power, f2_a.T) for power in (f2, f3)),
    ]
    return np.asarray(sums / scipy.special.comb(pairs, np.arange(1, BROKEN + 1)))


def _fitted(
    moments: Array, covariance: Array, units: int, breaks: Breaks, logarithms: bool
) -> _Fit:
    """The best law, over several first values and, if searched, over breaks."""
    k = np.arange(1, len(moments) + 1)
    # Of relative errors, whitened through their correlations: the covariance itself
    # spans more orders of magnitude than float64 has digits.
    deviations = np.sqrt(covariance.diagonal())
    variances, vectors = np.linalg.eigh(covariance / np.outer(deviations, deviations))
    variances = np.maximum(variances, variances[-1] * len(k) * np.finfo(float).eps)
    whiten = (vectors / np.sqrt(variances)).T * (moments / deviations)
    total = units * moments[0]
    scaled, log_n = moments / total**k, np.log(np.arange(1, units + 1))

    def solve(start: Sequence[float], fixed: Sequence[float] = ()) -> Any:
        def of_law(parameters: Array) -> tuple[Array, Array]:
            log_levels, slopes = _log_law([*parameters, *fixed], log_n)
            levels = np.exp(log_levels)
            powers = np.cumprod(np.broadcast_to(levels, (len(k), units)), axis=0)
            ratios = powers.mean(axis=1) / scaled
            jacobian = powers @ slopes[: len(parameters)].T / units
            jacobian *= (k / scaled / (ratios if logarithms else 1.0))[:, np.newaxis]
            residuals = np.log(ratios) if logarithms else ratios - 1.0
            return whiten @ residuals, whiten @ jacobian

        # The sum of the variances is 1, so that the largest is between 1/N and 1.
        lower = [-np.log(10 * units), 0.0, 0.0, 0.0]
        upper = [np.log(10), STEEPEST, STEEPEST, np.inf]
        return scipy.optimize.least_squares(
            lambda parameters: of_law(parameters)[0],
            start,
            lambda parameters: of_law(parameters)[1],
            bounds=(lower[: len(start)], upper[: len(start)]),
            xtol=1e-12,
            ftol=1e-12,
            gtol=1e-12,
        )

    def best(*fixed: float) -> Any:
        fits = []
        for alpha in STARTS:
            level = -np.log(np.sum(np.exp(-alpha * log_n)))
            fits.append(solve([level, *[alpha] * (1 + len(fixed))], fixed))
        return min(fits, key=lambda fit: fit.cost)

    if breaks == "search":
        # From break to break, each fit begins where the last one ended.
        grid = np.log(np.geomspace(2, units / 2, int(2 * np.log2(units))))
        fits = [best(grid[0])]
        for bend in grid[1:]:
            fits.append(solve(fits[-1].x, [bend]))
        nearest = int(np.argmin([fit.cost for fit in fits]))
        found = solve([*fits[nearest].x, grid[nearest]])
    else:
        found = best(*([] if breaks is None else [np.log(breaks)]))
    # The diagonal of (JᵀJ)⁻¹; large where the moments do not determine a parameter.
    _, values, rows = np.linalg.svd(found.jac, full_matrices=False)
    values = np.maximum(values, values[0] * np.finfo(float).eps)
    errors = np.linalg.norm(rows / values[:, np.newaxis], axis=0)
    parameters = found.x + np.eye(len(found.x))[0] * np.log(total)
    return _Fit(parameters, errors, float(2 * found.cost))


def _log_law(parameters: Sequence[float], log_n: Array) -> tuple[Array, Array]:
    """log λₙ of a law, and its derivatives with respect to the parameters.

    Args:
        parameters: log c, α and, of a broken law, α₂ and log b.
        log_n: Array of shape `(units,)`.
    """
    level, alpha, *broken = parameters
    if not broken:
        return level - alpha * log_n, np.stack([np.ones_like(log_n), -log_n])
    beyond, bend = broken
    before, after = np.minimum(log_n, bend), np.maximum(log_n - bend, 0.0)
    slopes = [np.ones_like(log_n), -before, -after, (beyond - alpha) * (after > 0)]
    return level - alpha * before - beyond * after, np.stack(slopes)


def _no_signal(repeats: int, received: str) -> ValueError:
    if repeats == 1:
        return invalid_value(
            "first", "responses that differ between stimuli, and more of them", received
        )
    return ValueError(
        "The repeats share no signal that can be told from noise. Expected moments "
        "above zero: the same stimuli in the same order in `first` and `second`, and "
        f"more of them. Received: {received}"
    )
