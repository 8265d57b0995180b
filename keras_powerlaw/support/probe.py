"""Comparing the outputs of a model and its copy on a small batch."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_powerlaw.arguments import invalid_value
from keras_powerlaw.keras_internals import flatten_layers
from keras_powerlaw.support.layers import observe, without_activity_regularizers
from keras_powerlaw.support.remaking import is_of_keras

SIZES = (32, 128)  # of an axis whose length is free: some networks need more
WORDS = ("a", "b", "c")


def require_same_outputs(
    model: keras.Model, copy: keras.Model, layers: Sequence[keras.layers.Layer]
) -> list[bool] | None:
    """Compares a model and its copy, bit by bit and in inference mode.

    Neither changes: not even seeds, and states of recurrent layers.

    Args:
        model: The model.
        copy: Its copy.
        layers: Layers of the copy.

    Returns:
        Whether the copy called each of the layers; None if the models are not built.

    Raises:
        ValueError: If the outputs differ.
    """
    if not model.built or not hasattr(model, "inputs"):
        return None
    for batch in _batches(model):
        try:
            with without_activity_regularizers(model):
                expected = _outputs(model, batch)
        except Exception:
            continue  # not a batch that this model takes
        with observe(copy, layers, [lambda activity: True] * len(layers)) as calls:
            outputs = _outputs(copy, batch)
        if not all(map(_equal, expected, outputs)):
            raise _not_the_same(model)
        return [any(of_layer) for of_layer in calls]
    warnings.warn(
        f"The copy of model '{model.name}' could not be compared with it, since the "
        "model takes no batch of random numbers: compare their predictions.",
        stacklevel=2,
    )
    return None


def _equal(one: Any, other: Any) -> bool:
    is_float = np.issubdtype(one.dtype, np.inexact)
    return np.array_equal(one, other, equal_nan=is_float)


def _not_the_same(model: keras.Model) -> ValueError:
    own = [
        f"'{layer.name}' ({type(layer).__name__})"
        for layer in flatten_layers(model)
        if not is_of_keras(type(layer))
    ]
    return invalid_value(
        "model",
        "a model whose copy predicts the same: layers must keep all that they compute "
        "with in variables, in `get_config()`, or where `save_own_variables()` and "
        "`load_own_variables()` find it",
        f"'{model.name}', whose copy predicts something else; its layers of other "
        f"classes than those of Keras: {', '.join(own) or 'none'}",
    )


def _batches(model: Any) -> Iterator[Any]:
    """Batches of two examples, or of as many as the model is made for."""
    inputs = model.inputs[0] if isinstance(model, keras.Sequential) else model.input
    words = _words(model)
    for size in SIZES:
        rng = np.random.default_rng(0)
        yield keras.tree.map_structure(
            lambda tensor, size=size, rng=rng: _values(tensor, size, words, rng), inputs
        )


def _words(model: keras.Model) -> list[str]:
    """Some that the model knows, and some that it does not."""
    known = [
        word
        for layer in flatten_layers(model)
        if hasattr(layer, "get_vocabulary")
        for word in layer.get_vocabulary()
        if isinstance(word, str)
    ]
    return [*WORDS, *known[:1000]]


def _values(tensor: Any, size: int, words: list[str], rng: np.random.Generator) -> Any:
    batch, *rest = tensor.shape
    shape = (batch or 2, *(axis or size for axis in rest))
    if tensor.dtype == "string":
        return ops.convert_to_tensor(rng.choice(words, size=shape))
    # From 0 to 2, also as indices of an embedding that takes them as real numbers.
    values = rng.uniform(0, 2, size=shape)
    return ops.cast(ops.convert_to_tensor(values.astype("float32")), tensor.dtype)


def _outputs(model: keras.Model, batch: Any) -> list[Any]:
    with keras.StatelessScope():
        outputs = keras.tree.flatten(model(batch, training=False))
    return [ops.convert_to_numpy(output) for output in outputs]
