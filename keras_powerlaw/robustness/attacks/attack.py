"""What an attack is, and the random points that some begin with."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from keras_powerlaw.arguments import ReportProgress, Tensor, installation_command
from keras_powerlaw.robustness.classifier import Classifier, Indices


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

    def batches(self, indices: Indices, size: int) -> Iterator[Batch]:
        """Some of the images, in batches."""
        for start in range(0, len(indices), size):
            yield self.take(indices[start : start + size])


class Package(NamedTuple):
    """What an attack needs: a module, its name in words, the extra that has it."""

    module: str
    title: str
    extra: str


@dataclass(frozen=True, kw_only=True)
class Attack:
    """One attack, with the options of `evaluate_robustness`.

    A subclass defines `perturb()`, or `run()` where more than the perturbed images
    counts.

    Attributes:
        name: Its name in arguments and in JSON.
        title: Its name in figures.
        package: What it needs besides Keras, if anything.
        white_box: Whether it uses the gradient of the model.
        iterative: Whether more steps along the gradient make it stronger.
        follows_up: Whether it attacks only the images that the `follows_up` attacks
            before it did not break, and counts those they broke as broken.
        random: Whether its starts are draws, of which each is of all images, and not
            further tries on those that the earlier starts did not break.
        bounded: Whether a perturbation stays in the ball of radius ε.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    package: ClassVar[Package | None] = None
    white_box: ClassVar[bool] = False
    iterative: ClassVar[bool] = False
    follows_up: ClassVar[bool] = False
    random: ClassVar[bool] = False
    bounded: ClassVar[bool] = True

    norm: float = np.inf
    clip: tuple[float, float] | None = (0.0, 1.0)
    pgd_steps: int = 40
    pgd_step_size: float = 0.01
    restarts: int = 2
    noise_draws: int = 1
    seed: int = 0

    @property
    def limits(self) -> tuple[float, float]:
        """Smallest and largest pixel value, without `clip` those of float32."""
        largest = float(np.finfo("float32").max)  # infinity alarms debugging aids
        return self.clip or (-largest, largest)

    def require(self, shape: tuple[int, ...], epsilon: float) -> None:
        """Raises an error, before anything is computed, if the attack cannot run.

        Args:
            shape: Shape of the images, `(M, …)`.
            epsilon: The largest strength.

        Raises:
            ImportError: If a package that it needs is missing.
            ValueError: If it cannot work on the images.
        """
        if self.package is None:
            return
        try:
            importlib.import_module(self.package.module)
        except ImportError as error:
            raise ImportError(
                f'The attack "{self.name}" needs {self.package.title}, which cannot be '
                f"imported. Install it with: {installation_command(self.package.extra)}"
                f". The error was: {error}"
            ) from error

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

    def run_all(
        self,
        classifier: Classifier,
        data: Batch,
        epsilon: float,
        indices: Indices,
        show: ReportProgress = lambda fraction: None,
    ) -> NDArray[np.bool_]:
        """Which of all images are among `indices` and withstand the attack.

        Returns:
            One row, or one for each draw of a random attack: shape `(rows, M)`.
        """
        starts = self.starts()
        correct = np.zeros((len(starts), len(data.images)), dtype=bool)
        for number, start in enumerate(starts):
            done = 0
            for batch in data.batches(indices, classifier.batch_size):
                unbroken = self.run(classifier, batch, epsilon, start)
                correct[number, batch.indices] = unbroken
                done += len(unbroken)
                show((number + done / len(indices)) / len(starts))
            if not self.random:  # a further start is tried on what is left
                indices = indices[correct[number, indices]]
        return correct if self.random else correct[-1:]


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
