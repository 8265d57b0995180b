"""What an attack is, and what it needs."""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from keras_powerlaw.robustness.problem import Settings


@dataclass(frozen=True)
class Requirement:
    """A package that an attack needs.

    Attributes:
        module: What is imported.
        title: What people call it.
        extra: The extra of `setup.py` that installs it.
        unless_on: A Keras backend on which the attack does without, or None.
    """

    module: str
    title: str
    extra: str
    unless_on: str | None = None


@dataclass(frozen=True)
class Attack:
    """One attack, as `evaluate_robustness` runs it and reports show it.

    An attack is a function

        run(problem, epsilon, indices, progress)

    of a `Problem`, the strength ε > 0, the indices of the images to attack, and a
    function to report progress to, from 0 to 1. It returns which of these images are
    classified correctly still, bool of shape `(len(indices),)`, or
    `(draws, len(indices))` if it draws several times for each image.

    Attributes:
        name: What users call it, and reports in JSON.
        title: What figures call it.
        function: `"module:function"` in this folder. It is imported when it runs, so
            that reports are read without Keras.
        white_box: Whether it uses the gradient of the model.
        iterative: Whether it is the better for more steps along the gradient.
        follows_up: Whether it attacks only the images that those with this mark, above
            it in the table, have left, and counts what these broke as broken.
        random: Whether it draws `noise_draws` times for each image.
        bounded: Whether a perturbation stays in the ball of radius ε.
        requires: The package that it needs, or None.
        precondition: `"module:function"`, a function of the shape of the images and the
            settings that raises a `ValueError` where the attack cannot work, or None.
    """

    name: str
    title: str
    function: str
    white_box: bool = False
    iterative: bool = False
    follows_up: bool = False
    random: bool = False
    bounded: bool = True
    requires: Requirement | None = None
    precondition: str | None = None

    @property
    def run(self) -> Any:
        """The attack's function."""
        return _resolve(self.function)

    def prepare(self, shape: tuple[int, ...], settings: Settings, backend: str) -> None:
        """Raises, before anything is computed, where the attack cannot run.

        Args:
            shape: Of the images, `(M, …)`.
            settings: The settings.
            backend: The Keras backend.

        Raises:
            ImportError: If a package is missing.
            ValueError: If the images do not suit the attack.
        """
        if self.requires is not None and self.requires.unless_on != backend:
            try:
                importlib.import_module(self.requires.module)
            except ImportError as error:
                raise ImportError(
                    f'The attack "{self.name}" needs {self.requires.title}. Install it '
                    f"with: pip install keras_powerlaw[{self.requires.extra}]"
                ) from error
        if self.precondition is not None:
            _resolve(self.precondition)(shape, settings)


def _resolve(name: str) -> Any:
    return pkgutil.resolve_name(f"{__package__}.{name}")
