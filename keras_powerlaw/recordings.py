"""Spectra of the signal in noisy recordings, from two repeats of the same stimuli."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeAlias

import keras
import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from keras_powerlaw.arguments import invalid_value, require_memory, validate_integer
from keras_powerlaw.spectrum import (
    PowerLawFits,
    blas_on_idle_cores,
    gram_matrix,
    real_array,
    validate_fit_range,
)

# The products of one repeat's responses, of which the components are the eigenvectors,
# and of both repeats'; and what makes them of the stimuli of which repeats are swapped.
Pair: TypeAlias = tuple[NDArray[np.float64], NDArray[np.float64]]
Products: TypeAlias = Callable[[NDArray[np.bool_]], Pair]


@keras.saving.register_keras_serializable(package="keras_powerlaw")
@dataclasses.dataclass(frozen=True, eq=False)
class CrossValidatedSpectrum(PowerLawFits):
    """Variances of the signal along principal components, without that of the noise.

    Like a `Spectrum`, for `plot_spectrum` too. But they are estimates: they need not
    fall from each n to the next, and where there is little signal some are negative.
    These are kept; only the fits, of logarithms, leave them out, which makes the
    exponent too small: see `negative`.

    Args:
        eigenvalues: Array of shape `(directions,)`.
        fit_range: As in `Spectrum`. Defaults to `(11, 500)`, cut off at the last
            direction.
    """

    eigenvalues: NDArray[np.float64]
    fit_range: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        eigenvalues = np.asarray(self.eigenvalues, dtype="float64")
        if eigenvalues.ndim != 1 or not eigenvalues.size:
            raise invalid_value(
                "eigenvalues", "a 1D array of at least one number", self.eigenvalues
            )
        object.__setattr__(self, "eigenvalues", eigenvalues)
        self._complete_fit_range()

    @property
    def rank(self) -> int:
        """Number of directions, those of negative estimates included."""
        return len(self.eigenvalues)

    @property
    def negative(self) -> int:
        """Number of eigenvalues within `fit_range` that are not above zero."""
        first, last = self._fitted
        return int(np.sum(self.eigenvalues[first - 1 : last] <= 0))

    @property
    def dimension_90(self) -> int | float:
        """Number of leading components that hold 90 % of the signal's variance.

        NaN if that is not above zero.
        """
        cumulative = np.cumsum(self.eigenvalues)
        if cumulative[-1] <= 0:
            return float("nan")
        return int(np.argmax(cumulative >= 0.9 * cumulative[-1]) + 1)


def cross_validated_spectrum(
    first: Any,
    second: Any,
    *,
    fit_range: tuple[int, int] | None = None,
    splits: int = 10,
    seed: int = 0,
) -> CrossValidatedSpectrum:
    """The spectrum of what two repeats of the same stimuli have in common (cvPCA).

        λₙ = 1/(M − 1) ∑ₘ (vₙ · aₘ) (vₙ · bₘ)

    where aₘ and bₘ are the centered responses to stimulus m, one of each repeat, and vₙ
    the principal components of a alone. Noise that differs between the repeats adds to
    the variance of a along vₙ, on which plain PCA relies, but not to its covariance
    with b. It is averaged over random choices of which repeat of a stimulus is a.

    The components are those of M noisy responses. So the exponent has what errors they
    have: with fewer stimuli than units it is somewhat too small even without noise, and
    where the signal along a component is below the noise, that component is a mixture
    with its neighbors.

    Args:
        first: Responses in the first repeat, an array of shape `(stimuli, units)` of
            real numbers.
        second: Those to the same stimuli in the second repeat, in the same order.
        fit_range: As in `Spectrum`. Defaults to `(11, 500)`, cut off at the last
            direction, stimuli − 1 or the number of units.
        splits: Number of random choices, at least 1. Defaults to 10.
        seed: Seed of them. Defaults to 0.

    Returns:
        A `CrossValidatedSpectrum`, with `.eigenvalues`, `.exponent`,
        `.exponent_interval`, `.fit_range`, `.negative`, `.dimension_90`, `.curvature`.

    Raises:
        ValueError: If the repeats are not two real, finite arrays of one shape with at
            least three stimuli, are one array twice, or are too large for the available
            memory.

    Example:

    ```python
    import numpy as np
    import keras_powerlaw as kp

    rng = np.random.default_rng(0)
    signal = rng.normal(size=(1000, 100)) * np.arange(1, 101) ** -0.5
    first, second = (signal + 0.2 * rng.normal(size=signal.shape) for _ in range(2))
    spectrum = kp.cross_validated_spectrum(first, second, fit_range=(5, 50))
    plain = kp.Spectrum.from_samples(first, fit_range=(5, 50))
    print(spectrum.exponent, plain.exponent)  # 1.00 and 0.58
    ```

    Reference:
        Stringer et al. (2019), *High-dimensional geometry of population responses in
        visual cortex*, Methods, "Cross-validated principal components analysis".
    """
    repeats = two_repeats(first, second, fewest=3)
    stimuli, units = repeats[0].shape
    validate_integer("splits", splits, minimum=1)
    validate_integer("seed", seed, minimum=0)
    directions = min(stimuli - 1, units)
    if fit_range is not None:
        validate_fit_range(fit_range, directions)
    if units >= stimuli:
        require_memory([("stimuli of both repeats", 2 * stimuli)])
        products = _products_of_stimuli(repeats)
    else:
        require_memory([("units of both repeats", units)])
        products = _products_of_units(repeats)
    rng = np.random.default_rng(seed)
    total = np.zeros(directions)
    with blas_on_idle_cores():
        for _ in range(splits):
            own, cross = products(rng.integers(2, size=stimuli).astype(bool))
            _, vectors = scipy.linalg.eigh(own, driver="evd", overwrite_a=True)
            covariances = np.einsum("mn,mn->n", vectors, cross @ vectors)
            total += covariances[::-1][:directions]
    return CrossValidatedSpectrum(total / splits / (stimuli - 1), fit_range)


def two_repeats(first: Any, second: Any, fewest: int) -> list[NDArray[np.floating]]:
    """Returns both, or raises a `ValueError` if they are not two of one experiment."""
    repeats = [
        real_array("first", first, "stimuli"),
        real_array("second", second, "stimuli"),
    ]
    shape = repeats[0].shape
    _validate_stimuli(shape[0], fewest)
    if repeats[1].shape != shape:
        raise invalid_value(
            "second",
            f"responses of the same shape as `first`, {shape}",
            f"shape {repeats[1].shape}",
        )
    if np.array_equal(repeats[0], repeats[1]):
        raise invalid_value(
            "second",
            "another repeat than `first`, with noise of its own; of a single one, or "
            "without noise, use `moment_spectrum(first)` or `Spectrum.from_samples`",
            "the values of `first`",
        )
    return repeats


def one_or_two_repeats(
    first: Any, second: Any | None, fewest: int
) -> list[NDArray[np.floating]]:
    """Returns what there is, or raises a `ValueError`, as `two_repeats`."""
    if second is not None:
        return two_repeats(first, second, fewest)
    only = real_array("first", first, "stimuli")
    _validate_stimuli(len(only), fewest)
    return [only]


def _validate_stimuli(stimuli: int, fewest: int) -> None:
    if stimuli < fewest:
        raise invalid_value("first", f"at least {fewest} stimuli", f"{stimuli}")


def _products_of_stimuli(repeats: list[NDArray[np.floating]]) -> Products:
    """For fewer stimuli than units. With A = U S Vᵀ, the sums are uₙᵀ B Aᵀ uₙ.

    One Gram matrix of all responses holds B Aᵀ and A Aᵀ of every split.
    """
    order = np.arange(len(repeats[0]))
    # A large mean, that of a unit over all stimuli, would cost digits.
    mean = np.mean([each.mean(axis=0, dtype="float64") for each in repeats], axis=0)
    gram = gram_matrix(repeats, mean)

    def products(swapped: NDArray[np.bool_]) -> Pair:
        a, b = order + len(order) * swapped, order + len(order) * ~swapped
        return _centered(gram[np.ix_(a, a)]), _centered(gram[np.ix_(b, a)])

    return products


def _products_of_units(repeats: list[NDArray[np.floating]]) -> Products:
    """For more stimuli than units: the sums are vₙᵀ Aᵀ B vₙ."""

    def products(swapped: NDArray[np.bool_]) -> Pair:
        which = swapped[:, np.newaxis]
        a, b = np.where(which, *repeats[::-1]), np.where(which, *repeats)
        a, b = (each - each.mean(axis=0, dtype="float64") for each in (a, b))
        return a.T @ a, a.T @ b

    return products


def _centered(gram: NDArray[np.float64]) -> NDArray[np.float64]:
    """The Gram matrix of samples from which their means are taken."""
    rows, columns = gram.mean(axis=1, keepdims=True), gram.mean(axis=0)
    return np.asarray(gram - rows - columns + gram.mean())
