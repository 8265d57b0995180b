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
    """The output of a function, and its vector-Jacobian products.

    The products are themselves differentiable, with respect to the weights that
    `function` uses, inside the backend's own gradient.

    Args:
        function: From a tensor like `x` to a tensor, or, with `has_aux`, to that and
            something else, which is handed on.
        x: A floating tensor, taken as a constant: no gradient flows into it.
        has_aux: Whether the function returns a second value. Defaults to `False`.

    Returns:
        The output; a function from a cotangent `c`, a tensor of the output's shape
        and dtype, to the gradient of `sum(c * output)` with respect to `x`, which can
        be called repeatedly, and is zero where the output does not depend on `x`; and
        the function's second value, or None.
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
        with torch.enable_grad():  # `evaluate()` switches gradients off
            output, aux = function(x)

        def torch_product(cotangent: Tensor) -> Tensor:
            # Rounded inputs leave no path to `x`.
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
    """A context without gradients: PyTorch keeps what a backward pass needs."""
    if keras.backend.backend() != "torch":
        return contextlib.nullcontext()
    import torch

    context: contextlib.AbstractContextManager[Any] = torch.no_grad()
    return context
