"""The layers of a model that have a `SpectralActivityRegularizer`."""

from __future__ import annotations

import keras

from keras_powerlaw.arguments import invalid_value
from keras_powerlaw.keras_internals import flatten_layers, strategy_of
from keras_powerlaw.spectral.regularizer import SpectralActivityRegularizer
from keras_powerlaw.support.layers import (
    is_in_loop,
    require_one_output,
    unique_names,
    validate_model,
)
from keras_powerlaw.units import output_units


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
            _refuse_handing_on(model, first, layer)
            raise invalid_value(
                "activity_regularizer",
                "a SpectralActivityRegularizer for each layer, since each has an "
                "eigenbasis of its own",
                f"the same object for layers '{first.name}' and '{layer.name}'",
            )
    return layers


def _refuse_handing_on(
    model: keras.Model, first: keras.layers.Layer, second: keras.layers.Layer
) -> None:
    """Raises a `ValueError` if a layer gave its regularizer to two layers in it."""
    for outer in flatten_layers(model):
        parts = [] if isinstance(outer, keras.Model) else flatten_layers(outer)
        if {id(first), id(second)} <= set(map(id, parts)):
            kind = type(outer).__name__
            raise invalid_value(
                "activity_regularizer",
                "a SpectralActivityRegularizer of a layer that applies it to its own "
                f"output: {kind} hands it on to layers within. Put a layer behind it, "
                "`keras.layers.Identity(activity_regularizer=...)`",
                f"the regularizer of layer '{outer.name}' ({kind})",
            )


def named_layers(model: keras.Model) -> dict[str, keras.layers.Layer]:
    """The layers of `layers_with_basis()` by name, or path where names are equal."""
    layers = layers_with_basis(model)
    return dict(zip(unique_names(model, layers), layers, strict=True))


def units_of(layer: keras.layers.Layer) -> int | None:
    """The number of units of a regularized layer, or None if not known yet."""
    regularizer = layer.activity_regularizer
    return output_units(layer, regularizer.reduction) or regularizer.units


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
        if is_in_loop(model, layer):
            raise invalid_value(
                "activity_regularizer",
                "a SpectralActivityRegularizer of a layer, not of the cell of a "
                "recurrent layer, which has one output for every time step",
                f"the regularizer of '{layer.name}'",
            )
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
