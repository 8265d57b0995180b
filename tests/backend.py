"""What the tests need to know about the backend that Keras runs on."""

import keras
import numpy as np
import pytest

BACKEND = keras.backend.backend()


def only(*backends, why):
    """Skips a test on the other backends, and says why."""
    return pytest.mark.skipif(
        BACKEND not in backends, reason=f"not on {BACKEND}: {why}"
    )


def to_numpy(tensor):
    """Any dtype, bfloat16 included, as NumPy's float64."""
    return keras.ops.convert_to_numpy(keras.ops.cast(tensor, "float32")).astype(float)


def value_and_gradient(function, x):
    """A scalar function of a float32 tensor and its gradient, as NumPy float64."""
    x = np.asarray(x, "float32")
    if BACKEND == "jax":
        import jax

        value, gradient = jax.value_and_grad(function)(jax.numpy.asarray(x))
    elif BACKEND == "torch":
        x = keras.ops.convert_to_tensor(x).requires_grad_(True)
        value = function(x)
        value.backward()
        value, gradient = value.detach(), x.grad
    else:
        import tensorflow as tf

        x = tf.constant(x)
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = function(x)
        gradient = tape.gradient(value, x)
    return float(value), to_numpy(gradient)


def within_fit(model):
    """In a callback: gives the model its values, which JAX holds elsewhere."""
    if BACKEND == "jax":
        model.jax_state_sync()
