"""Detecting a penalty that is satisfied in a stale basis, but not by the spectrum."""

from __future__ import annotations

import collections
from typing import NamedTuple

# A basis is stale if it shows less than half of the penalty. A warning is due if every
# basis was stale for at least this many steps and refreshes …
STALE = 0.5
PATIENCE_IN_STEPS = 200
PATIENCE_IN_REFRESHES = 5
# … while the exponent, still more than NEAR from its target, has covered less than a
# twentieth of the distance. The samples of a window are few enough to move it by 0.15.
NEAR = 0.25
NO_PROGRESS = 0.95


class _Observation(NamedTuple):
    step: int
    staleness: float
    distance: float  # of the exponent from its target


class StalenessWatch:
    """Watches one layer's staleness and exponent, refresh by refresh.

    Args:
        alpha: The target exponent α of the penalty.
    """

    def __init__(self, alpha: float) -> None:
        self._alpha = alpha
        self._recent: collections.deque[_Observation] = collections.deque()

    def observe(self, step: int, staleness: float, exponent: float) -> int | None:
        """Adds the measurements of a refresh.

        Args:
            step: The optimizer step of the refresh.
            staleness: The share of the penalty that the previous basis hid.
            exponent: The measured exponent.

        Returns:
            The number of steps for which the penalty has been satisfied in a stale
            basis, if that is worth a warning; the watch then starts over. None
            otherwise.
        """
        recent = self._recent
        recent.append(_Observation(step, staleness, abs(exponent - self._alpha)))
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
            and later[-1].distance > max(NEAR, NO_PROGRESS * first.distance)
        ):
            recent.clear()
            return steps
        return None

    @staticmethod
    def _is_enough(steps: int) -> bool:
        return steps >= PATIENCE_IN_STEPS
