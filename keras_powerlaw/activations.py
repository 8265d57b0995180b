"""A model's activations: batches of any data that `fit()` takes, and passes of them."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import operator
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import scipy.sparse
from keras import ops
from numpy.typing import NDArray

from keras_powerlaw.arguments import (
    Reduction,
    Tensor,
    invalid_value,
    refuse_mask,
    require_memory,
    validate_integer,
    validate_optional_integer,
)
from keras_powerlaw.attach import observe
from keras_powerlaw.backends import no_gradients, recurrent_states
from keras_powerlaw.keras_internals import flatten_layers, hold_current_weights
from keras_powerlaw.layers import require_one_output, unique_names
from keras_powerlaw.progress import Progress
from keras_powerlaw.spectrum import Covariance, Degenerate
from keras_powerlaw.units import to_samples


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
    for leaf in keras.tree.flatten(x):
        refuse_mask("x", leaf)


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


def is_endless(x: Any) -> bool:
    """Whether a data set is known to have no end."""
    if isinstance(x, keras.utils.PyDataset):
        return x.num_batches is None
    return hasattr(x, "cardinality") and int(x.cardinality()) == -1


class FirstBatches:
    """The batches with the first `count` examples of a data set, each of inputs alone.

    What `input_batches()` takes in place of a data set that is slow to read, or, like
    a `tf.data.Dataset` with `cache(filename)`, may not be read while `fit()` does.

    Args:
        model: The model.
        x: The data set.
        count: Number of examples.
    """

    def __init__(self, model: keras.Model, x: Any, count: int) -> None:
        batches, _ = input_batches(model, x, 1, count, 0)
        self._batches = [(batch,) for batch in batches]

    def __iter__(self) -> Iterator[tuple[Any]]:
        return iter(self._batches)


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


def require_finite(
    nested: Any, what: str, error: type[ValueError] = ValueError
) -> None:
    """Raises an error that begins with `what` if arrays contain NaN or infinity."""
    for leaf in keras.tree.flatten(nested):
        array = np.asarray(ops.convert_to_numpy(leaf))
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            rows = ~np.isfinite(array).reshape(len(array), -1).all(axis=1)
            raise error(
                f"{what}. Expected finite numbers. Received: NaN or infinity in "
                f"{np.sum(rows)} of {len(array)} rows"
            )


def is_array(value: Any) -> bool:
    """Whether `value` is an array, a tensor, a data frame or a sparse matrix."""
    return hasattr(value, "shape") or hasattr(value, "__array__")


class Rows:
    """The rows of an array, which are read before they are converted.

    Of an array in a file, only the rows that are asked for are in memory. Those of a
    data frame or a sparse matrix are dense NumPy arrays, a series being one column.
    """

    def __init__(self, array: Any) -> None:
        if hasattr(array, "dense_shape"):  # tf.SparseTensor, which has no rows
            entries = np.asarray(array.values), np.asarray(array.indices).T
            array = scipy.sparse.csr_matrix(entries, tuple(array.dense_shape))
        elif hasattr(array, "tocsr"):
            array = array.tocsr()
        elif not hasattr(array, "__getitem__") or not hasattr(array, "shape"):
            array = np.asarray(array)
        elif type(array).__module__.startswith("tensorflow") and not ops.is_tensor(
            array
        ):
            array = np.asarray(array)  # its tensors take no array of indices
        self._array = array

    def __len__(self) -> int:
        return int(self._array.shape[0]) if len(self._array.shape) else 0

    def __getitem__(self, rows: slice | NDArray[np.int64]) -> Any:
        if hasattr(self._array, "iloc"):
            values = self._array.iloc[rows].to_numpy()
            if values.dtype == object and not isinstance(values.flat[0], str):
                values = values.astype(keras.backend.floatx())  # of several types
            return values.reshape(len(values), -1)
        if hasattr(self._array, "tocsr"):
            return self._array[rows].toarray()
        # On TensorFlow, `ops.take` copies all of a NumPy array, once per batch.
        if ops.is_tensor(self._array) and not isinstance(rows, slice):
            return ops.take(self._array, rows, axis=0)
        return self._array[rows]


class InferencePasses:
    """Passes batches through a model, in inference mode, one after another.

    The state that a pass leaves behind, such as that of a stateful LSTM, is what the
    next one begins with, as in `predict()`. The model itself keeps the state it has.

    Args:
        model: The model.
    """

    def __init__(self, model: keras.Model) -> None:
        self._model = model
        self._variables: list[keras.Variable] = []  # those that passes have changed
        self._values: list[Tensor] = []

    def __call__(self, inputs: Any) -> None:
        """Passes a batch through the model."""
        self.go_on_from(self.run(inputs))

    def run(self, inputs: Any) -> list[Tensor]:
        """Passes a batch through the model, and returns what `go_on_from()` takes.

        It is apart for functions that are differentiated, whose tensors JAX does not
        let out but as results.
        """
        if not self._model.built:  # there is no state yet
            self._model(inputs, training=False)
            return []
        state = zip(self._variables, self._values, strict=True)
        with keras.StatelessScope(list(state)) as scope:
            self._model(inputs, training=False)
        changed = [
            (variable, ops.stop_gradient(value))
            for variable in _state_of(self._model)
            if (value := scope.get_current_value(variable)) is not None
        ]
        self._variables = [variable for variable, _ in changed]
        return [value for _, value in changed]

    def go_on_from(self, values: list[Tensor]) -> None:
        """Makes the next pass begin with the state that a pass left behind."""
        self._values = values


@contextlib.contextmanager
def keeping_state(model: keras.Model) -> Iterator[None]:
    """Gives a model back the state that forward passes within this context change.

    That is the state of random generators, and whatever else layers assign in
    inference.
    """
    state = [(variable, _value_of(variable)) for variable in _state_of(model)]
    try:
        yield
    finally:
        for variable, value in state:
            if not np.array_equal(_value_of(variable), value):
                variable.assign(value)


def _value_of(variable: keras.Variable) -> NDArray[Any]:
    return np.array(ops.convert_to_numpy(variable))


def _state_of(model: keras.Model) -> list[keras.Variable]:
    """The variables that a forward pass can change."""
    recurrent = map(recurrent_states, flatten_layers(model))
    return [*model.non_trainable_variables, *itertools.chain(*recurrent)]


def add_activations(
    covariances: Sequence[Covariance],
    model: keras.Model,
    x: Any,
    layers: Sequence[keras.layers.Layer],
    reductions: Sequence[Reduction],
    *,
    batch_size: int = 1024,
    max_samples: int | None = None,
    seed: int = 0,
    progress: Progress,
) -> None:
    """Adds the activations of layers to their covariances, in one pass over the data.

    A layer that is called several times per forward pass contributes every call.

    Raises:
        Degenerate: If the activations of a layer are not finite.
        ValueError: If the data are empty, not finite, or do not fit; or if a layer was
            not called, or its activations differ in their number of units.
    """
    hold_current_weights(model)
    for layer in layers:
        require_one_output(layer)
    names = unique_names(model, layers)
    converts = [functools.partial(_to_array, reduction=each) for each in reductions]
    batches, total = input_batches(model, x, batch_size, max_samples, seed)
    examples, run = 0, InferencePasses(model)
    for index, batch in enumerate(batches):
        examples += len(keras.tree.flatten(batch)[0])
        require_finite(batch, f"Invalid value for argument `x`: batch {index}")
        with no_gradients(), observe(model, layers, converts) as observed:
            run(batch)
        for name, activities in zip(names, observed, strict=True):
            if not activities:
                raise invalid_value(
                    "layer",
                    f"a layer that model '{model.name}' calls as a layer (of one "
                    "within `TimeDistributed` or within the `call()` of another, take "
                    "the layer around it)",
                    f"'{name}', which was not called",
                )
        if index == 0:
            widths = [activities[0].shape[1] for activities in observed]
            most = max_samples if total is None else total * examples
            require_memory(
                [
                    (name, _width(covariance, activities, examples, most))
                    for name, covariance, activities in zip(
                        names, covariances, observed, strict=True
                    )
                ]
            )
        for name, units, activities, covariance in zip(
            names, widths, observed, covariances, strict=True
        ):
            for activity in activities:
                what = f"Invalid activations of layer '{name}' on `x`"
                require_finite(activity, what, Degenerate)
                if activity.shape[1] != units:
                    raise ValueError(
                        f"The activations of layer '{name}' must have the same "
                        "shape in every batch and call. Received: "
                        f"{activity.shape[1]} units after {units}"
                    )
                covariance.update(activity)
        progress.update(index + 1, total)
    if examples < 2:
        raise invalid_value(
            "x",
            "at least two examples, since fewer have no covariance",
            f"{examples} example(s)",
        )
    progress.finish()


def _width(
    covariance: Covariance,
    activities: list[NDArray[Any]],
    examples: int,
    most: int | None,
) -> int:
    """The width of the matrix that a covariance needs in the end.

    Args:
        covariance: The covariance.
        activities: What it gets from the first batch.
        examples: The number of examples in that batch.
        most: The number of examples in all, at most, or None if it is not known.
    """
    units = int(activities[0].shape[1])
    if most is None or not covariance.keeps_samples:
        return units
    return min(units, most * sum(map(len, activities)) // max(examples, 1))


def _to_array(activity: Tensor, reduction: Reduction) -> NDArray[Any]:
    if keras.backend.standardize_dtype(activity.dtype) in ("float16", "bfloat16"):
        activity = ops.cast(activity, "float32")  # like the regularizer
    return np.asarray(ops.convert_to_numpy(to_samples(activity, reduction)))
