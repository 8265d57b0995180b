"""Giving layers of a copy their activity regularizers, at whatever depth they are."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import keras

from keras_powerlaw.arguments import invalid_value
from keras_powerlaw.keras_internals import flatten_layers
from keras_powerlaw.support.layers import (
    is_in_loop,
    is_sequential_or_functional,
    plain_layers,
)
from keras_powerlaw.support.remaking import config_of, config_within, remake

BEHIND = "a `keras.layers.Identity(activity_regularizer=...)` behind it"


def regularize(layer: Any, regularizers: Mapping[int, Any]) -> Any:
    """Makes a layer again, with other activity regularizers in it.

    Args:
        layer: The layer, which is left unchanged.
        regularizers: See `copy_model()`.

    Raises:
        ValueError: If a layer does not keep its regularizer, now or in a file.
    """
    parts = plain_layers(layer)
    targets = [part for part in parts if id(part) in regularizers]
    if not targets:
        return remake(layer)
    for target in targets:
        if regularizers[id(target)] is not None and is_in_loop(layer, target):
            raise _refusal(target, layer)
    copied = _remake_regularized(layer, targets, regularizers)
    reloaded = plain_layers(remake(copied))
    for part, new, again in zip(parts, plain_layers(copied), reloaded, strict=False):
        wanted = part.activity_regularizer
        if id(part) in regularizers:
            wanted = regularizers[id(part)]
            targets.remove(part)
        for each in new, again:
            if _serialized(each.activity_regularizer) != _serialized(wanted):
                raise _refusal(part, layer)
    if targets:  # which are made when the layer is called
        raise _refusal(targets[0], layer)
    return copied


def _remake_regularized(
    layer: Any, targets: list[Any], regularizers: Mapping[int, Any]
) -> Any:
    config = copy.deepcopy(config_of(layer))
    for target in targets:
        inner = config_within(layer, config, target)
        inner["activity_regularizer"] = _serialized(regularizers[id(target)])
    try:
        return remake(layer, config)
    except ValueError as error:
        remake(layer)  # says so if it can't be copied at all
        raise _refusal(targets[0], layer) from error


def refuse(model: Any, target: Any) -> ValueError:
    """The error for a layer of `model` that can't carry a regularizer.

    A model in it can't, whose config has no place for one, nor a layer that Keras does
    not call as a layer.
    """
    for layer in flatten_layers(model):
        parts = [] if is_sequential_or_functional(layer) else flatten_layers(layer)[1:]
        if any(part is target for part in parts):
            return _refusal(target, layer)
    return _refusal(target, target)


def require_no_others(
    pairs: Sequence[tuple[Any, Any]], regularizers: Mapping[int, Any]
) -> None:
    """Raises a `ValueError` if a layer hands its regularizer on to layers in it.

    Args:
        pairs: Layers, with their copies.
        regularizers: See `copy_model()`.
    """
    for layer, copied in pairs:
        if (
            id(layer) not in regularizers
            and layer.activity_regularizer is None
            and copied.activity_regularizer is not None
        ):
            outer = next(
                (
                    target
                    for target, _ in pairs
                    if id(target) in regularizers
                    and any(part is layer for part in flatten_layers(target))
                ),
                layer,
            )
            raise _refusal(outer, outer)


def _serialized(regularizer: Any) -> Any:
    return None if regularizer is None else keras.regularizers.serialize(regularizer)


def _refusal(target: Any, outer: Any) -> ValueError:
    """The error for a layer that can't carry a regularizer, which says what can."""
    instead = BEHIND
    if is_sequential_or_functional(target):
        instead = f"of '{target.name}', which is a model, its last layer"
        instead += f", '{target.layers[-1].name}'"
    elif outer is not target:
        instead = f"'{outer.name}', which '{target.name}' is part of, or {BEHIND}"
    return invalid_value(
        "layers",
        "layers whose output Keras gives to an `activity_regularizer`, and with which "
        f"it saves one: instead, {instead}",
        f"'{target.name}' (of type {type(target)})",
    )
