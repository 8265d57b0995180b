"""When the eigenbasis is due for a refresh."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from keras_powerlaw.arguments import validate_optional_integer

# Often enough for the penalty to change the true spectrum; docs/benchmarks.md compares
# other intervals.
DEFAULT_EVERY_STEPS = 20
# A basis from the training steps costs narrow layers little, and brings the spectrum
# nearer to the target the more often it is renewed: docs/benchmarks.md again.
FEWEST_STEPS = 5
UNITS_PER_STEP = 25


def default_steps(units: int) -> int:
    """Steps between refreshes of a layer from the training steps, by its width."""
    return int(np.clip(units // UNITS_PER_STEP, FEWEST_STEPS, DEFAULT_EVERY_STEPS))


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Refreshes at the start of epochs, at an interval of steps, or both.

    The first refresh is due at once, before the first epoch or the first step.

    Attributes:
        every_epochs: Refresh at the start of every `every_epochs`-th epoch, or of no
            epoch if None.
        every_steps: Refresh `every_steps` optimizer steps after the last refresh, or
            only at the start of epochs if None.
    """

    every_epochs: int | None
    every_steps: int | None

    @classmethod
    def from_arguments(cls, every_epochs: Any, every_steps: Any) -> Schedule:
        """The schedule for a callback's arguments, at most one of which is given."""
        epochs = validate_optional_integer("every_epochs", every_epochs, minimum=1)
        steps = validate_optional_integer("every_steps", every_steps, minimum=1)
        if epochs is not None and steps is not None:
            raise ValueError(
                "Give `every_epochs` or `every_steps`, not both. Received: "
                f"every_epochs={every_epochs}, every_steps={every_steps}"
            )
        if epochs is None and steps is None:
            return cls(every_epochs=1, every_steps=DEFAULT_EVERY_STEPS)
        return cls(epochs, steps)

    @property
    def of_windows(self) -> Schedule:
        """The same for a basis from training steps, where epochs make no difference.

        Unless refreshes at their start are all that was asked for.
        """
        if self.every_steps is not None:
            return Schedule(every_epochs=None, every_steps=self.every_steps)
        return self

    def measures(self, index: int) -> bool:
        """Whether refresh number `index` also measures what is logged.

        For a narrow layer, that takes longer than the new basis.
        """
        return (
            index % -(-DEFAULT_EVERY_STEPS // (self.every_steps or DEFAULT_EVERY_STEPS))
            == 0
        )

    def due_at_epoch(self, epoch: int, last_refresh: int | None) -> bool:
        """Whether to refresh at the start of an epoch.

        Args:
            epoch: Index of the epoch, from 0.
            last_refresh: The step of the last refresh, or None if there was none.
        """
        return self.every_epochs is not None and (
            epoch % self.every_epochs == 0 or last_refresh is None
        )

    def due_at_step(self, step: int, last_refresh: int | None) -> bool:
        """Whether to refresh before a step, counted from the start of training."""
        return last_refresh is None or (
            self.every_steps is not None and step - last_refresh >= self.every_steps
        )
