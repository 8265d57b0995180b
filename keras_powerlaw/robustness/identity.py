"""What identifies a model: its structure, its weights, and what it computes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from keras_powerlaw.keras_internals import flatten_layers
from keras_powerlaw.robustness.problem import Problem

# Number of images whose logits are part of a model's identity.
PROBES = 8

# Logits of one model on two machines differ by at most this share of their spread.
ROUNDING = 1e-2

# Entries of a config that do not change what a model computes in inference.
UNIMPORTANT = (
    "build_config",
    "compile_config",
    "seed",
    "shared_object_id",
    "trainable",
)


def digest(arrays: Iterable[NDArray[Any]]) -> str:
    """A digest of some arrays."""
    digest = hashlib.blake2b(digest_size=16)
    for array in arrays:
        # As bytes, since bfloat16 does not support the buffer protocol.
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def weights_of(model: keras.Model) -> str:
    """A digest of the weights."""
    return digest(
        ops.convert_to_numpy(ops.convert_to_tensor(weight)) for weight in model.weights
    )


def structure_of(model: keras.Model) -> str:
    """A digest of the classes, configs and connections of all layers.

    Names are left out, which Keras numbers anew for every model it makes, and so is
    the code of functions, which contains the place it was read from. What matters only
    in training is left out as well.
    """
    layers = [
        [type(layer).__module__, type(layer).__qualname__, _config_of(layer)]
        for layer in flatten_layers(model)
    ]
    text = json.dumps(_without_names(layers, {}), sort_keys=True, default=_describe)
    return hashlib.blake2b(text.encode("utf-8"), digest_size=16).hexdigest()


def outputs_of(problem: Problem) -> list[list[float]] | None:
    """The logits of the first images, or None if two calls differ.

    They show what no config does: an attribute, the code of a function or of `call()`.
    """
    first, second = (
        ops.convert_to_numpy(problem.classifier(problem.images[:PROBES]))
        for _ in range(2)
    )
    if not np.isfinite(first).all() or not _agree(first, second):
        return None
    rows: list[list[float]] = first.astype(np.float64).tolist()
    return rows


def same_outputs(first: Any, second: Any) -> bool:
    """Whether two results of `outputs_of()` are of one model."""
    if first is None or second is None:
        return first is second
    return _agree(np.array(first), np.array(second))


def _agree(first: NDArray[Any], second: NDArray[Any]) -> bool:
    return first.shape == second.shape and bool(
        np.abs(first - second).max() <= ROUNDING * max(first.std(), 1e-30)
    )


def _config_of(layer: keras.layers.Layer) -> Any:
    try:
        return layer.get_config()
    except (AttributeError, NotImplementedError, TypeError, ValueError):
        return None  # the class does not define it


def _without_names(value: Any, numbers: dict[str, int]) -> Any:
    """A config without the names of layers; `numbers` holds those already seen."""
    if isinstance(value, dict):
        if value.get("class_name") == "__lambda__":
            return "function"
        return {
            str(key): _without_names(entry, numbers)
            for key, entry in value.items()
            # Nothing but a name is what a dtype policy has.
            if key not in UNIMPORTANT and (key != "name" or len(value) == 1)
        }
    if isinstance(value, list | tuple):
        # A layer's output: its name, the index of the call, that of the output.
        if len(value) == 3 and [type(entry) for entry in value] == [str, int, int]:
            return [numbers.setdefault(value[0], len(numbers)), *value[1:]]
        return [_without_names(entry, numbers) for entry in value]
    return value


def _describe(value: Any) -> Any:
    """What JSON has no form for."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return getattr(value, "__qualname__", type(value).__qualname__)
