"""Noticing that a penalty is satisfied in a stale basis while the spectrum stays."""

from __future__ import annotations

import collections
from typing import NamedTuple

# A basis is stale if it shows less than half of the penalty, and this is worth a
# warning if it lasts for so many steps and refreshes …
STALE = 0.5
PATIENCE_IN_STEPS = 200
PATIENCE_IN_REFRESHES = 5
# … in which the exponent, farther than NEAR from its target, has come nearer by less
# than a twentieth.
NEAR = 0.2
NO_PROGRESS = 0.95


class _Observation(NamedTuple):
    step: int
    staleness: float
    distance: float  # of the exponent from its target


class StalenessWatch:
    """Looks at one layer's staleness and exponent, refresh by refresh.

    Args:
        alpha: The exponent that the penalty asks for.
    """

    def __init__(self, alpha: float) -> None:
        self._alpha = alpha
        self._recent: collections.deque[_Observation] = collections.deque()

    def observe(self, step: int, staleness: float, exponent: float) -> int | None:
        """Adds what a refresh has found.

        Args:
            step: The optimizer step of the refresh.
            staleness: The share of the penalty that the basis before it hid.
            exponent: The measured exponent.

        Returns:
            For how many steps the penalty has been satisfied in a stale basis, if that
            is worth a warning; the watch then begins anew. None otherwise.
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
            # What the first refresh found is of the time before.
            and all(seen.staleness > STALE for seen in later)
            and later[-1].distance > max(NEAR, NO_PROGRESS * first.distance)
        ):
            recent.clear()
            return steps
        return None

    @staticmethod
    def _is_enough(steps: int) -> bool:
        return steps >= PATIENCE_IN_STEPS
