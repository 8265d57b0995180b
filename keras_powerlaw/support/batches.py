"""Batches of a model's inputs, from data in the forms that `fit()` accepts."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_powerlaw.arguments import (
    invalid_value,
    validate_integer,
    validate_optional_integer,
)
from keras_powerlaw.support.arrays import Rows, is_array


def validate_sampling(batch_size: Any, max_samples: Any, seed: Any) -> None:
    """Raises a `ValueError` if an argument that selects the examples is invalid."""
    validate_integer("batch_size", batch_size, minimum=1)
    validate_optional_integer("max_samples", max_samples, minimum=2)
    validate_integer("seed", seed, minimum=0)


def input_batches(
    model: keras.Model, x: Any, batch_size: int, max_samples: int | None, seed: int
) -> tuple[Iterator[Any], int | None]:
    """An iterator over a model's inputs in `x`, and the number of batches, if known.

    Args:
        model: The model; of a dictionary, it gets the entries with its inputs' names.
        x: Array, nested arrays, `tf.data.Dataset`, `keras.utils.PyDataset`, or another
            iterable of batches that can be iterated more than once. Labels are dropped.
        batch_size: Examples per batch, for arrays.
        max_samples: Maximum number of examples, or None for all: a random choice from
            an array, random batches of a `PyDataset`, else the first ones.
        seed: Seed of the random choice.
    """
    validate_sampling(batch_size, max_samples, seed)
    x = select_inputs(model, x)
    validate_data(x)
    if is_nested_arrays(x):
        return _array_batches(x, batch_size, max_samples, seed)
    if max_samples is None and is_endless(x):
        raise invalid_value("x", "a finite data set", f"{x}, which is infinite")
    total = None
    if isinstance(x, keras.utils.PyDataset):
        total = x.num_batches
        stream = (x[index] for index in _indices(total, max_samples, seed))
    else:
        total = len(x) if _has_length(x) else None
        stream = iter(x)
    inputs = (
        select_inputs(model, keras.utils.unpack_x_y_sample_weight(batch)[0])
        for batch in stream
    )
    return _first_samples(inputs, max_samples), total if max_samples is None else None


def validate_data(x: Any) -> None:
    """Raises a `ValueError` if `x` is neither arrays nor batches."""
    is_batches = isinstance(x, keras.utils.PyDataset) or (
        hasattr(x, "__iter__")
        and not isinstance(x, str | list | tuple | dict)
        and not hasattr(x, "__next__")
    )
    if not is_batches and not is_nested_arrays(x):
        raise invalid_value(
            "x",
            "an array, a nested structure of arrays, a `tf.data.Dataset`, a "
            "`keras.utils.PyDataset`, or an iterable of batches that can be iterated "
            "again (not a generator)",
            f"{x} (of type {type(x)})",
        )


def select_inputs(model: keras.Model, x: Any) -> Any:
    """The entries of a dictionary that a model takes, in its order; else `x` itself.

    As in `fit()`, the keys are those of the dictionary that a Functional model was made
    with, or the names of its inputs. Other keys are ignored. A subclassed model takes
    all of `x`.
    """
    if not isinstance(x, dict) or not getattr(model, "inputs", None):
        return x
    # A Sequential model has no `input` before it is called.
    is_sequential = isinstance(model, keras.Sequential)
    expected = model.inputs if is_sequential else model.input
    if not isinstance(expected, dict | list | tuple):
        expected = [expected]
    parts = list(expected.values() if isinstance(expected, dict) else expected)
    if not all(isinstance(part, keras.KerasTensor) for part in parts):
        return x  # nested: Keras takes only the same structure
    names = list(expected) if isinstance(expected, dict) else [p.name for p in parts]
    if missing := [name for name in names if name not in x]:
        raise invalid_value(
            "x",
            f"a dictionary with the inputs {names} of model '{model.name}'",
            f"one without {missing}, with the keys {list(x)}",
        )
    if isinstance(expected, dict):
        return {name: x[name] for name in names}
    return x[names[0]] if len(names) == 1 else [x[name] for name in names]


def is_nested_arrays(x: Any) -> bool:
    leaves = keras.tree.flatten(x)
    return bool(leaves) and all(map(is_array, leaves))


def count_examples(model: keras.Model, x: Any, max_samples: int | None) -> int | None:
    """The number of examples in `x`, at most, or None if it is not known."""
    x = select_inputs(model, x)
    if not is_nested_arrays(x):
        return max_samples
    length = len(Rows(keras.tree.flatten(x)[0]))
    return length if max_samples is None else min(length, max_samples)


def is_endless(x: Any) -> bool:
    """Whether a data set is known to have no end."""
    if isinstance(x, keras.utils.PyDataset):
        return x.num_batches is None
    return hasattr(x, "cardinality") and int(x.cardinality()) == -1


def _indices(count: int | None, max_samples: int | None, seed: int) -> Iterable[int]:
    """The order in which to read the batches of a `PyDataset`."""
    if count is None:
        return itertools.count()
    if max_samples is None:
        return range(count)
    return map(int, np.random.default_rng(seed).permutation(count))


def _has_length(x: Any) -> bool:
    try:
        return len(x) >= 0
    except TypeError:  # a tf.data.Dataset of unknown or infinite length
        return False


def _array_batches(
    x: Any, batch_size: int, max_samples: int | None, seed: int
) -> tuple[Iterator[Any], int]:
    arrays = keras.tree.map_structure(Rows, x)
    lengths = {len(rows) for rows in keras.tree.flatten(arrays)}
    if len(lengths) > 1:
        raise invalid_value(
            "x", "arrays with the same number of examples", f"lengths {sorted(lengths)}"
        )
    [length] = lengths
    order = None
    if max_samples is not None and max_samples < length:
        order = np.random.default_rng(seed).choice(length, max_samples, replace=False)
        order.sort()
        length = max_samples

    def batch(start: int) -> Any:
        chosen = slice(start, min(start + batch_size, length))
        rows = chosen if order is None else order[chosen]
        return keras.tree.map_structure(operator.itemgetter(rows), arrays)

    starts = range(0, length, batch_size)
    return (batch(start) for start in starts), len(starts)


def _first_samples(batches: Iterable[Any], max_samples: int | None) -> Iterator[Any]:
    needed = math.inf if max_samples is None else max_samples
    for index, batch in enumerate(batches):
        if not is_nested_arrays(batch):
            raise invalid_value("x", "batches of arrays", f"batch {index}: {batch}")
        arrays = keras.tree.map_structure(Rows, batch)
        count = min(len(keras.tree.flatten(arrays)[0]), needed)
        yield keras.tree.map_structure(operator.itemgetter(slice(count)), arrays)
        needed -= count
        if needed == 0:
            return


def validate_input_shape(model: keras.Model, batch: Any) -> None:
    """Raises a `ValueError` unless a batch has the shape of the model's inputs."""
    if not getattr(model, "inputs", None):  # a subclassed model has no fixed input
        return
    shapes = [tuple(leaf.shape) for leaf in keras.tree.flatten(batch)]
    expected = [tuple(tensor.shape) for tensor in model.inputs]
    if len(shapes) != len(expected) or not all(map(_fits, shapes, expected)):
        raise invalid_value(
            "x",
            f"batches of shape {expected[0] if len(expected) == 1 else expected} (the "
            f"input of model '{model.name}')",
            f"a batch of shape {shapes[0] if len(shapes) == 1 else shapes}",
        )


def _fits(shape: tuple[int, ...], expected: tuple[int | None, ...]) -> bool:
    # When it calls a model, Keras adds or drops a last dimension of size one.
    return any(
        len(candidate) == len(expected)
        and all(
            size is None or size == received
            for received, size in zip(candidate, expected, strict=True)
        )
        for candidate in (shape, (*shape, 1), shape[:-1] if shape[-1] == 1 else ())
    )


def require_finite(
    nested: Any,
    what: str,
    rows: str = "examples",
    error: type[ValueError] = ValueError,
) -> None:
    """Raises a `ValueError` if nested arrays contain NaN or infinity.

    Args:
        nested: The arrays, with the rows as their first dimension.
        what: Beginning of the error message: what the arrays are.
        rows: What the error message calls the rows.
        error: The kind of `ValueError`.
    """
    for leaf in keras.tree.flatten(nested):
        array = np.asarray(ops.convert_to_numpy(leaf))
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise error(
                f"{what}. Expected finite numbers. Received: NaN or infinity in "
                f"{np.sum(~np.isfinite(array).reshape(len(array), -1).all(axis=1))} of "
                f"{len(array)} {rows}"
            )
