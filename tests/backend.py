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


def tensorflow():
    """TensorFlow, or a skip where another backend is installed alone."""
    return pytest.importorskip("tensorflow", reason="TensorFlow is not installed")


def without(*packages):
    """Lines of Python after which these packages are found no more."""
    return f"""
import sys

class Without:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, *rest):
        return None if name in {packages} else self.finder.find_spec(name, *rest)

sys.meta_path[:] = map(Without, sys.meta_path)
"""


def to_numpy(tensor):
    """Any dtype, bfloat16 included, as NumPy's float64."""
    tensor = keras.ops.stop_gradient(keras.ops.cast(tensor, "float32"))
    return keras.ops.convert_to_numpy(tensor).astype(float)


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
