"""Reverse-mode differentiation on each Keras backend."""

from __future__ import annotations

import contextlib

import keras


def vjp(function, x):
    """The output of a function, and its vector-Jacobian products.

    The products are themselves differentiable, with respect to the weights that
    `function` uses, inside the backend's own gradient.

    Args:
        function: From a tensor like `x` to a tensor.
        x: A floating tensor, taken as a constant: no gradient flows into it.

    Returns:
        The output, and a function from a cotangent `c`, a tensor of the output's shape
        and dtype, to the gradient of `sum(c * function(x))` with respect to `x`. It can
        be called repeatedly.
    """
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        output, products = jax.vjp(function, x)
        return output, lambda cotangent: products(cotangent)[0]
    if backend == "torch":
        import torch

        x = x.detach().requires_grad_(True)
        with torch.enable_grad():  # `evaluate()` switches gradients off
            output = function(x)

        def product(cotangent):
            return torch.autograd.grad(output, x, cotangent, create_graph=True)[0]

        return output, product

    import tensorflow as tf

    with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
        tape.watch(x)
        output = function(x)
    return output, lambda cotangent: tape.gradient(output, x, cotangent)


def no_gradients():
    """A context without gradients: PyTorch keeps what a backward pass needs."""
    if keras.backend.backend() != "torch":
        return contextlib.nullcontext()
    import torch

    return torch.no_grad()
