"""Copying a model with other activity regularizers in some of its layers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import keras

from keras_powerlaw.arguments import invalid_value
from keras_powerlaw.keras_internals import flatten_layers, hold_current_weights
from keras_powerlaw.support.compilation import copy_compilation
from keras_powerlaw.support.layers import is_sequential_or_functional, plain_layers
from keras_powerlaw.support.probe import require_same_outputs
from keras_powerlaw.support.remaking import remake
from keras_powerlaw.support.state import Pair, copy_assets, copy_state
from keras_powerlaw.support.subclasses import copy_attributes, like_its_class
from keras_powerlaw.support.targets import refuse, regularize, require_no_others


def copy_model(model: keras.Model, regularizers: Mapping[int, Any]) -> Any:
    """Copies a model and its state, with other activity regularizers in some layers.

    Args:
        model: A Sequential or Functional model, which is left unchanged.
        regularizers: Activity regularizers, or None for none, keyed by the `id` of the
            layer that gets it.

    Returns:
        The copy, of the same class. If `model` is compiled, so is the copy, with the
        same settings and optimizer state.

    Raises:
        ValueError: If the copy would not be the model, or if a layer would not carry
            its regularizer.
    """
    hold_current_weights(model)
    copier = _Copier(regularizers)
    copy = copier.copy(model)
    pairs = list(copier.pairs())
    require_no_others(pairs, regularizers)
    variables = copy_state(pairs)
    targets = {
        id(old): new
        for old, new in pairs
        if regularizers.get(id(old)) and new.activity_regularizer
    }
    calls = require_same_outputs(model, copy, list(targets.values()))
    called = set(targets) if calls is None else set(itertools.compress(targets, calls))
    for layer in flatten_layers(model):
        if regularizers.get(id(layer)) and id(layer) not in called:
            raise refuse(model, layer)
    if model.compiled:
        copy_compilation(model, copy, variables)
    return copy


class _Copier:
    """Makes every layer again once, in however many models it is called."""

    def __init__(self, regularizers: Mapping[int, Any]) -> None:
        self._regularizers = regularizers
        self._copies: dict[int, Pair] = {}

    def copy(self, layer: Any) -> Any:
        """The copy of a layer, of a model in the model, or of an operation."""
        if id(layer) not in self._copies:
            if isinstance(layer, keras.Sequential):
                copied = self._stack(layer)
            elif is_sequential_or_functional(layer):
                copied = self._graph(layer)
            else:
                copied = self._layer(layer)
            # Not in every config, and that of now may be another one.
            policy = getattr(layer, "dtype_policy", None)
            if policy != getattr(copied, "dtype_policy", None):
                copied.dtype_policy = policy
            self._copies[id(layer)] = layer, copied
        return self._copies[id(layer)][1]

    def pairs(self) -> Iterator[Pair]:
        """Every layer at any depth with its copy, without the regularizers."""
        found: dict[int, Pair] = {}
        for old, new in self._copies.values():
            parts = [(old, new)]
            if isinstance(old, keras.layers.Layer) and not isinstance(old, keras.Model):
                parts = _pair_parts(old, new)
            found.update({id(part[0]): part for part in parts})
        for old, new in found.values():
            if isinstance(old, keras.layers.Layer):
                yield old, new

    def _stack(self, model: Any) -> Any:
        parts = [self.copy(layer) for layer in model.layers]
        first = plain_layers(model)[1:2]
        if first and isinstance(first[0], keras.layers.InputLayer):
            parts = [remake(first[0]), *parts]
        if type(model) is keras.Sequential:
            copied = keras.Sequential(parts, name=model.name)
        else:
            copied = like_its_class(model, parts)
            copy_attributes(model, copied)
        if model.built and not copied.built:
            copied.build(model.input_shape)
        return copied

    def _graph(self, model: Any) -> Any:
        inputs = {
            id(layer.output): remake(layer).output
            for layer in model.layers
            if isinstance(layer, keras.layers.InputLayer)
        }
        # Only its layers: of the model itself, Keras would copy the compilation, as far
        # as everything in it is registered.
        layers = keras.Model(model.input, model.output, name=model.name)
        plain = keras.models.clone_model(
            layers,
            clone_function=self.copy,
            input_tensors=keras.tree.map_structure(
                lambda tensor: inputs[id(tensor)], model.input
            ),
        )
        if type(model) is type(layers):
            return plain
        copied = like_its_class(model, plain.input, plain.output)
        copy_attributes(model, copied)
        return copied

    def _layer(self, layer: Any) -> Any:
        if not isinstance(layer, keras.layers.Layer):
            return remake(layer)
        copied = regularize(layer, self._regularizers)
        copy_assets(_pair_parts(layer, copied, partly=True))
        return copied


def _pair_parts(old: Any, new: Any, partly: bool = False) -> list[Pair]:
    """The layers within a layer and those in its copy; `partly`: as far as built."""
    olds, news = plain_layers(old), plain_layers(new)
    if [type(layer) for layer in olds] != [type(layer) for layer in news]:
        if partly:
            return [(old, new)]
        raise invalid_value(
            "model",
            "layers that `from_config()` makes again with all layers in them",
            f"'{old.name}' (of type {type(old)}), with {len(olds) - 1} layers in it, "
            f"and {len(news) - 1} after `from_config(get_config())`",
        )
    return list(zip(olds, news, strict=True))
