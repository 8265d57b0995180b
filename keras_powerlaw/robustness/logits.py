"""The logits of a model, which may end in a softmax."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from keras_powerlaw.support.arguments import invalid_value

# By model: the same without its final softmax layer.
_LOGITS: weakref.WeakKeyDictionary[keras.Model, keras.Model] = (
    weakref.WeakKeyDictionary()
)


@contextlib.contextmanager
def without_softmax(model: keras.Model) -> Iterator[keras.Model]:
    """Yields a model that returns the logits of `model`; `model` is restored after."""
    layer = _output_layer(model)
    if isinstance(layer, keras.layers.Softmax) and layer.output is model.outputs[0]:
        if model not in _LOGITS:  # kept for all calls, as are its compiled programs
            _LOGITS[model] = keras.Model(model.inputs[0], layer.input)
        yield _LOGITS[model]
    elif getattr(layer, "activation", None) is keras.activations.softmax:
        layer.activation = keras.activations.linear
        try:
            yield model
        finally:
            layer.activation = keras.activations.softmax
    else:
        yield model


def _output_layer(model: keras.Model) -> Any:
    """Returns the layer whose only use is to produce the output of `model`."""
    if isinstance(model, keras.Sequential):
        return model.layers[-1]
    if isinstance(model, keras.Function):
        # They are ordered by depth: a layer that is also used earlier is not the last.
        return model.operations[-1]
    return None


def count_classes(model: keras.Model, images: NDArray[np.float32]) -> int:
    """Returns the number of classes, or raises if the outputs are not logits."""
    outputs = model(images, training=False)
    if not ops.is_tensor(outputs):
        raise invalid_value(
            "model", "a model with one output", f"outputs of type {type(outputs)}"
        )
    if len(outputs.shape) != 2 or outputs.shape[1] < 2:
        raise invalid_value(
            "model",
            "a model with outputs of shape (batch, classes) and at least 2 classes",
            f"outputs of shape {tuple(outputs.shape)}",
        )
    values = ops.convert_to_numpy(ops.cast(outputs, "float32"))
    sums_to_one = np.abs(values.sum(axis=1) - 1.0) < 1e-3
    if np.all(sums_to_one) and values.min() >= 0.0 and values.max() <= 1.0:
        raise invalid_value(
            "model",
            "a model that returns logits; give the model without its softmax",
            "outputs that are probabilities (every row sums to 1)",
        )
    return int(values.shape[1])
