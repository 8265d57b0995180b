"""Validation of the arguments of `evaluate_robustness`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from keras_powerlaw.activations import Rows, is_array
from keras_powerlaw.arguments import (
    invalid_value,
    is_finite_number,
    is_number,
    validate_integer,
)
from keras_powerlaw.keras_internals import flatten_layers
from keras_powerlaw.robustness.attacks.table import BY_NAME
from keras_powerlaw.robustness.problem import Settings

# Where pixels range from 0 to 1.
PAPER_STEP_SIZE = 0.01


def validate_settings(
    *,
    norm: Any,
    pgd_steps: Any,
    pgd_step_size: Any,
    restarts: Any,
    noise_draws: Any,
    clip: Any,
    batch_size: Any,
    seed: Any,
) -> Settings:
    clip = _validate_clip(clip)
    return Settings(
        norm=_validate_norm(norm),
        pgd_steps=validate_integer("pgd_steps", pgd_steps, minimum=1),
        pgd_step_size=_validate_step_size(pgd_step_size, clip),
        restarts=validate_integer("restarts", restarts, minimum=1),
        noise_draws=validate_integer("noise_draws", noise_draws, minimum=1),
        clip=clip,
        batch_size=validate_integer("batch_size", batch_size, minimum=1),
        seed=validate_integer("seed", seed, minimum=0),
    )


def _validate_step_size(size: Any, clip: tuple[float, float] | None) -> float:
    if size is None:
        low, high = clip or (0.0, 1.0)
        return PAPER_STEP_SIZE * (high - low)
    if not is_finite_number(size) or size <= 0:
        raise invalid_value(
            "pgd_step_size", "None or a finite number above 0", repr(size)
        )
    return float(size)


def _validate_clip(clip: Any) -> tuple[float, float] | None:
    if clip is None:
        return None
    if (
        not isinstance(clip, tuple | list)
        or len(clip) != 2
        or not all(map(is_finite_number, clip))
        or clip[0] >= clip[1]
    ):
        raise invalid_value("clip", "a pair (low, high) with low < high, or None", clip)
    return float(clip[0]), float(clip[1])


def validate_images(
    x: Any, model: Any, clip: tuple[float, float] | None
) -> NDArray[np.float32]:
    if not isinstance(model, keras.Model) or not model.built:
        raise invalid_value("model", "a built Keras model", model)
    if len(getattr(model, "inputs", None) or [None]) != 1:
        raise invalid_value(
            "model", "a model with one input", f"{len(model.inputs)} inputs"
        )
    stateful = [
        layer.name for layer in flatten_layers(model) if getattr(layer, "stateful", 0)
    ]
    if stateful:
        raise invalid_value(
            "model",
            "a model whose answer to an image does not depend on those before it (make "
            "one with `stateful=False`, and give it the weights)",
            f"'{model.name}', with the stateful layers {stateful}",
        )
    if len(getattr(model, "outputs", None) or [None]) != 1:
        raise invalid_value(
            "model", "a model with one output", f"{len(model.outputs)} outputs"
        )

    images = _as_array("x", x)
    if images.dtype.kind not in "fiu":
        raise invalid_value("x", "an array of numbers", f"dtype {images.dtype}")
    if images.ndim < 2 or images.size == 0:
        raise invalid_value(
            "x", "images of shape (M, ...), M > 0", f"shape {images.shape}"
        )
    # NaN and infinity show up in the extremes, which need no extra memory.
    if not np.isfinite([images.min(), images.max()]).all():
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
            f"pixel values within clip={clip} (for others, give `clip=(low, high)`, "
            "and epsilons in the same units)",
            f"values from {images.min():g} to {images.max():g}",
        )
    return images.astype(np.float32, copy=False)


def validate_labels(y: Any, count: int, classes: int) -> NDArray[np.int64]:
    labels = _as_array("y", y)
    if labels.shape == (count, 1):  # as in `keras.datasets.cifar10`
        labels = labels[:, 0]
    if labels.shape != (count,):
        one_hot = labels.shape == (count, classes)
        hint = "; for one-hot labels give `y.argmax(axis=1)`" if one_hot else ""
        raise invalid_value(
            "y", f"integer labels of shape ({count},){hint}", f"shape {labels.shape}"
        )
    if labels.dtype.kind not in "bfiu" or not np.array_equal(labels, np.round(labels)):
        raise invalid_value("y", "integer labels", labels)
    if labels.min() < 0 or labels.max() >= classes:
        raise invalid_value(
            "y",
            f"labels from 0 to {classes - 1}, one for each output of the model",
            f"labels from {labels.min():g} to {labels.max():g}",
        )
    return labels.astype(np.int64)


def validate_epsilons(epsilons: Any) -> list[float]:
    values = _as_array("epsilons", epsilons)
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
    strengths: list[float] = values.astype(np.float64).tolist()
    return strengths


def validate_attacks(attacks: Any) -> tuple[str, ...]:
    available = tuple(BY_NAME)
    names: tuple[Any, ...] = ()
    if isinstance(attacks, str):
        names = available if attacks == "strong" else ()
    elif isinstance(attacks, Iterable):
        names = tuple(attacks)
    known = all(isinstance(name, str) and name in available for name in names)
    if not names or not known or len(set(names)) < len(names):
        raise invalid_value(
            "attacks",
            f'a sequence of distinct names out of {available}, or "strong" for all',
            attacks,
        )
    return names


def _validate_norm(norm: Any) -> float:
    if norm == "inf" or (is_number(norm) and norm == np.inf):
        return np.inf
    if is_number(norm) and norm == 2:
        return 2
    raise invalid_value("norm", '"inf" or 2', repr(norm))


def _as_array(argument: str, value: Any) -> NDArray[Any]:
    if isinstance(value, keras.utils.PyDataset) or (
        hasattr(value, "__iter__")
        and not is_array(value)
        and not isinstance(value, str | list | tuple | dict | range)
    ):
        raise invalid_value(
            argument,
            "an array (of a data set of batches, or another iterable, give "
            "`x, y = map(np.concatenate, zip(*data))`)",
            f"an object of type {type(value)}",
        )
    try:
        has_rows = is_array(value) and getattr(value, "shape", None) != ()
        rows = Rows(value)[:] if has_rows else value
        array: NDArray[Any] = (
            ops.convert_to_numpy(rows) if ops.is_tensor(rows) else np.asarray(rows)
        )
    except ValueError as error:  # a ragged list
        raise invalid_value(argument, "an array", value) from error
    return array
