"""Copies of models whose class is derived from Sequential or Functional."""

from __future__ import annotations

import types
from typing import Any

import keras

from keras_powerlaw.arguments import invalid_value
from keras_powerlaw.support.remaking import PLAIN

# What the config of a Sequential or Functional model says about its layers.
GRAPH = {
    *("name", "trainable", "dtype", "dtype_policy"),
    *("layers", "input_layers", "output_layers", "build_input_shape"),
}


def like_its_class(model: Any, *arguments: Any) -> Any:
    """A model of the same class as `model`, but of other layers.

    Args:
        model: A model of a subclass of Sequential or Functional.
        *arguments: Its layers, or its inputs and outputs.

    Raises:
        ValueError: If the constructor makes a model of layers of its own.
    """
    layers = _layers_of(arguments)
    try:
        options = {k: v for k, v in model.get_config().items() if k not in GRAPH}
        copied = type(model)(*arguments, name=model.name, **options)
    except Exception as error:
        raise _refusal(model, f"of which the constructor fails ({error})") from error
    if _layers_of((copied.layers,)) != layers and layers:
        raise _refusal(model, "of which the constructor makes layers of its own")
    return copied


def _layers_of(arguments: tuple[Any, ...]) -> list[int]:
    """The layers in a list of them; none in symbolic inputs and outputs."""
    return [
        id(layer)
        for layer in keras.tree.flatten(arguments)
        if isinstance(layer, keras.layers.Layer)
        and not isinstance(layer, keras.layers.InputLayer)
    ]


def copy_attributes(model: Any, copied: Any) -> None:
    """Gives the copy the attributes that the user's class or the user added.

    Raises:
        ValueError: If one is neither a plain value nor made by the constructor.
    """
    for name in vars(model).keys() - _attributes_of_keras():
        value = vars(model)[name]
        if isinstance(value, (*PLAIN, types.FunctionType)):
            setattr(copied, name, value)
        elif name not in vars(copied) or isinstance(value, keras.layers.Layer):
            raise _refusal(model, f"whose attribute `{name}` would be lost")


def _attributes_of_keras() -> set[str]:
    """The attributes of any model that has been compiled and trained."""
    inputs = keras.Input((1,))
    attributes = {"history", "train_function", "test_function", "predict_function"}
    outputs = keras.layers.Identity()(inputs)
    for model in keras.Model(inputs, outputs), keras.Sequential([inputs]):
        model.compile("sgd", "mse")
        attributes.update(vars(model))
    return attributes


def _refusal(model: Any, reason: str) -> ValueError:
    return invalid_value(
        "model",
        "a Sequential or Functional model, or a subclass whose constructor takes what "
        "theirs takes (in another, pass `activity_regularizer=` to the layer where it "
        "is created, or give `keras.Model(model.inputs, model.outputs)`, a Functional "
        "model of the same layers, which trains in Keras's way)",
        f"'{model.name}' (of type {type(model)}), {reason}",
    )
