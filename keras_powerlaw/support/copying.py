"""Copying a model with changes to the configs of some layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_powerlaw.support.arguments import invalid_value


def copy_model(model: keras.Model, changes: Mapping[int, Mapping[str, Any]]) -> Any:
    """Copies a model, its weights included, with changed configs of some layers.

    Args:
        model: A Sequential or Functional model, which is left unchanged.
        changes: Config entries to replace, keyed by the `id` of the layer.

    Returns:
        The copy. If `model` is compiled, so is the copy, with the same settings and
        optimizer state.

    Raises:
        ValueError: If the copy is not of the same class: of a subclass whose
            constructor it cannot call, Keras makes a Sequential or Functional model.
    """

    def clone(layer: keras.layers.Layer) -> keras.layers.Layer:
        config = {**layer.get_config(), **changes.get(id(layer), {})}
        return layer.__class__.from_config(config)

    copy = keras.models.clone_model(model, clone_function=clone, recursive=True)
    if type(copy) is not type(model):
        raise invalid_value(
            "model",
            "a Sequential or Functional model, or a subclass with the same constructor "
            "(in another, pass `activity_regularizer=` to the layer where it is "
            "created)",
            f"{model} (of type {type(model)}, of which keras.models.clone_model makes "
            f"a {type(copy).__name__})",
        )
    if model.built:
        copy.set_weights(model.get_weights())
    if model.compiled:
        _copy_compilation(model, copy)
    return copy


def _copy_compilation(model: keras.Model, copy: keras.Model) -> None:
    copy.compile_from_config(model.get_compile_config())
    if model.optimizer.built:
        copy.optimizer.build(copy.trainable_variables)
        for new, old in zip(
            copy.optimizer.variables, model.optimizer.variables, strict=True
        ):
            # Copied, because a JAX training step invalidates the arrays passed to it.
            new.assign(np.array(ops.convert_to_numpy(old)))
