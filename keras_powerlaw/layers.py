"""Finding a model's layers, by name, class, or regularizer."""

from __future__ import annotations

import collections
import inspect
import itertools
from collections.abc import Sequence
from typing import Any

import keras

from keras_powerlaw.arguments import invalid_value
from keras_powerlaw.keras_internals import (
    count_outputs,
    flatten_layers,
    paths_of_layers,
    strategy_of,
)
from keras_powerlaw.regularizer import SpectralActivityRegularizer


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


def require_called(model: keras.Model, layer: keras.layers.Layer) -> None:
    """Raises a `ValueError` if another layer runs `layer` step by step, as no layer.

    A recurrent layer calls its cell once for every time step, and `TimeDistributed`
    only the `call()` of its layer, of whose output Keras then tells no regularizer.
    """
    for outer in flatten_layers(model):
        is_loop = isinstance(outer, keras.layers.RNN | keras.layers.TimeDistributed)
        if is_loop and any(part is layer for part in flatten_layers(outer)[1:]):
            raise invalid_value(
                "layers",
                "layers that are called once, on the whole batch: instead, "
                f"'{outer.name}', which '{layer.name}' is part of, or a "
                "`keras.layers.Identity(activity_regularizer=...)` behind it",
                f"'{layer.name}' (of type {type(layer).__name__}), which "
                f"{type(outer).__name__} runs step by step",
            )


def require_found_in_a_step(name: str) -> None:
    """Raises a `ValueError` if a training step can't find out the units of a layer.

    On JAX, it can create no variables for them.
    """
    if keras.backend.backend() == "jax":
        raise ValueError(
            f"The number of units of layer '{name}' is not known yet. Call the model "
            "on a batch first."
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


def layers_up_to(
    model: keras.Model, layer: keras.layers.Layer
) -> list[keras.layers.Layer]:
    """A layer, all in it, and those before it; all of a model, if Keras can't know."""
    _, *layers = plain_layers(model)
    if not is_sequential_or_functional(model):
        return layers
    before = itertools.takewhile(lambda each: each is not layer, layers)
    return [*before, *plain_layers(layer)]


def is_sequential_or_functional(model: Any) -> bool:
    """Whether Keras knows which layers `model` calls, and in which order."""
    return isinstance(model, keras.Sequential) or (
        isinstance(model, keras.Model) and isinstance(model, keras.Function)
    )


def regularized_layers(model: keras.Model) -> list[keras.layers.Layer]:
    """The layers of `model` that have a `SpectralActivityRegularizer`.

    Raises:
        ValueError: If two of them share one regularizer.
    """
    layers = [
        layer
        for layer in flatten_layers(model)
        if isinstance(layer.activity_regularizer, SpectralActivityRegularizer)
    ]
    owners: dict[int, keras.layers.Layer] = {}
    for layer in layers:
        first = owners.setdefault(id(layer.activity_regularizer), layer)
        if first is not layer:
            raise invalid_value(
                "activity_regularizer",
                "a SpectralActivityRegularizer for each layer, since each has an "
                "eigenbasis of its own (of a layer that hands it on to layers within, "
                "such as MultiHeadAttention, give it to a layer behind: "
                "`keras.layers.Identity(activity_regularizer=...)`)",
                f"the same object for layers '{first.name}' and '{layer.name}'",
            )
    return layers


def named_layers(model: keras.Model) -> dict[str, keras.layers.Layer]:
    """The layers of `layers_with_basis()` by name, or path where names are equal."""
    layers = layers_with_basis(model)
    return dict(zip(unique_names(model, layers), layers, strict=True))


def layers_to_renew(model: keras.Model) -> list[keras.layers.Layer]:
    """The layers of `layers_with_basis()`, or a `ValueError` if they don't suit."""
    validate_model(model)
    layers = layers_with_basis(model)
    if not layers:
        raise invalid_value(
            "model",
            "a model with at least one layer whose `activity_regularizer` is a "
            "SpectralActivityRegularizer that uses an eigenbasis",
            f"'{model.name}', which has none",
        )
    for layer in layers:
        require_one_output(layer)
        require_called(model, layer)
    _refuse_other_regularizers_on_replicas(model)
    return layers


def layers_with_basis(model: keras.Model) -> list[keras.layers.Layer]:
    """The regularized layers of `model` whose penalty uses an eigenbasis."""
    return [
        layer
        for layer in regularized_layers(model)
        if not layer.activity_regularizer.exact
    ]


def _refuse_other_regularizers_on_replicas(model: keras.Model) -> None:
    # A collective operation makes Keras lose the losses that layers recorded before it.
    strategy = strategy_of(model)
    if getattr(strategy, "num_replicas_in_sync", 1) == 1:
        return
    others = [
        layer.name
        for layer in flatten_layers(model)
        if layer.activity_regularizer is not None
        and not isinstance(layer.activity_regularizer, SpectralActivityRegularizer)
    ]
    if others:
        raise invalid_value(
            "model",
            "a model without other activity regularizers under a `tf.distribute` "
            "strategy of several replicas, since Keras mixes up their losses",
            f"'{model.name}' with activity regularizers of layers {others}",
        )
