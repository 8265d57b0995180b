"""Compiled programs of a classifier, on each Keras backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_powerlaw.arguments import Tensor
from keras_powerlaw.robustness.logits import Classifier

# Maps NumPy arrays to NumPy arrays.
Program = Callable[..., Any]


def compiled(classifier: Classifier, key: Any, function: Callable[..., Any]) -> Program:
    """A program of a classifier, which maps NumPy arrays to NumPy arrays.

    Args:
        classifier: The classifier. The weights of its model may change between calls.
        key: Identifies `function`. Later calls with the same key and classifier return
            the first program, which is compiled once per shape of its arguments.
        function: `function(forward, *arrays)`, which maps tensors to a tensor or a
            tuple of tensors. `forward` maps a batch of images to logits in float32.
            Arguments with dimensions have the batch first; the others are scalars.
    """
    programs = classifier.programs
    if key not in programs:
        compilers = {"tensorflow": _tensorflow, "jax": _jax, "torch": _torch}
        compile_on = compilers[keras.backend.backend()]
        programs[key] = compile_on(classifier, function)
    program: Program = programs[key]
    return program


def compiled_logits(classifier: Classifier) -> Program:
    """The program that maps a batch of images to their logits."""
    return compiled(classifier, "logits", lambda forward, images: forward(images))


def _tensorflow(classifier: Classifier, function: Callable[..., Any]) -> Program:
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
                lambda *tensors: function(classifier, *tensors),
                input_signature=signature,
                autograph=False,
            )
        return _to_arrays(by_shape[signature](*tensors))

    return program


def _jax(classifier: Classifier, function: Callable[..., Any]) -> Program:
    import jax
    import jax.numpy as jnp

    @jax.jit  # type: ignore[untyped-decorator]
    def stateless(values: Any, *tensors: Tensor) -> Any:
        # The weights are arguments of the program. As constants, they would keep the
        # values of its first call.
        scope = keras.StatelessScope(
            list(zip(_variables(classifier.model), values, strict=True))
        )
        with scope:
            return function(classifier, *tensors)

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
        values = [variable.value for variable in _variables(classifier.model)]
        results = _to_arrays(stateless(values, *tensors))
        return keras.tree.map_structure(
            lambda result: result[:count] if result.ndim else result, results
        )

    return program


def _variables(model: keras.Model) -> list[keras.Variable]:
    return [*model.trainable_variables, *model.non_trainable_variables]


def _torch(classifier: Classifier, function: Callable[..., Any]) -> Program:
    import torch

    def program(*arrays: Any) -> Any:
        tensors = [ops.convert_to_tensor(array) for array in arrays]
        with torch.no_grad():
            return _to_arrays(function(classifier, *tensors))

    return program


def _to_arrays(results: Any) -> Any:
    return keras.tree.map_structure(ops.convert_to_numpy, results)
