"""Finding a model's layers and recording their activations."""

from __future__ import annotations

import collections
import contextlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
from keras import ops

from keras_powerlaw.arguments import Tensor, invalid_value
from keras_powerlaw.keras_internals import (
    count_outputs,
    flatten_layers,
    paths_of_layers,
)
from keras_powerlaw.support.replacing import replaced_activity_regularizers


def plain_layers(model: keras.layers.Layer) -> list[keras.layers.Layer]:
    """The model and all layers in it, but not regularizers, which can be layers too."""
    return [
        layer
        for layer in flatten_layers(model)
        if not isinstance(layer, keras.regularizers.Regularizer)
    ]


def validate_model(model: Any) -> None:
    if not isinstance(model, keras.Model):
        raise invalid_value(
            "model", "a Keras model", f"{model} (of type {type(model)})"
        )


def find_layer(
    model: keras.Model, layer: keras.layers.Layer | str
) -> keras.layers.Layer:
    """Finds a layer of `model`, given as the layer itself or its name.

    A layer that is not in `model` is looked up by its name.
    """
    validate_model(model)
    layers = plain_layers(model)
    if isinstance(layer, keras.layers.Layer):
        if any(layer is other for other in layers):
            return layer
        layer = layer.name
    matches = [other for other in layers if other.name == layer]
    if len(matches) != 1:
        names = [other.name for other in layers if other is not model]
        raise invalid_value(
            "layer",
            f"a layer of model '{model.name}', or the name of exactly one; its layers "
            f"are {names}",
            repr(layer),
        )
    return matches[0]


def find_layers(
    model: keras.Model, choice: Any
) -> tuple[list[keras.layers.Layer], bool]:
    """Finds the layers of `model` that were asked for, in the order of the request.

    Args:
        model: The model.
        choice: As for `find_layer()`, or a class, which stands for all layers of it
            but models and inputs, or a list of any of these.

    Returns:
        The layers, each once, and whether `choice` was that of a single layer.
    """
    if isinstance(choice, keras.layers.Layer | str):
        return [find_layer(model, choice)], True
    choices = [choice] if isinstance(choice, type) else choice
    if not isinstance(choices, list | tuple):
        choices = [choices]
    found: list[keras.layers.Layer] = []
    for each in choices:
        found += (
            _layers_of_class(model, each)
            if isinstance(each, type)
            else [find_layer(model, each)]
        )
    if not found:
        raise invalid_value("layer", "at least one layer", repr(choice))
    return list({id(layer): layer for layer in found}.values()), False


def _layers_of_class(model: keras.Model, kind: type) -> list[keras.layers.Layer]:
    layers = [
        layer
        for layer in plain_layers(model)
        if isinstance(layer, kind)
        and not isinstance(layer, keras.Model | keras.layers.InputLayer)
    ]
    if not layers:
        raise invalid_value(
            "layer", f"a class that layers of model '{model.name}' have", kind.__name__
        )
    return layers


def unique_names(model: keras.Model, layers: Sequence[keras.layers.Layer]) -> list[str]:
    """A name for each of some layers of `model`, under which to log and report it.

    It is the layer's own name where no other of `layers` has it. Otherwise it is the
    layer's path through the models and layers that contain it, `"tower/hidden"`, and if
    these are equal as well, the path with a number: `"tower/hidden_1"`.
    """
    counts = collections.Counter(layer.name for layer in layers)
    paths = paths_of_layers(model)
    wanted = [
        layer.name if counts[layer.name] == 1 else paths[id(layer)] for layer in layers
    ]
    names: list[str] = []
    for name in wanted:
        unique, number = name, 0
        while unique in names or (number and unique in wanted):
            number += 1
            unique = f"{name}_{number}"
        names.append(unique)
    return names


def require_one_output(layer: keras.layers.Layer) -> None:
    """Raises a `ValueError` if a layer has several outputs, as with `return_state`.

    Keras passes them to an activity regularizer one by one, as if they were calls.
    """
    if count_outputs(layer) > 1:
        raise invalid_value(
            "layer",
            "a layer with one output: instead, a `keras.layers.Identity()` behind the "
            "output that is meant",
            f"'{layer.name}' (of type {type(layer).__name__}), which has several",
        )


def require_training_argument(model: keras.Model) -> None:
    """Raises a `ValueError` if a model's `call()` is not told whether it trains.

    Keras then tells no layer in it.
    """
    if "training" not in inspect.signature(model.call).parameters:
        raise invalid_value(
            "model",
            "a model whose `call()` has an argument `training`, since what is measured "
            "are its activations in training (or give `x`, the training data)",
            f"'{model.name}', whose `call()` has none",
        )


def is_in_loop(model: Any, layer: Any) -> bool:
    """Whether a recurrent layer in `model` calls `layer` once for every time step."""
    return any(
        isinstance(part, keras.layers.RNN)
        and any(inner is layer for inner in flatten_layers(part)[1:])
        for part in flatten_layers(model)
    )


def is_sequential_or_functional(model: Any) -> bool:
    """Whether Keras knows which layers `model` calls, and in which order."""
    return isinstance(model, keras.Sequential) or (
        isinstance(model, keras.Model) and isinstance(model, keras.Function)
    )


@contextlib.contextmanager
def observe(
    model: keras.Model,
    layers: Sequence[keras.layers.Layer],
    converts: Sequence[Callable[[Tensor], Any]],
) -> Iterator[list[list[Any]]]:
    """Records the activations of `layers` at every call within this context.

    All activity regularizers are disabled meanwhile: in eager execution their
    penalties would be computed for nothing.

    Args:
        model: The model that will be called.
        layers: Layers in it.
        converts: One function per layer, applied to its activations before they are
            recorded.

    Yields:
        One list per layer, to which each call appends its converted activations.
    """
    observed: list[list[Any]] = [[] for _ in layers]

    def recorder(
        recorded: list[Any], convert: Callable[[Tensor], Any]
    ) -> Callable[[Tensor], Tensor]:
        def record(activity: Tensor) -> Tensor:
            recorded.append(convert(activity))
            return ops.zeros(())

        return record

    recorders = {
        id(layer): recorder(recorded, convert)
        for layer, recorded, convert in zip(layers, observed, converts, strict=True)
    }
    with replaced_activity_regularizers(model, recorders):
        yield observed


def without_activity_regularizers(
    model: keras.Model,
) -> contextlib.AbstractContextManager[None]:
    """Disables all activity regularizers of `model` within this context."""
    return replaced_activity_regularizers(model, {})
