"""Compiled programs of a model, on each Keras backend; compiled once per model."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import keras
from keras import ops

from keras_powerlaw.support.types import Tensor

# Maps NumPy arrays to NumPy arrays.
Program = Callable[..., Any]

# Programs by model, and then by key. A program must not refer to its model, which would
# keep both alive forever; its graph holds the weights as long as the model lives.
_PROGRAMS: weakref.WeakKeyDictionary[keras.Model, dict[Any, Program]] = (
    weakref.WeakKeyDictionary()
)


def compiled(model: keras.Model, key: Any, function: Callable[..., Any]) -> Program:
    """A program of `model`, which maps NumPy arrays to NumPy arrays.

    Args:
        model: A model that returns logits. Its weights may change between calls.
        key: Identifies `function`. Later calls with the same key and model return the
            first program, which is compiled once per shape of its arguments.
        function: `function(forward, *arrays)`, which maps tensors to a tensor or a
            tuple of tensors. `forward` maps a batch of images to logits in float32.
            Arguments with dimensions have the batch first; the others are scalars.
    """
    programs = _PROGRAMS.setdefault(model, {})
    if key not in programs:
        compilers = {"tensorflow": _tensorflow, "jax": _jax, "torch": _torch}
        compile_on = compilers[keras.backend.backend()]
        programs[key] = compile_on(weakref.ref(model), function)
    return programs[key]


def compiled_logits(model: keras.Model) -> Program:
    """The program that maps a batch of images to their logits."""
    return compiled(model, "logits", lambda forward, images: forward(images))


def _forward(model: Any) -> Callable[[Tensor], Tensor]:
    return lambda images: ops.cast(model()(images, training=False), "float32")


def _tensorflow(model: Any, function: Callable[..., Any]) -> Program:
    import tensorflow as tf

    by_shape: dict[Any, Any] = {}

    def program(*arrays: Any) -> Any:
        tensors = [tf.convert_to_tensor(array) for array in arrays]
        # For any batch size, to avoid recompiling when examples leave the batch.
        signature = tuple(
            tf.TensorSpec([None, *t.shape[1:]] if t.shape.rank else [], t.dtype)
            for t in tensors
        )
        if signature not in by_shape:
            by_shape[signature] = tf.function(
                lambda *tensors: function(_forward(model), *tensors),
                input_signature=signature,
                autograph=False,
            )
        return _to_arrays(by_shape[signature](*tensors))

    return program


def _jax(model: Any, function: Callable[..., Any]) -> Program:
    import jax
    import jax.numpy as jnp

    @jax.jit  # type: ignore[untyped-decorator]
    def stateless(values: Any, *tensors: Tensor) -> Any:
        # The weights are arguments of the program. As constants, they would keep the
        # values of its first call.
        scope = keras.StatelessScope(
            list(zip(_variables(model()), values, strict=True))
        )
        with scope:
            return function(_forward(model), *tensors)

    def program(*arrays: Any) -> Any:
        [count] = {len(array) for array in arrays if jnp.ndim(array)}
        # Padded to a power of two, since JAX compiles once per batch size.
        padded = 1 << (count - 1).bit_length()
        tensors = [
            jnp.pad(
                jnp.asarray(array),
                [(0, padded - count)] + [(0, 0)] * (jnp.ndim(array) - 1),
                mode="edge",
            )
            if jnp.ndim(array)
            else array
            for array in arrays
        ]
        values = [variable.value for variable in _variables(model())]
        results = _to_arrays(stateless(values, *tensors))
        return keras.tree.map_structure(
            lambda result: result[:count] if result.ndim else result, results
        )

    return program


def _variables(model: keras.Model) -> list[keras.Variable]:
    return [*model.trainable_variables, *model.non_trainable_variables]


def _torch(model: Any, function: Callable[..., Any]) -> Program:
    import torch

    def program(*arrays: Any) -> Any:
        tensors = [ops.convert_to_tensor(array) for array in arrays]
        with frozen(model()), torch.no_grad():
            return _to_arrays(function(_forward(model), *tensors))

    return program


@contextlib.contextmanager
def frozen(model: keras.Model) -> Iterator[None]:
    """Keeps PyTorch from accumulating gradients of the weights within this context."""
    if keras.backend.backend() != "torch":
        yield
        return
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    for weight in weights:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in weights:
            weight.requires_grad_(True)


def _to_arrays(results: Any) -> Any:
    return keras.tree.map_structure(ops.convert_to_numpy, results)
