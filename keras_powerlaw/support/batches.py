"""Batches of a model's inputs, from data in the forms that `fit()` accepts."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from keras_powerlaw.support.arguments import (
    invalid_value,
    validate_integer,
    validate_optional_integer,
)


def validate_sampling(batch_size: Any, max_samples: Any, seed: Any) -> None:
    """Raises a `ValueError` if an argument that selects the examples is invalid."""
    validate_integer("batch_size", batch_size, minimum=1)
    validate_optional_integer("max_samples", max_samples, minimum=2)
    validate_integer("seed", seed, minimum=0)


def input_batches(
    x: Any, batch_size: int, max_samples: int | None, seed: int
) -> tuple[Iterator[Any], int | None]:
    """An iterator over the inputs in `x`, and the number of batches, if known.

    Args:
        x: Array, nested arrays, `tf.data.Dataset`, `keras.utils.PyDataset`, or another
            iterable of batches that can be iterated more than once. Labels are dropped.
        batch_size: Examples per batch, for arrays.
        max_samples: Maximum number of examples, or None for all: a random choice from
            an array, the first ones of a data set.
        seed: Seed of the random choice.
    """
    validate_sampling(batch_size, max_samples, seed)
    if isinstance(x, keras.utils.PyDataset):
        total = x.num_batches
        stream = (x[index] for index in range(total)) if total is not None else None
    elif _is_arrays(x):
        return _array_batches(x, batch_size, max_samples, seed)
    elif (
        hasattr(x, "__iter__")
        and not isinstance(x, str | list | tuple | dict)
        and iter(x) is not x
    ):
        total = len(x) if _has_length(x) else None
        infinite = hasattr(x, "cardinality") and int(x.cardinality()) == -1
        stream = None if infinite else iter(x)
    else:
        raise invalid_value(
            "x",
            "an array, a nested structure of arrays, a `tf.data.Dataset`, a "
            "`keras.utils.PyDataset`, or an iterable of batches that can be iterated "
            "again (not a generator)",
            f"{x} (of type {type(x)})",
        )
    if stream is None:
        raise invalid_value("x", "a finite data set", f"{x}, which is infinite")
    inputs = (keras.utils.unpack_x_y_sample_weight(batch)[0] for batch in stream)
    return _first_samples(inputs, max_samples), total if max_samples is None else None


def _is_arrays(x: Any) -> bool:
    leaves = keras.tree.flatten(x)
    return bool(leaves) and all(
        hasattr(leaf, "shape") and hasattr(leaf, "dtype") and hasattr(leaf, "ndim")
        for leaf in leaves
    )


def _has_length(x: Any) -> bool:
    try:
        return len(x) >= 0
    except TypeError:  # a tf.data.Dataset of unknown or infinite length
        return False


def _array_batches(
    x: Any, batch_size: int, max_samples: int | None, seed: int
) -> tuple[Iterator[Any], int]:
    lengths = {len(leaf) if leaf.ndim else 0 for leaf in keras.tree.flatten(x)}
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
        rows = slice(start, min(start + batch_size, length))
        if order is None:
            return keras.tree.map_structure(lambda leaf: leaf[rows], x)
        return keras.tree.map_structure(lambda leaf: _take(leaf, order[rows]), x)

    starts = range(0, length, batch_size)
    return (batch(start) for start in starts), len(starts)


def _take(array: Any, rows: NDArray[np.int64]) -> Any:
    # On TensorFlow, `convert_to_numpy` copies all of a NumPy array, once per batch.
    return ops.take(array, rows, axis=0) if ops.is_tensor(array) else array[rows]


def _first_samples(batches: Iterable[Any], max_samples: int | None) -> Iterator[Any]:
    if max_samples is None:
        yield from batches
        return
    seen = 0
    for batch in batches:
        needed = max_samples - seen
        yield keras.tree.map_structure(operator.itemgetter(slice(needed)), batch)
        seen += len(keras.tree.flatten(batch)[0])
        if seen >= max_samples:
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
