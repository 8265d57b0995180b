"""What an attack is, and the random points that some begin with."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from keras_powerlaw.arguments import Tensor, installation_command
from keras_powerlaw.robustness.classifier import Classifier, Indices

Self = TypeVar("Self", bound="Attack")


class Batch(NamedTuple):
    """Some images to attack.

    Attributes:
        images: Shape `(batch, …)`.
        labels: Shape `(batch,)`.
        indices: Which images of the data these are, as seeds of what is random.
    """

    images: NDArray[np.float32]
    labels: NDArray[np.int64]
    indices: Indices

    def take(self, indices: Indices) -> Batch:
        """Some of the images."""
        return Batch(self.images[indices], self.labels[indices], self.indices[indices])


@dataclass(frozen=True, kw_only=True)
class Attack:
    """One attack and its parameters.

    A subclass defines `perturb()`, or `run()` where more than the perturbed images
    counts. Its fields that have the name of an option of `evaluate_robustness` take
    its value.

    Attributes:
        name: Its name in arguments and in JSON.
        title: Its name in figures.
        white_box: Whether it uses the gradient of the model.
        iterative: Whether more steps along the gradient make it stronger.
        follows_up: Whether it attacks only the images that the `follows_up` attacks
            before it did not break, and counts those they broke as broken.
        random: Whether its starts are draws, of which each is of all images, and not
            further tries on those that the earlier starts did not break.
        bounded: Whether a perturbation stays in the ball of radius ε.
        norm: Infinity or 2.
        clip: Smallest and largest pixel value, or None.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    white_box: ClassVar[bool] = False
    iterative: ClassVar[bool] = False
    follows_up: ClassVar[bool] = False
    random: ClassVar[bool] = False
    bounded: ClassVar[bool] = True

    norm: float = np.inf
    clip: tuple[float, float] | None = (0.0, 1.0)

    @classmethod
    def with_options(cls: type[Self], options: Mapping[str, Any]) -> Self:
        """The attack with the options of `evaluate_robustness` that concern it."""
        names = {field.name for field in dataclasses.fields(cls)}
        return cls(**{name: options[name] for name in names & options.keys()})

    @property
    def limits(self) -> tuple[float, float]:
        """Smallest and largest pixel value, which may be infinite."""
        return self.clip or (-np.inf, np.inf)

    def require(self, shape: tuple[int, ...], epsilon: float) -> None:
        """Raises an error, before anything is computed, if the attack cannot run.

        Args:
            shape: Shape of the images, `(M, …)`.
            epsilon: The largest strength.

        Raises:
            ImportError: If a package that it needs is missing.
            ValueError: If it cannot work on the images.
        """

    def starts(self) -> Sequence[Any]:
        """What each of its tries begins with, handed to `run()` one after another."""
        return [0]

    def perturb(
        self, classifier: Classifier, batch: Batch, epsilon: float, start: Any
    ) -> Tensor:
        """The perturbed images of a batch; the arguments are those of `run()`.

        Those of the base are the images themselves.
        """
        return batch.images

    def run(
        self, classifier: Classifier, batch: Batch, epsilon: float, start: Any = 0
    ) -> NDArray[np.bool_]:
        """Attacks one batch.

        Args:
            classifier: Maps images to logits.
            batch: Images and labels.
            epsilon: The strength ε, above 0.
            start: One of `starts()`.

        Returns:
            Which images are still classified correctly, shape `(batch,)`.
        """
        perturbed = self.perturb(classifier, batch, epsilon, start)
        return classifier.is_correct(perturbed, batch.labels)


def require_package(attack: str, module: str, title: str, extra: str) -> None:
    """Raises an `ImportError` that names the extra if a package cannot be imported."""
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f'The attack "{attack}" needs {title}, which cannot be imported. Install '
            f"it with: {installation_command(extra)}. The error was: {error}"
        ) from error


def ball_points(
    norm: float, shape: Sequence[int], key: Sequence[int], indices: Indices
) -> NDArray[np.float32]:
    """Random points of this shape, uniform in the ball of radius 1, one per index.

    A point depends on the key and the index only, not on the batch.
    """
    points = np.empty((len(indices), *shape), dtype=np.float32)
    for point, index in zip(points, indices, strict=True):
        rng = np.random.default_rng([*key, int(index)])
        if norm == 2:
            draw = rng.standard_normal(shape)
            radius = rng.random() ** (1 / draw.size)
            point[...] = radius * draw / np.linalg.norm(draw)
        else:
            point[...] = rng.uniform(-1, 1, shape)
    return points


def seed_of(epsilon: float) -> int:
    """An integer that represents ε in the seed of a random start."""
    return int(np.float64(epsilon).view(np.uint64))
