"""Accuracy under FGSM, PGD and white noise."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any, Literal

import keras
import numpy as np
from numpy.typing import ArrayLike, NDArray

from keras_powerlaw.activity import Progress, observe
from keras_powerlaw.attacks import Attack, gradient_attacks
from keras_powerlaw.errors import invalid_value

ATTACKS = ("fgsm", "pgd", "noise")

# Perturbs the images of one slice of the data set by a given epsilon.
_Perturbation = Callable[[slice, float], Any]


@dataclass(frozen=True, eq=False)
class RobustnessReport:
    """Which images a model classifies correctly under each attack and strength.

    `str(report)` is a table of the accuracies. Two reports are equal when they
    hold the same results and settings.

    Attributes:
        epsilons: The E attack strengths, in units of pixel values. Shape `(E,)`,
            float64.
        clean_correct: Whether each unperturbed image is classified correctly.
            Shape `(M,)`, bool.
        correct: The same for each attack, strength and image. Attack name to
            array of shape `(E, M)`, bool.
        settings: The options of `evaluate_robustness` that shape the result, by
            the names of its arguments.

    Example:

    ```python
    import keras_powerlaw as kp
    import numpy as np

    report = kp.RobustnessReport(
        epsilons=np.array([0.1, 0.2]),
        clean_correct=np.array([True, True]),
        correct={"fgsm": np.array([[True, False], [False, False]])},
    )
    report.accuracy["fgsm"]  # array([0.5, 0. ])
    restored = kp.RobustnessReport.from_json(report.to_json())
    ```
    """

    epsilons: NDArray[np.float64]
    clean_correct: NDArray[np.bool_]
    correct: dict[str, NDArray[np.bool_]]
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def clean_accuracy(self) -> float:
        """Fraction of the unperturbed images classified correctly."""
        return float(self.clean_correct.mean())

    @property
    def accuracy(self) -> dict[str, NDArray[np.float64]]:
        """Fraction classified correctly: attack name to array of shape `(E,)`."""
        return {name: rows.mean(axis=1) for name, rows in self.correct.items()}

    def to_json(self) -> str:
        """Returns the report as JSON text, one character per image and result."""
        return json.dumps(
            {
                "epsilons": self.epsilons.tolist(),
                "clean_correct": _to_bits(self.clean_correct),
                "correct": {
                    name: [_to_bits(row) for row in rows]
                    for name, rows in self.correct.items()
                },
                "settings": self.settings,
            }
        )

    @classmethod
    def from_json(cls, text: str) -> RobustnessReport:
        """Restores a report from the text that `to_json` returned.

        Args:
            text: The JSON text.

        Returns:
            A report equal to the one that was written.

        Raises:
            ValueError: If `text` is not the JSON text of a report.
        """
        try:
            state = json.loads(text)
            return cls(
                epsilons=np.array(state["epsilons"], dtype=np.float64),
                clean_correct=_from_bits(state["clean_correct"]),
                correct={
                    name: np.stack([_from_bits(row) for row in rows])
                    for name, rows in state["correct"].items()
                },
                settings=state["settings"],
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise invalid_value(
                "text", "the text returned by `RobustnessReport.to_json`", text
            ) from error

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RobustnessReport):
            return NotImplemented
        return self.to_json() == other.to_json()

    def __str__(self) -> str:
        per_attack = list(self.accuracy.values())
        rows = [("clean", [self.clean_accuracy] * len(per_attack))]
        for index, epsilon in enumerate(self.epsilons):
            rows.append((f"{epsilon:g}", [values[index] for values in per_attack]))

        lines = [f"Accuracy in % on {self.clean_correct.size} images"]
        lines.append("   epsilon" + "".join(f"{name:>8}" for name in self.correct))
        for name, accuracies in rows:
            cells = "".join(f"{100 * accuracy:8.1f}" for accuracy in accuracies)
            lines.append(f"{name:>10}{cells}")
        return "\n".join(lines)


def evaluate_robustness(
    model: keras.Model,
    x: ArrayLike,
    y: ArrayLike,
    epsilons: ArrayLike,
    attacks: Sequence[str] = ATTACKS,
    *,
    pgd_steps: int = 40,
    pgd_step_size: float = 0.01,
    clip: tuple[float, float] | None = (0.0, 1.0),
    batch_size: int = 500,
    seed: int = 0,
    verbose: Literal["auto", 0, 1] = "auto",
) -> RobustnessReport:
    """Measures a classifier's accuracy under attacks of growing strength.

    For an image `s` with label `y`, cross-entropy loss `L` and model `f`:

    ```
    fgsm    s + ε sign(∇ₛ L(f(s), y))
    pgd     s + δ, from δ = 0 by δ ← Proj(δ + η sign(∇_δ L(f(s + δ), y)))
    noise   s + ε z,  z standard normal
    ```

    where `Proj` limits every entry of δ to [−ε, ε] and `η` is `pgd_step_size`.
    The sign in the PGD step makes it the steepest ascent in the maximum norm,
    in which ε is measured. Perturbed images are limited to `clip`.

    The model is called with `training=False`. The attacks need its logits: a
    softmax at the end of a Sequential or Functional model is left out for the
    evaluation, and the model is as before afterwards. Where the loss gradient of
    an image is exactly zero, FGSM and PGD do not move it; a very confident model
    can look robust for this reason.

    Args:
        model: A built Keras model with one input and one output, the logits of
            at least two classes, shape `(batch, classes)`.
        x: Images, shape `(M, ...)`, numbers within `clip`.
        y: Integer labels, shape `(M,)`, from 0 to `classes - 1`.
        epsilons: Attack strengths in units of pixel values, shape `(E,)`, at
            least 0 and strictly increasing: the largest change of a pixel for
            `"fgsm"` and `"pgd"`, the standard deviation for `"noise"`.
        attacks: Which of `"fgsm"`, `"pgd"` and `"noise"` to run. The first two
            need cleverhans, except on the JAX backend. Defaults to all.
        pgd_steps: Number of PGD steps, at least 1. Defaults to 40.
        pgd_step_size: Size η of a PGD step in units of pixel values, above 0. It
            is reduced to ε where ε is smaller. Defaults to 0.01.
        clip: Smallest and largest pixel value, or None for no limits. Defaults to
            `(0.0, 1.0)`.
        batch_size: Images per batch, at least 1. Defaults to 500.
        seed: Seed of the white noise, at least 0. One draw serves all strengths.
            Defaults to 0.
        verbose: `"auto"` shows progress when the evaluation is slow, 0 never, 1
            always. Defaults to `"auto"`.

    Returns:
        A `RobustnessReport`.

    Raises:
        ValueError: If an argument is invalid, or the model returns probabilities
            or NaN.
        ImportError: If `"fgsm"` or `"pgd"` is asked for without cleverhans.

    Example:

    ```python
    import keras
    import keras_powerlaw as kp
    import numpy as np

    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    rng = np.random.default_rng(0)
    x, y = rng.random((20, 4)), rng.integers(3, size=20)
    report = kp.evaluate_robustness(model, x, y, epsilons=[0.05, 0.1], pgd_steps=10)
    print(report)
    ```

    Reference:
        [Nassar et al., 2020](https://arxiv.org/abs/2012.04729), equation (6) for
        FGSM and equations (7) and (8) for PGD, with its 40 steps of 0.01.
    """
    clip = _check_clip(clip)
    images = _check_images(x, model, clip)
    strengths = _check_epsilons(epsilons)
    attacks = _check_attacks(attacks)
    _check_integer("pgd_steps", pgd_steps, minimum=1)
    _check_integer("batch_size", batch_size, minimum=1)
    _check_integer("seed", seed, minimum=0)
    if not _is_finite_number(pgd_step_size) or pgd_step_size <= 0:
        raise invalid_value("pgd_step_size", "a finite number above 0", pgd_step_size)
    if verbose not in ("auto", 0, 1):
        raise invalid_value("verbose", '"auto", 0 or 1', verbose)
    reach = pgd_steps * pgd_step_size
    if (
        "pgd" in attacks
        and reach < strengths[-1]
        and not math.isclose(reach, strengths[-1])
    ):
        warnings.warn(
            f"{pgd_steps} PGD steps of {pgd_step_size:g} change a pixel by at most "
            f"{reach:g}, less than the largest epsilon, "
            f"{strengths[-1]:g}. Raise `pgd_steps` or `pgd_step_size`.",
            stacklevel=2,
        )

    # Observing no layer only makes the regularizers step aside.
    with _without_softmax(model) as logits_model, observe(logits_model, []):
        classes = _count_classes(logits_model, images[:batch_size])
        labels = _check_labels(y, len(images), classes)

        perturbations: dict[str, _Perturbation] = {}
        if "noise" in attacks:
            perturbations["noise"] = _white_noise(images, clip, seed)
        if "fgsm" in attacks or "pgd" in attacks:
            for name, attack in gradient_attacks(
                logits_model, clip, pgd_steps, pgd_step_size
            ).items():
                perturbations[name] = _on_slices(attack, images, labels)

        clean_correct = np.empty(len(images), dtype=bool)
        correct = {
            name: np.empty((len(strengths), len(images)), dtype=bool)
            for name in attacks
        }
        starts = range(0, len(images), batch_size)
        progress = Progress("Robustness", verbose)
        total, done = len(starts) * len(attacks) * len(strengths), 0
        for start in starts:
            batch = slice(start, start + batch_size)
            clean_correct[batch] = _is_correct(
                logits_model, images[batch], labels[batch]
            )
            for name in attacks:
                for row, epsilon in enumerate(strengths):
                    if epsilon == 0.0:
                        correct[name][row, batch] = clean_correct[batch]
                    else:
                        perturbed = perturbations[name](batch, epsilon)
                        correct[name][row, batch] = _is_correct(
                            logits_model, perturbed, labels[batch]
                        )
                    done += 1
                    progress.update(done, total)
        progress.finish()

    return RobustnessReport(
        epsilons=np.array(strengths, dtype=np.float64),
        clean_correct=clean_correct,
        correct=correct,
        settings={
            "pgd_steps": int(pgd_steps),
            "pgd_step_size": float(pgd_step_size),
            "clip": None if clip is None else list(clip),
            "seed": int(seed),
        },
    )


def _on_slices(
    attack: Attack, images: NDArray[np.float32], labels: NDArray[np.int64]
) -> _Perturbation:
    return lambda batch, epsilon: attack(images[batch], labels[batch], epsilon)


def _white_noise(
    images: NDArray[np.float32], clip: tuple[float, float] | None, seed: int
) -> _Perturbation:
    # Drawn for all images at once, so that the batch size changes nothing.
    noise = np.random.default_rng(seed).standard_normal(images.shape, dtype=np.float32)

    def perturb(batch: slice, epsilon: float) -> NDArray[np.float32]:
        noisy = images[batch] + epsilon * noise[batch]
        return noisy if clip is None else np.clip(noisy, *clip)

    return perturb


@contextmanager
def _without_softmax(model: keras.Model) -> Iterator[keras.Model]:
    """Yields a model that returns the logits of `model`, which it then restores."""
    layer = _output_layer(model)
    if isinstance(layer, keras.layers.Softmax) and layer.output is model.outputs[0]:
        yield keras.Model(model.inputs[0], layer.input)
    elif getattr(layer, "activation", None) is keras.activations.softmax:
        layer.activation = keras.activations.linear
        try:
            yield model
        finally:
            layer.activation = keras.activations.softmax
    else:
        yield model


def _output_layer(model: keras.Model) -> Any:
    """Returns the layer that makes the output of `model` and nothing else."""
    if isinstance(model, keras.Sequential):
        return model.layers[-1]
    if isinstance(model, keras.Function):
        # Ordered by depth: a layer also used further up does not come last.
        return model.operations[-1]
    return None


def _count_classes(model: keras.Model, images: NDArray[np.float32]) -> int:
    """Returns the number of classes, or raises if the outputs are not logits."""
    outputs = model(images, training=False)
    if not keras.ops.is_tensor(outputs):
        raise invalid_value(
            "model", "a model with one output", f"outputs of type {type(outputs)}"
        )
    if len(outputs.shape) != 2 or outputs.shape[1] < 2:
        raise invalid_value(
            "model",
            "a model with outputs of shape (batch, classes) and at least 2 classes",
            f"outputs of shape {tuple(outputs.shape)}",
        )
    values = keras.ops.convert_to_numpy(keras.ops.cast(outputs, "float32"))
    sums_to_one = np.abs(values.sum(axis=1) - 1.0) < 1e-3
    if np.all(sums_to_one) and values.min() >= 0.0 and values.max() <= 1.0:
        raise invalid_value(
            "model",
            "a model that returns logits; give the model without its softmax",
            "outputs that are probabilities (every row sums to 1)",
        )
    return values.shape[1]


def _is_correct(
    model: keras.Model, images: Any, labels: NDArray[np.int64]
) -> NDArray[np.bool_]:
    logits = keras.ops.cast(model(images, training=False), "float32")
    values = keras.ops.convert_to_numpy(logits)
    if np.isnan(values).any():
        raise ValueError(
            "The model returned NaN, so its accuracy is not defined. "
            "Check its weights for NaN and infinity."
        )
    return values.argmax(axis=1) == labels


def _check_clip(clip: Any) -> tuple[float, float] | None:
    if clip is None:
        return None
    if (
        not isinstance(clip, tuple | list)
        or len(clip) != 2
        or not all(map(_is_finite_number, clip))
        or clip[0] >= clip[1]
    ):
        raise invalid_value("clip", "a pair (low, high) with low < high, or None", clip)
    return float(clip[0]), float(clip[1])


def _check_images(
    x: Any, model: Any, clip: tuple[float, float] | None
) -> NDArray[np.float32]:
    if not isinstance(model, keras.Model) or not model.built:
        raise invalid_value("model", "a built Keras model", model)
    if len(getattr(model, "inputs", None) or [None]) != 1:
        raise invalid_value(
            "model", "a model with one input", f"{len(model.inputs)} inputs"
        )
    if len(getattr(model, "outputs", None) or [None]) != 1:
        raise invalid_value(
            "model", "a model with one output", f"{len(model.outputs)} outputs"
        )

    images = _to_numpy("x", x)
    if images.dtype.kind not in "fiu":
        raise invalid_value("x", "an array of numbers", f"dtype {images.dtype}")
    if images.ndim < 2 or images.size == 0:
        raise invalid_value(
            "x", "images of shape (M, ...), M > 0", f"shape {images.shape}"
        )
    if not np.isfinite(images).all():
        raise invalid_value("x", "finite numbers", "an array with NaN or infinity")
    if getattr(model, "inputs", None):
        expected = tuple(model.inputs[0].shape[1:])
        matches = len(expected) == images.ndim - 1 and all(
            size in (None, received)
            for size, received in zip(expected, images.shape[1:], strict=True)
        )
        if not matches:
            raise invalid_value(
                "x",
                f"images of the model's input shape {expected}",
                f"images of shape {images.shape[1:]}",
            )
    if clip is not None and (images.min() < clip[0] or images.max() > clip[1]):
        raise invalid_value(
            "x",
            f"pixel values within clip={clip}",
            f"values from {images.min():g} to {images.max():g}",
        )
    return images.astype(np.float32)


def _check_labels(y: Any, count: int, classes: int) -> NDArray[np.int64]:
    labels = _to_numpy("y", y)
    if labels.shape != (count,):
        hint = (
            "; for one-hot labels give `y.argmax(axis=1)`" if labels.ndim == 2 else ""
        )
        raise invalid_value(
            "y", f"integer labels of shape ({count},){hint}", f"shape {labels.shape}"
        )
    if labels.dtype.kind not in "fiu" or not np.array_equal(labels, np.round(labels)):
        raise invalid_value("y", "integer labels", labels)
    if labels.min() < 0 or labels.max() >= classes:
        raise invalid_value(
            "y",
            f"labels from 0 to {classes - 1}, one for each output of the model",
            f"labels from {labels.min():g} to {labels.max():g}",
        )
    return labels.astype(np.int64)


def _check_epsilons(epsilons: Any) -> list[float]:
    values = _to_numpy("epsilons", epsilons)
    if (
        values.dtype.kind not in "fiu"
        or values.ndim != 1
        or values.size == 0
        or not np.isfinite(values).all()
        or values[0] < 0
        or not np.all(values[1:] > values[:-1])
    ):
        raise invalid_value(
            "epsilons",
            "one or more finite numbers of at least 0, strictly increasing",
            epsilons,
        )
    # Python floats: a NumPy scalar would turn float32 images into float64.
    return values.astype(np.float64).tolist()


def _check_attacks(attacks: Any) -> tuple[str, ...]:
    names = () if isinstance(attacks, str) else tuple(attacks)
    if not names or not set(names) <= set(ATTACKS) or len(set(names)) < len(names):
        raise invalid_value(
            "attacks", f"a sequence of different names out of {ATTACKS}", attacks
        )
    return names


def _check_integer(argument: str, value: Any, minimum: int) -> None:
    is_integer = isinstance(value, Integral) and not isinstance(value, bool)
    if not is_integer or value < minimum:
        raise invalid_value(argument, f"an integer of at least {minimum}", value)


def _is_finite_number(value: Any) -> bool:
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    return is_number and math.isfinite(value)


def _to_numpy(argument: str, value: Any) -> NDArray[Any]:
    if keras.ops.is_tensor(value):
        return keras.ops.convert_to_numpy(value)
    try:
        return np.asarray(value)
    except ValueError as error:  # a ragged list
        raise invalid_value(argument, "an array", value) from error


def _to_bits(row: NDArray[np.bool_]) -> str:
    return "".join("01"[int(value)] for value in row)


def _from_bits(bits: str) -> NDArray[np.bool_]:
    if not set(bits) <= {"0", "1"}:
        raise ValueError(f"Expected a string of 0 and 1. Received: {bits!r}")
    return np.array([bit == "1" for bit in bits], dtype=bool)
