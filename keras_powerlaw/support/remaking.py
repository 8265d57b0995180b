"""Making an object of Keras again from its config, whatever the user defined in it."""

from __future__ import annotations

import copy
import types
import warnings
from typing import Any

import keras

from keras_powerlaw.keras_internals import flatten_layers, rematerialized

# What an attribute can be to be shared by an object and its copy.
PLAIN = (bool, int, float, complex, str, bytes, type(None))


def remake(thing: Any, config: dict[str, Any] | None = None) -> Any:
    """Makes another object of the class of `thing`, from its config.

    Functions and classes that Keras would look up by name, which must be registered
    for it, are found in `thing` itself.

    Args:
        thing: A layer, an operation, a metric or an optimizer.
        config: Another config of its. Defaults to its own.

    Raises:
        ValueError: If the class can't make an object from its own config.
    """
    try:
        config = copy.deepcopy(config_of(thing) if config is None else config)
        definitions = _definitions(thing)
        for part in _parts(thing):
            within = config_within(thing, config, part)
            definitions.update(_name_functions(part, within))
        with rematerialized(thing), keras.saving.custom_object_scope(definitions):
            made = type(thing).from_config(config)
    except Exception as error:
        raise ValueError(
            f"'{thing.name}' can't be copied, because its class {type(thing).__name__} "
            "makes no object from its config. Define `get_config()` and "
            f"`from_config()` such that they fit together. ({error})"
        ) from error
    made.name = thing.name  # in the config of a class without `get_config()`, it is not
    if not is_of_keras(type(thing)):
        _copy_plain_attributes(thing, made)
    return made


def is_of_keras(definition: Any) -> bool:
    """Whether a class or function is one of Keras or of this package."""
    return definition.__module__.partition(".")[0] in ("keras", "keras_powerlaw")


def _copy_plain_attributes(thing: Any, made: Any) -> None:
    """Those that a config may not contain, or that were set since."""
    for name, value in vars(thing).items():
        is_public = not name.startswith("_") and name != "built"
        if is_public and isinstance(value, PLAIN) and vars(made).get(name) != value:
            setattr(made, name, value)


def config_of(thing: Any) -> dict[str, Any]:
    """The config of an object, which is not going to be saved."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*lambda")
        config: dict[str, Any] = thing.get_config()
    return config


def config_within(outer: Any, config: dict[str, Any], layer: Any) -> dict[str, Any]:
    """The part of the config of `outer` that is the config of a layer in it.

    An empty one, if `outer` says nothing of the layer in its config.
    """
    if layer is outer:
        return config
    entries: list[Any] = [config]
    while entries:
        entry = entries.pop()
        if isinstance(entry, dict):
            inner = entry.get("config")
            is_class = entry.get("class_name") == type(layer).__name__
            if is_class and isinstance(inner, dict) and inner.get("name") == layer.name:
                return inner
            entries.extend(entry.values())
        elif isinstance(entry, list | tuple):
            entries.extend(entry)
    return {}


def _parts(thing: Any) -> list[Any]:
    return flatten_layers(thing) if isinstance(thing, keras.layers.Layer) else [thing]


def _name_functions(thing: Any, config: dict[str, Any]) -> dict[str, Any]:
    """Puts names of their own in place of the functions in a config.

    Returns:
        The functions by these names. Keras finds a function by the name in its
        definition, which two lambdas share, and which says nothing of a closure.
    """
    functions = {}
    for key, value in config.items():
        function = getattr(thing, key, getattr(thing, f"_{key}", None))
        if isinstance(value, dict) and isinstance(function, types.FunctionType):
            name = f"{key} of {thing.name} {id(thing)}"
            functions[name] = function
            config[key] = {
                "class_name": "function",
                "config": name,
                "module": "builtins",
                "registered_name": name,
            }
    return functions


def _definitions(thing: Any) -> dict[str, Any]:
    """The user's classes and functions in the attributes of `thing`, by their names."""
    found: dict[str, Any] = {}
    for part in _parts(thing):
        for value in (part, *vars(part).values()):
            definition = value if isinstance(value, types.FunctionType) else type(value)
            if definition.__module__.partition(".")[0] not in ("builtins", "keras"):
                found[definition.__name__] = definition
    return found
