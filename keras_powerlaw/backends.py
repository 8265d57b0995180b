"""What differs between TensorFlow, JAX and PyTorch, and on several devices."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from keras_powerlaw.arguments import Tensor, installation_command

TITLES = {"tensorflow": "TensorFlow", "jax": "JAX", "torch": "PyTorch"}

try:
    import keras
    from keras import ops
except ModuleNotFoundError as error:
    # Keras names the missing module, and not the setting that asks for it.
    if error.name not in TITLES:
        raise
    raise ModuleNotFoundError(
        f"Keras is set to run on {TITLES[error.name]}, which is not installed. Install "
        f"it with: {installation_command(error.name)}, or choose another backend "
        "before Python starts: export KERAS_BACKEND=jax, or torch, or tensorflow",
        name=error.name,
    ) from error


def vjp(
    function: Callable[[Tensor], Any], x: Tensor, *, has_aux: bool = False
) -> tuple[Tensor, Callable[[Tensor], Tensor], Any]:
    """The output of a function, and its vector-Jacobian product.

    Inside the backend's own gradient, the products are differentiable with respect to
    the weights that `function` uses.

    Args:
        function: Maps a tensor like `x` to a tensor or, with `has_aux`, to that
            tensor and an auxiliary value.
        x: A floating-point tensor, treated as a constant: no gradient flows into it.
        has_aux: Whether `function` returns an auxiliary value. Defaults to `False`.

    Returns:
        `(output, product, aux)`. `product` maps a cotangent `c`, a tensor of the
        output's shape and dtype, to the gradient of `sum(c * output)` with respect to
        `x`. It can be called repeatedly, and is zero where the output does not depend
        on `x`. `aux` is the auxiliary value, or None.
    """
    if not has_aux:
        return vjp(lambda x: (function(x), None), x, has_aux=True)
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        output, products, aux = jax.vjp(function, x, has_aux=True)
        return output, lambda cotangent: products(cotangent)[0], aux
    if backend == "torch":
        import torch

        x = x.detach().requires_grad_(True)
        with torch.enable_grad():  # `evaluate()` disables gradients
            output, aux = function(x)

        def torch_product(cotangent: Tensor) -> Tensor:
            # A function that rounds its input leaves no path back to `x`.
            if not output.requires_grad:
                return torch.zeros_like(x)
            [gradient] = torch.autograd.grad(
                output, x, cotangent, create_graph=True, allow_unused=True
            )
            return torch.zeros_like(x) if gradient is None else gradient

        return output, torch_product, aux

    import tensorflow as tf

    with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
        tape.watch(x)
        output, aux = function(x)

    def product(cotangent: Tensor) -> Tensor:
        return tape.gradient(output, x, cotangent, unconnected_gradients="zero")

    return output, product, aux


def no_gradients() -> contextlib.AbstractContextManager[Any]:
    """Disables gradients in PyTorch, which would store values for a backward pass."""
    if keras.backend.backend() != "torch":
        return contextlib.nullcontext()
    import torch

    context: contextlib.AbstractContextManager[Any] = torch.no_grad()
    return context


def replica_context() -> Any:
    """TensorFlow's replica context, or None unless this is one of several replicas."""
    if keras.backend.backend() != "tensorflow":
        return None
    import tensorflow as tf

    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return None
    return context


def index_of_replica() -> int:
    """The index of this replica, 0 where there are not several."""
    context = replica_context()
    if context is None:
        return 0
    import tensorflow as tf

    # Within a graph, it is a constant tensor.
    return int(tf.get_static_value(context.replica_id_in_sync_group))


def parts_of_replicas(variable: keras.Variable) -> list[Any]:
    """What the replicas hold of a variable that is synchronized "on_read", in order.

    Each part can be read and assigned. Where there are no replicas, there is one part.
    """
    if keras.backend.backend() != "tensorflow":
        return [variable]
    return list(getattr(variable.value, "values", [variable.value]))


def steps_taken(model: keras.Model) -> int:
    """The number of updates that the optimizer of a model has made."""
    iterations = model.optimizer.iterations
    # A tensor, if the optimizer accumulates gradients.
    if isinstance(iterations, keras.Variable):
        [iterations, *_] = parts_of_replicas(iterations)
    return int(iterations)


def is_recorded(tensor: Tensor) -> bool:
    """Whether gradients are recorded with respect to weights behind `tensor`.

    JAX can't tell.
    """
    if keras.backend.backend() == "torch":
        return bool(tensor.requires_grad)
    if keras.backend.backend() == "tensorflow":
        from tensorflow.python.eager import record

        return bool(record.could_possibly_record())
    return False


def share_of_replica(loss: Tensor) -> Tensor:
    """One replica's share of a loss that every replica computes in full.

    Keras adds up the losses of the replicas, so each contributes an equal part.
    """
    context = replica_context()
    return loss if context is None else loss / context.num_replicas_in_sync


def of_first_process(array: Any, variable: keras.Variable) -> Any:
    """The first process's `array`, in every process that holds part of `variable`.

    JAX assigns an array to a variable of several processes only if it is the same to
    the last bit in all of them. Eigenvectors need not be: their signs are arbitrary.
    """
    if keras.backend.backend() != "jax" or variable.value.is_fully_addressable:
        return array
    from jax.experimental import multihost_utils

    local = np.asarray(ops.convert_to_numpy(array))
    return np.asarray(multihost_utils.broadcast_one_to_all(local))


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
