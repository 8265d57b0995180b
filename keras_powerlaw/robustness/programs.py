"""Compiled programs of a model's logits and input gradients, on each Keras backend."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import keras
from keras import ops

# Programs by model, and then by what they compute. A program must not hold its model,
# which would keep both forever; its own graph holds the weights while the model lives.
_PROGRAMS: weakref.WeakKeyDictionary[keras.Model, dict[Any, Callable[..., Any]]] = (
    weakref.WeakKeyDictionary()
)


def cross_entropy(logits, labels):
    """−log softmax(z)_y of each example, shape `(batch,)`."""
    return ops.sparse_categorical_crossentropy(labels, logits, from_logits=True)


def logit_ratio(logits, labels):
    """The DLR loss of each example, which a scaling of the logits leaves alone.

    `−(z_y − max_{i≠y} z_i) / (z_π1 − z_π3)`, with π the order of the logits from the
    largest; without a third class, without the denominator.

    Reference:
        Croce & Hein (2020), equation (6).
    """
    classes = logits.shape[-1]
    truth = ops.cast(ops.one_hot(labels, classes), "bool")
    zero = ops.zeros_like(logits)
    true_logit = ops.sum(ops.where(truth, logits, zero), axis=-1)
    other = ops.max(ops.where(truth, zero - float("inf"), logits), axis=-1)
    if classes < 3:
        return other - true_logit
    largest, _ = ops.top_k(logits, 3)
    return (other - true_logit) / (largest[:, 0] - largest[:, 2] + 1e-12)


LOSSES = {"ce": cross_entropy, "dlr": logit_ratio}


def logits_and_gradient(forward, images, labels, loss):
    """Logits of `images`, and the gradient of each example's loss by its image."""
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        def summed(images):
            logits = forward(images)
            return ops.sum(loss(logits, labels)), logits

        gradient, logits = jax.grad(summed, has_aux=True)(images)
        return logits, gradient
    if backend == "torch":
        import torch

        with torch.enable_grad():
            images = images.detach().requires_grad_(True)
            logits = forward(images)
            summed = ops.sum(loss(logits, labels))
            # Rounded inputs leave no path to the images: their gradient is zero.
            if not summed.requires_grad:
                return logits, torch.zeros_like(images)
            [gradient] = torch.autograd.grad(summed, [images], allow_unused=True)
        if gradient is None:
            gradient = torch.zeros_like(images)
        return logits.detach(), gradient
    import tensorflow as tf

    with tf.GradientTape() as tape:
        tape.watch(images)
        logits = forward(images)
        summed = ops.sum(loss(logits, labels))
    gradient = tape.gradient(summed, images, unconnected_gradients="zero")
    return logits, gradient


def compiled(model, key, function):
    """A program of `model`: NumPy arrays in, NumPy arrays out.

    Args:
        model: A model that returns logits. Its weights may change between calls.
        key: Names `function`. The second call with this key and model returns the
            program of the first, which is compiled once per shape of its arguments.
        function: `function(forward, *arrays)`, from tensors to a tensor or a tuple of
            tensors, where `forward` are the logits of a batch as float32. Arguments
            with dimensions have the batch first, the others are scalars.
    """
    programs = _PROGRAMS.setdefault(model, {})
    if key not in programs:
        compile = {"tensorflow": _tensorflow, "jax": _jax, "torch": _torch}
        programs[key] = compile[keras.backend.backend()](weakref.ref(model), function)
    return programs[key]


def compiled_logits(model):
    """The program from a batch of images to their logits."""
    return compiled(model, "logits", lambda forward, images: forward(images))


def _forward(model):
    return lambda images: ops.cast(model()(images, training=False), "float32")


def _tensorflow(model, function):
    import tensorflow as tf

    by_shape = {}

    def program(*arrays):
        tensors = [tf.convert_to_tensor(array) for array in arrays]
        # Any batch size: examples leave the batch, and nothing is compiled again.
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
        return _to_numpy(by_shape[signature](*tensors))

    return program


def _jax(model, function):
    import jax
    import jax.numpy as jnp

    @jax.jit
    def stateless(values, *tensors):
        # Arguments of the program: as constants of it, the weights would stay as
        # they are at its first call.
        scope = keras.StatelessScope(
            list(zip(_variables(model()), values, strict=True))
        )
        with scope:
            return function(_forward(model), *tensors)

    def program(*arrays):
        [count] = {len(array) for array in arrays if jnp.ndim(array)}
        # Few batch sizes, since JAX compiles for each: powers of two.
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
        results = _to_numpy(stateless(values, *tensors))
        return keras.tree.map_structure(
            lambda result: result[:count] if result.ndim else result, results
        )

    return program


def _variables(model):
    return [*model.trainable_variables, *model.non_trainable_variables]


def _torch(model, function):
    import torch

    def program(*arrays):
        tensors = [ops.convert_to_tensor(array) for array in arrays]
        with frozen(model()), torch.no_grad():
            return _to_numpy(function(_forward(model), *tensors))

    return program


@contextlib.contextmanager
def frozen(model) -> Iterator[None]:
    """Within this context, PyTorch does not add to the gradients of the weights."""
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


def _to_numpy(results):
    return keras.tree.map_structure(ops.convert_to_numpy, results)
