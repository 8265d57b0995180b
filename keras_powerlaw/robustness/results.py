"""The results of an evaluation in progress."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keras_powerlaw.robustness.attacks.attack import Attack
from keras_powerlaw.robustness.problem import Settings
from keras_powerlaw.robustness.report import RobustnessReport


class Results:
    """The finished results, attack by attack and strength by strength.

    Args:
        names: Names of the requested attacks.

    Attributes:
        clean: Which unperturbed images are classified correctly, or None if not yet
            measured.
        correct: The same under each attack: one row per finished strength.
        draw_accuracy: With several draws of noise, the accuracy in each: likewise.
        checks: The figures measured for the flags.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.clean: NDArray[np.bool_] | None = None
        self.correct: dict[str, list[NDArray[np.bool_]]] = {name: [] for name in names}
        self.draw_accuracy: dict[str, list[list[float]]] = {}
        self.checks: dict[str, Any] = {}

    def has(self, attack: Attack, row: int) -> bool:
        """Whether an attack is finished at the strength with index `row`."""
        return row < len(self.correct[attack.name])

    def add(self, attack: Attack, correct: NDArray[np.bool_]) -> None:
        """Adds the next strength of an attack, `correct` of shape `(draws, images)`."""
        in_every_draw: NDArray[np.bool_] = np.all(correct, axis=0)
        self.correct[attack.name].append(in_every_draw)
        if len(correct) > 1:
            accuracies = self.draw_accuracy.setdefault(attack.name, [])
            accuracies.append(correct.mean(axis=1).tolist())

    def report(self, epsilons: Sequence[float], settings: Settings) -> RobustnessReport:
        """The report of the finished results."""
        return RobustnessReport(
            epsilons=np.array(epsilons, dtype=np.float64),
            clean_correct=np.array(self.clean),
            correct={name: np.array(rows) for name, rows in self.correct.items()},
            settings=settings.reported(),
            draw_accuracy={
                name: np.array(rows).T for name, rows in self.draw_accuracy.items()
            },
            checks=self.checks,
        )
