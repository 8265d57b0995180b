"""Variables that are derived state: neither weights nor in any file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_powerlaw.support.types import Tensor


def state_variable(
    layer: keras.layers.Layer,
    name: str,
    shape: Sequence[int],
    dtype: str,
    initializer: str = "zeros",
    synchronization: str = "auto",
) -> keras.Variable:
    """Creates a variable that `layer` updates outside of its gradients."""
    variable = keras.Variable(
        initializer,
        shape=tuple(shape),
        dtype=dtype,
        trainable=False,
        autocast=False,
        synchronization=synchronization,
        name=name,
    )
    if keras.backend.backend() != "tensorflow":
        # An attribute of the layer is tracked; JAX's training step treats untracked
        # variables as constants. TensorFlow does not need this, and without it the
        # variable stays out of exported graphs.
        setattr(layer, f"tracked_{name}", variable)
    return variable


def recurrent_states(layer: Any) -> list[keras.Variable]:
    """The states of a stateful recurrent layer, which Keras does not track."""
    return [
        state
        for state in keras.tree.flatten(getattr(layer, "states", None))
        if isinstance(state, keras.Variable)
    ]


def discard_state(layer: keras.layers.Layer, name: str) -> None:
    """Undoes `state_variable()`."""
    if hasattr(layer, f"tracked_{name}"):
        delattr(layer, f"tracked_{name}")


def write_rows(variable: Any, rows: Tensor, start: Tensor) -> None:
    """Overwrites the rows of a matrix from index `start` on, without copying it.

    Args:
        variable: Variable of shape `(capacity, units)`, one of
            `parts_of_replicas()`.
        rows: Tensor of shape `(count, units)`, in the variable's dtype.
        start: Index of the first row, such that the last one is below `capacity`.
    """
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        places = start + tf.range(tf.shape(rows)[0], dtype=start.dtype)
        variable.scatter_update(tf.IndexedSlices(rows, places))
    elif backend == "torch":
        import torch

        with torch.no_grad():
            places = start + torch.arange(len(rows), device=rows.device)
            variable.value.index_copy_(0, places, rows)
    else:
        # XLA updates in place, since Keras donates the state of a training step.
        variable.assign(ops.slice_update(variable.value, (start, 0), rows))


def is_on_host(tensor: Tensor) -> bool:
    """Whether a tensor is in the memory of the processor, not of an accelerator."""
    if keras.backend.backend() == "jax":
        return all(device.platform == "cpu" for device in tensor.devices())
    return "cpu" in str(tensor.device).lower()
