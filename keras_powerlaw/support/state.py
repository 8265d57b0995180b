"""Copying the state of layers: variables, tables, and what is derived from them."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_powerlaw.arguments import invalid_value
from keras_powerlaw.backends import recurrent_states
from keras_powerlaw.keras_internals import flatten_layers

Pair = tuple[Any, Any]  # a layer and its copy


def copy_assets(pairs: Sequence[Pair]) -> None:
    """Copies what layers save beside their variables, such as vocabularies.

    Before a layer is called, since the width of its output can depend on them.
    """
    for old, new in pairs:
        if hasattr(old, "save_assets") and _overrides(old, "load_assets"):
            # First the variables, as from a file: some vocabularies need weights.
            _load_own_variables(old, new)
            with tempfile.TemporaryDirectory() as directory:
                old.save_assets(directory)
                new.load_assets(directory)


def copy_state(pairs: Sequence[Pair]) -> dict[int, keras.Variable]:
    """Gives layers the state of those that they are copies of.

    Returns:
        The variables of the copies, keyed by the `id` of the original one.
    """
    variables: dict[int, keras.Variable] = {}
    for old, new in pairs:
        olds, news = _own_variables(old), _own_variables(new)
        if [v.shape for v in olds] != [v.shape for v in news]:
            raise invalid_value(
                "model",
                "layers that have the same weights again when they are made from "
                "their config",
                f"'{old.name}' (of type {type(old)}), with weights of shapes "
                f"{[tuple(v.shape) for v in olds]}, and then "
                f"{[tuple(v.shape) for v in news]}",
            )
        # Some layers derive other state from their variables. The variables themselves
        # follow, as some save them in another form.
        if new.built:
            _load_own_variables(old, new)
        for original, variable in zip(olds, news, strict=True):
            assign(variable, original)
            variables[id(original)] = variable
        states = map(recurrent_states, (old, new))
        for original, variable in zip(*states, strict=False):
            assign(variable, original)
        _require_same_vocabulary(old, new)
    _copy_trainable(pairs, variables)
    return variables


def _load_own_variables(old: Any, new: Any) -> None:
    """What happens when a file is loaded, if the class does it in its own way."""
    if _overrides(old, "load_own_variables"):
        store: dict[str, Any] = {}
        old.save_own_variables(store)
        new.load_own_variables(store)


def assign(variable: keras.Variable, value: keras.Variable) -> None:
    # Copied, because a JAX training step invalidates the arrays passed to it.
    variable.assign(np.array(ops.convert_to_numpy(value)))


def _overrides(layer: Any, method: str) -> bool:
    inherited = getattr(keras.layers.Layer, method, None)
    return getattr(type(layer), method, None) is not inherited


def _own_variables(layer: Any) -> list[keras.Variable]:
    """The variables of a layer that no layer in it has."""
    within = {
        id(variable)
        for part in flatten_layers(layer)
        if part is not layer
        for variable in part.variables
    }
    return [variable for variable in layer.variables if id(variable) not in within]


def _require_same_vocabulary(old: Any, new: Any) -> None:
    if not hasattr(old, "get_vocabulary"):
        return
    if list(old.get_vocabulary()) != list(new.get_vocabulary()):
        raise invalid_value(
            "model",
            "layers whose vocabulary is the same after saving and loading",
            f"'{old.name}' (of type {type(old)}), where it is not",
        )


def _copy_trainable(
    pairs: Sequence[Pair], variables: dict[int, keras.Variable]
) -> None:
    # From the outermost to the innermost, since setting `trainable` reaches inwards.
    for old, new in sorted(pairs, key=lambda pair: -len(flatten_layers(pair[0]))):
        new.trainable = old.trainable
    for old, _ in pairs:
        for variable in _own_variables(old):
            variables[id(variable)].trainable = variable.trainable
