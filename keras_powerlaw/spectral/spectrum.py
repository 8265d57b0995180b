"""A covariance spectrum and the figures that describe it."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from keras_powerlaw.arguments import invalid_value, validate_number
from keras_powerlaw.spectral.fits import PowerLawFits
from keras_powerlaw.spectral.recordings import eigenvalues_of


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
        seed: int = 0,
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
            components: Compute only so many of the largest eigenvalues, by a randomized
                block Lanczos method, where all of them would take too long: to 1e-3 of
                themselves, most much better. Defaults to `None`: all.
            seed: Seed of the method's random start. Defaults to 0.

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
        eigenvalues, floor, variance = eigenvalues_of(samples, components, seed)
        return cls(eigenvalues, fit_range, floor, variance)

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
        squares = np.sum(self.eigenvalues**2)
        return float(np.sum(self.eigenvalues) ** 2 / squares) if squares else 0.0

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
