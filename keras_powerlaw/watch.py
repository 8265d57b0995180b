"""Detecting a penalty that leaves the spectrum where it is, and saying so."""

from __future__ import annotations

import collections
import warnings
from typing import NamedTuple

import numpy as np

from keras_powerlaw.penalty import Target
from keras_powerlaw.regularizer import SpectralActivityRegularizer
from keras_powerlaw.spectrum import Spectrum

# A basis is stale if it shows less than half of the penalty. A warning is due if every
# basis was stale for at least this many steps and refreshes …
STALE = 0.5
PATIENCE_IN_STEPS = 200
PATIENCE_IN_REFRESHES = 5
# … while the exponent, still more than NEAR from its target, has covered less than a
# twentieth of the distance. The samples of a window are few enough to move it by 0.15.
NEAR = 0.25
NO_PROGRESS = 0.95
# At the end of a training of as many steps and refreshes, a spectrum is worth a warning
# that is more than FAR from its target, half of its eigenvalues by a factor of 1.6, and
# has covered less than half of the way.
FAR = 0.5
HALFWAY = 0.5


class _Observation(NamedTuple):
    step: int
    staleness: float
    spectrum: Spectrum


class Shortfall(NamedTuple):
    """How little a penalty has done between the first refresh and the last."""

    steps: int
    exponents: tuple[float, float]
    distances: tuple[float, float]


class PenaltyWatch:
    """Watches one layer's staleness and spectrum, refresh by refresh.

    Args:
        target: The target of the penalty.
        tau: Index τ of the first eigenvalue that it concerns.
    """

    def __init__(self, target: Target, tau: int) -> None:
        self._target = target
        self._tau = tau
        self._recent: collections.deque[_Observation] = collections.deque()
        self._first: _Observation | None = None
        self._count = 0
        self._was_stale = False

    def observe(self, step: int, staleness: float, spectrum: Spectrum) -> int | None:
        """Adds the measurements of a refresh.

        Args:
            step: The optimizer step of the refresh.
            staleness: The share of the penalty that the previous basis hid.
            spectrum: The measured spectrum.

        Returns:
            The number of steps for which the penalty has been satisfied in a stale
            basis, if that is worth a warning; the watch then starts over. None
            otherwise.
        """
        self._last = _Observation(step, staleness, spectrum)
        self._first = self._first or self._last
        self._count += 1
        recent = self._recent
        recent.append(self._last)
        while len(recent) - 1 > PATIENCE_IN_REFRESHES and self._is_enough(
            step - recent[1].step
        ):
            recent.popleft()
        first, *later = recent
        steps = step - first.step
        if (
            len(later) >= PATIENCE_IN_REFRESHES
            and self._is_enough(steps)
            # The staleness at the first refresh belongs to the steps before it.
            and all(refresh.staleness > STALE for refresh in later)
            and self._difference(later[-1])
            > max(NEAR, NO_PROGRESS * self._difference(first))
        ):
            recent.clear()
            self._was_stale = True
            return steps
        return None

    def shortfall(self) -> Shortfall | None:
        """How the spectrum has moved, if that is less than the penalty should do.

        Returns:
            None if that is not worth a warning at the end of training, or `observe()`
            has given one.
        """
        if self._first is None or self._was_stale:
            return None
        first, last = self._first, self._last
        steps = last.step - first.step
        if self._count <= PATIENCE_IN_REFRESHES or not self._is_enough(steps):
            return None
        distances = self._distance(first.spectrum), self._distance(last.spectrum)
        if distances[1] > max(FAR, HALFWAY * distances[0]):
            exponents = first.spectrum.exponent, last.spectrum.exponent
            return Shortfall(steps, exponents, distances)
        return None

    def _difference(self, refresh: _Observation) -> float:
        """Of the exponent from that of the target, in the same range."""
        spectrum = refresh.spectrum
        if np.isnan(spectrum.exponent):  # too short for a fit
            return np.nan
        n = np.arange(1, len(spectrum.eigenvalues) + 1)
        target = Spectrum(self._target.levels(n), spectrum.fit_range)
        return abs(spectrum.exponent - target.exponent)

    def _distance(self, spectrum: Spectrum) -> float:
        """From the target, to the middle: the end is the noise of few samples."""
        units = len(spectrum.eigenvalues)
        last = units // 2 if units // 2 > self._tau else units
        return spectrum.distance(self._target, (self._tau, last)).median

    @staticmethod
    def _is_enough(steps: int) -> bool:
        return steps >= PATIENCE_IN_STEPS

    def warn_of_stale_basis(
        self, name: str, regularizer: SpectralActivityRegularizer, steps: int
    ) -> None:
        larger_gradient = (
            ', or, on a batch-normalized layer, take `form="log"`, whose gradient is '
            "larger"
            if regularizer.form != "log"
            else ""
        )
        warnings.warn(
            f"The penalty of layer '{name}' is satisfied in a stale basis: for "
            f"{steps} steps, the basis showed less than half of it at every refresh, "
            f"and the exponent, {self._last.spectrum.exponent:.2f}, has come no nearer "
            f"to the target, {self._target}. Refresh more often, with a smaller "
            f"`every_steps`{larger_gradient}.",
            stacklevel=2,
        )

    def warn_of_shortfall(
        self, name: str, regularizer: SpectralActivityRegularizer
    ) -> None:
        """Warns, at the end of training, of a penalty that has done too little."""
        shortfall = self.shortfall()
        if shortfall is None or not regularizer.beta:
            return
        steps, exponents, distances = shortfall
        warnings.warn(
            f"The penalty of layer '{name}' has not brought its spectrum near the "
            f"target, {self._target}: in {steps} steps, its distance, the median of "
            "|log λ/γ|, went from {:.2f} to {:.2f}".format(*distances)
            + ", and the exponent from {:.2f} to {:.2f}. ".format(*exponents)
            + "Train for longer or with a larger learning rate; without batch "
            "normalization, take `tau` at or above the number of classes; or raise "
            "`beta`.",
            stacklevel=2,
        )
