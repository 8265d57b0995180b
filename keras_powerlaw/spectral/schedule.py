"""When the eigenbasis is due to be renewed."""

from __future__ import annotations

import dataclasses
from typing import Any

from keras_powerlaw.support.arguments import validate_optional_integer

# As often as it takes for the penalty to reach the real spectrum: docs/benchmarks.md
# has what refreshing more and less often does.
DEFAULT_EVERY_STEPS = 20


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Refreshes at the start of epochs, after so many steps, or both.

    The first epoch of a training always begins with a refresh, or its first step.

    Attributes:
        every_epochs: Refresh at the start of every so many epochs; None for none.
        every_steps: Refresh every so many optimizer steps; None for none.
    """

    every_epochs: int | None
    every_steps: int | None

    @classmethod
    def from_arguments(cls, every_epochs: Any, every_steps: Any) -> Schedule:
        """The schedule of a callback's arguments, of which one at most is given."""
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
        """Whether to refresh before a step, counted from the start of the training."""
        return self.every_steps is not None and (
            last_refresh is None or step - last_refresh >= self.every_steps
        )
