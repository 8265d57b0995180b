"""Compiling a model as another one is compiled, and copying its optimizer."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Mapping
from typing import Any

import keras

from keras_powerlaw.arguments import invalid_value
from keras_powerlaw.keras_internals import (
    compile_arguments,
    trained_variables,
)
from keras_powerlaw.support.remaking import remake
from keras_powerlaw.support.state import assign


def copy_compilation(
    model: keras.Model, copy: keras.Model, variables: Mapping[int, Any]
) -> None:
    """Compiles a copy of `model`, with an optimizer in the same state.

    Args:
        model: A compiled model.
        copy: Its copy.
        variables: The variables of the copy, keyed by the `id` of the original one.
    """
    optimizer = _remake_optimizer(model.optimizer)
    compile_like(copy, model, optimizer)
    if getattr(model.optimizer, "built", False):
        _copy_slots(model.optimizer, optimizer, copy, variables)


def compile_like(copy: keras.Model, model: keras.Model, optimizer: Any) -> None:
    """Compiles `copy` with the settings of `model`, but `optimizer`.

    The losses are the same objects, which have no state; the metrics are others.

    Raises:
        ValueError: If the class of `model` has a `compile()` of its own.
    """
    if type(model).compile is not keras.Model.compile:
        raise invalid_value(
            "model",
            "a model that is compiled by Keras's `compile()` (call this before you "
            "compile it, and compile the result)",
            f"'{model.name}' (of type {type(model)}), which has its own",
        )
    arguments = {**compile_arguments(model), "optimizer": optimizer}
    for name in "metrics", "weighted_metrics":
        arguments[name] = keras.tree.map_structure(_remake_metric, arguments[name])
    copy.dtype_policy = model.dtype_policy  # mixed_float16 wraps the optimizer
    copy.compile(**arguments)
    copy.run_eagerly = model.run_eagerly


def _remake_metric(metric: Any) -> Any:
    return remake(metric) if isinstance(metric, keras.metrics.Metric) else metric


def _remake_optimizer(optimizer: Any) -> Any:
    inner = getattr(optimizer, "inner_optimizer", None)
    if inner is None:
        return remake(optimizer)
    config = {**optimizer.get_config(), "inner_optimizer": _remake_optimizer(inner)}
    return type(optimizer)(**config)


def _copy_slots(
    old: Any, new: Any, copy: keras.Model, variables: Mapping[int, Any]
) -> None:
    """Copies the state of an optimizer, each variable's to its copy.

    Layers may have been frozen, thawed, added or removed since it was built: the new
    one is built for what is trained now, and begins anew for what was not.
    """
    known = [variables.get(id(v), v) for v in trained_variables(old)]
    trained = copy.trainable_variables
    if list(map(id, known)) == list(map(id, trained)):
        new.build(trained)
        slots = list(zip(new.variables, old.variables, strict=True))
    else:
        # Built like the old one, so that its variables are in the same order.
        like_old = _remake_optimizer(old)
        names = _build(like_old, known)
        values = dict(zip(names, old.variables, strict=True))
        names = _build(new, trained)
        slots = [
            (variable, values[name])
            for name, variable in zip(names, new.variables, strict=True)
            if name in values
        ]
    for variable, value in slots:
        assign(variable, value)


def _build(optimizer: Any, variables: list[Any]) -> list[Any]:
    """Builds an optimizer.

    Returns:
        A name for each of its variables: whose slot it is, and which.
    """
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    add, slots = inner.add_variable_from_reference, {}
    counts: collections.Counter[int] = collections.Counter()

    def record(reference: Any, *args: Any, **kwargs: Any) -> Any:
        variable = add(reference, *args, **kwargs)
        counts[id(reference)] += 1
        slots[id(variable)] = id(reference), counts[id(reference)]
        return variable

    inner.add_variable_from_reference = record
    try:
        optimizer.build(variables)
    finally:
        del inner.add_variable_from_reference
    others = itertools.count()
    return [
        slots.get(id(variable)) or ("other", next(others))
        for variable in optimizer.variables
    ]
