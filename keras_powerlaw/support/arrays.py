"""The rows of an array, of every kind that `fit()` takes."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
import scipy.sparse
from keras import ops
from numpy.typing import NDArray

from keras_powerlaw.arguments import invalid_value


def is_array(value: Any) -> bool:
    """Whether `value` is an array, a tensor, a data frame or a sparse matrix."""
    dense = all(hasattr(value, name) for name in ("shape", "dtype", "ndim"))
    other = any(
        hasattr(value, name) for name in ("__array__", "iloc", "tocsr", "dense_shape")
    )
    return dense or other


class Rows:
    """The rows of an array, which are read before they are converted.

    Of an array in a file, only the rows that are asked for are in memory. Those of a
    data frame or a sparse matrix are dense NumPy arrays, a series being one column.
    """

    def __init__(self, array: Any) -> None:
        if hasattr(array, "dense_shape"):  # tf.SparseTensor: it has no rows
            self._shape = tuple(map(int, array.dense_shape))
            array = _matrix(array, self._shape)
        elif hasattr(array, "tocsr"):
            self._shape = tuple(array.shape)
            array = array.tocsr()
        else:
            if not (hasattr(array, "shape") and hasattr(array, "__getitem__")):
                array = np.asarray(array)
            elif _is_of_tensorflow(array) and not ops.is_tensor(array):
                array = np.asarray(array)  # its tensors take no array of indices
            self._shape = tuple(array.shape)
        self._array = array

    def __len__(self) -> int:
        return int(self._shape[0]) if self._shape else 0

    def __getitem__(self, rows: slice | NDArray[np.int64]) -> Any:
        if hasattr(self._array, "iloc"):
            return _values(self._array.iloc[rows])
        if hasattr(self._array, "tocsr"):
            return self._array[rows].toarray().reshape(-1, *self._shape[1:])
        if hasattr(self._array, "todense"):  # jax.experimental.sparse.BCOO
            return np.asarray(self._array[rows, ...].todense())
        # On TensorFlow, `ops.take` copies all of a NumPy array, once per batch.
        if ops.is_tensor(self._array) and not isinstance(rows, slice):
            return ops.take(self._array, rows, axis=0)
        return self._array[rows]


def _is_of_tensorflow(array: Any) -> bool:
    return type(array).__module__.partition(".")[0] == "tensorflow"


def _matrix(sparse: Any, shape: tuple[int, ...]) -> Any:
    """A `tf.SparseTensor` as a SciPy matrix, with its other dimensions as one."""
    indices, values = np.asarray(sparse.indices), np.asarray(sparse.values)
    strides = [math.prod(shape[axis + 1 :]) for axis in range(1, len(shape))]
    columns = indices[:, 1:] @ np.array(strides, "int64")
    return scipy.sparse.csr_matrix(
        (values, (indices[:, 0], columns)), (shape[0], math.prod(shape[1:]))
    )


def _values(frame: Any) -> NDArray[Any]:
    array = frame.to_numpy()
    if array.dtype == object and not all(isinstance(each, str) for each in array.flat):
        try:  # columns of several types, such as numbers and booleans
            array = array.astype(keras.backend.floatx())
        except (TypeError, ValueError) as error:
            raise invalid_value(
                "x", "a data frame of numbers", f"a data frame: {error}"
            ) from error
    return array[:, np.newaxis] if array.ndim == 1 else np.asarray(array)
