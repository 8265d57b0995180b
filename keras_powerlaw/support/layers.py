"""Finding the layers of a model, and seeing what they compute."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
from keras import ops

from keras_powerlaw.support.arguments import invalid_value
from keras_powerlaw.support.keras_internals import (
    flatten_layers,
    replaced_activity_regularizers,
)
from keras_powerlaw.support.types import Tensor


def find_layer(
    model: keras.Model, layer: keras.layers.Layer | str
) -> keras.layers.Layer:
    """The layer of `model` that `layer`, a name or the layer itself, stands for."""
    layers = flatten_layers(model)
    if isinstance(layer, keras.layers.Layer):
        if any(layer is other for other in layers):
            return layer
        layer = layer.name
    found = [other for other in layers if other.name == layer]
    if len(found) != 1:
        names = [other.name for other in layers if other is not model]
        raise invalid_value(
            "layer",
            f"a layer of model '{model.name}', or the name of exactly one; its layers "
            f"are {names}",
            repr(layer),
        )
    return found[0]


def is_sequential_or_functional(model: Any) -> bool:
    """Whether Keras knows which layers a model calls, and in which order."""
    return isinstance(model, keras.Sequential) or (
        isinstance(model, keras.Model) and isinstance(model, keras.Function)
    )


@contextlib.contextmanager
def observe(
    model: keras.Model,
    layers: Sequence[keras.layers.Layer],
    converts: Sequence[Callable[[Tensor], Any]],
) -> Iterator[list[list[Any]]]:
    """Within this context, every call of one of `layers` leaves its activations.

    All activity regularizers step aside meanwhile: eagerly, their penalties would be
    computed in vain.

    Args:
        model: The model that will be called.
        layers: Layers in it.
        converts: One function per layer: what to make of the tensor of activations.

    Yields:
        One list per layer, to which each call appends.
    """
    observed: list[list[Any]] = [[] for _ in layers]

    def recorder(
        seen: list[Any], convert: Callable[[Tensor], Any]
    ) -> Callable[[Tensor], Tensor]:
        def record(activity: Tensor) -> Tensor:
            seen.append(convert(activity))
            return ops.zeros(())

        return record

    recorders = {
        id(layer): recorder(seen, convert)
        for layer, seen, convert in zip(layers, observed, converts, strict=True)
    }
    with replaced_activity_regularizers(model, recorders):
        yield observed


def without_activity_regularizers(
    model: keras.Model,
) -> contextlib.AbstractContextManager[None]:
    """Within this context, no layer of `model` has an activity regularizer."""
    return replaced_activity_regularizers(model, {})
