"""Noticing a penalty that leaves the spectrum where it is, and saying so."""

from __future__ import annotations

import collections
import warnings
from typing import NamedTuple

import numpy as np

from keras_powerlaw.spectrum import Spectrum
from keras_powerlaw.targets import Target

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


class _Refresh(NamedTuple):
    step: int
    staleness: float
    spectrum: Spectrum


class PenaltyWatch:
    """Watches one layer's staleness and spectrum, refresh by refresh.

    Args:
        name: The name of the layer, for warnings.
        target: The target of the penalty.
        tau: Index τ of the first eigenvalue that it concerns.
    """

    def __init__(self, name: str, target: Target, tau: int) -> None:
        self._name = name
        self._target = target
        self._tau = tau
        self._recent: collections.deque[_Refresh] = collections.deque()
        self._first: _Refresh | None = None
        self._count = 0
        self._was_stale = False

    def observe(self, step: int, staleness: float, spectrum: Spectrum) -> None:
        """Adds what a refresh has measured; warns of a basis that stays stale.

        Args:
            step: The optimizer step of the refresh.
            staleness: The share of the penalty that the previous basis hid.
            spectrum: The measured spectrum.
        """
        self._last = _Refresh(step, staleness, spectrum)
        self._first = self._first or self._last
        self._count += 1
        recent = self._recent
        recent.append(self._last)
        while (
            len(recent) - 1 > PATIENCE_IN_REFRESHES
            and step - recent[1].step >= PATIENCE_IN_STEPS
        ):
            recent.popleft()
        first, *later = recent
        steps = step - first.step
        # The staleness at the first refresh belongs to the steps before it.
        is_stale = all(refresh.staleness > STALE for refresh in later)
        if (
            len(later) < PATIENCE_IN_REFRESHES
            or steps < PATIENCE_IN_STEPS
            or not is_stale
        ):
            return
        still, before = self._difference(spectrum), self._difference(first.spectrum)
        if still > max(NEAR, NO_PROGRESS * before):
            recent.clear()
            self._was_stale = True
            warnings.warn(
                f"The penalty of layer '{self._name}' is satisfied in a stale basis: "
                f"for {steps} steps, the basis showed less than half of it at every "
                f"refresh, and the exponent, {spectrum.exponent:.2f}, has come no "
                f"nearer to the target, {self._target}. Refresh more often, with a "
                "smaller `every_steps`, or, on a batch-normalized layer, take "
                '`form="log"`, whose gradient is larger.',
                stacklevel=2,
            )

    def end(self) -> None:
        """Warns, at the end of training, of a spectrum far from its target."""
        first = self._first
        if first is None or self._was_stale or self._count <= PATIENCE_IN_REFRESHES:
            return
        steps = self._last.step - first.step
        before, after = (self._distance(each.spectrum) for each in (first, self._last))
        if steps >= PATIENCE_IN_STEPS and after > max(FAR, HALFWAY * before):
            rank, units = self._last.spectrum.rank, len(self._last.spectrum.eigenvalues)
            advice = (
                "Train for longer or with a larger learning rate; without batch "
                "normalization, take `tau` at or above the number of classes; or raise "
                "`beta`."
            )
            if rank <= units // 2:
                advice = (
                    f"It can't be reached: the activations vary in {rank} of {units} "
                    "directions only, as those of a linear layer behind fewer inputs "
                    "do, or dead units."
                )
            warnings.warn(
                f"The penalty of layer '{self._name}' has not brought its spectrum "
                f"near the target, {self._target}: in {steps} steps, its distance, the "
                f"median of |log λ/γ|, went from {before:.2f} to {after:.2f}, and the "
                f"exponent from {first.spectrum.exponent:.2f} to "
                f"{self._last.spectrum.exponent:.2f}. {advice}",
                stacklevel=2,
            )

    def _difference(self, spectrum: Spectrum) -> float:
        """Of the exponent from that of the target, in the same range."""
        if np.isnan(spectrum.exponent):  # too short for a fit
            return float("nan")
        n = np.arange(1, len(spectrum.eigenvalues) + 1)
        target = Spectrum(self._target.levels(n), spectrum.fit_range)
        return abs(spectrum.exponent - target.exponent)

    def _distance(self, spectrum: Spectrum) -> float:
        """From the target, to the middle: the end is the noise of few samples."""
        units = len(spectrum.eigenvalues)
        last = units // 2 if units // 2 > self._tau else units
        return spectrum.distance(self._target, (self._tau, last)).median
