"""Reverse-mode differentiation on each Keras backend."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import keras

from keras_powerlaw.support.types import Tensor


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
