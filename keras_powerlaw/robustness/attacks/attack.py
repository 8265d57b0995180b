"""The description of an attack and of its requirements."""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from keras_powerlaw.arguments import installation_command

if TYPE_CHECKING:
    from keras_powerlaw.robustness.problem import Settings


@dataclass(frozen=True)
class Requirement:
    """A package that an attack needs.

    Attributes:
        module: The module to import.
        title: The name of the package in error messages.
        extra: The extra in `setup.py` that installs it.
        unless_on: A Keras backend on which the attack does not need it, or None.
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
    function that is called with the fraction of the work done. It returns which of
    these images are still classified correctly: bool, of shape `(len(indices),)`, or
    `(draws, len(indices))` if it draws several times per image.

    Attributes:
        name: Its name in arguments and in JSON.
        title: Its name in figures.
        function: `"module:function"` in this folder, imported only when the attack
            runs, so that reports can be read without Keras.
        white_box: Whether it uses the gradient of the model.
        iterative: Whether more steps along the gradient make it stronger.
        follows_up: Whether it attacks only the images that the `follows_up` attacks
            above it in the table did not break, and counts those they broke as broken.
        random: Whether it draws `noise_draws` times per image.
        bounded: Whether a perturbation stays in the ball of radius ε.
        requires: The package that it needs, or None.
        precondition: `"module:function"`, called with the shape of the images and the
            settings, which raises a `ValueError` if the attack cannot work; or None.
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
        """Raises an error, before anything is computed, if the attack cannot run.

        Args:
            shape: Shape of the images, `(M, …)`.
            settings: The settings.
            backend: The Keras backend.

        Raises:
            ImportError: If the package that it needs is missing.
            ValueError: If the attack cannot work on the images.
        """
        if self.requires is not None and self.requires.unless_on != backend:
            try:
                importlib.import_module(self.requires.module)
            except ImportError as error:
                raise ImportError(
                    f'The attack "{self.name}" needs {self.requires.title}. Install it '
                    f"with: {installation_command(self.requires.extra)}"
                ) from error
        if self.precondition is not None:
            _resolve(self.precondition)(shape, settings)


def _resolve(name: str) -> Any:
    return pkgutil.resolve_name(f"{__package__}.{name}")
