"""Penalties on the input-output sensitivity, as pure functions."""

from __future__ import annotations

from collections.abc import Callable

import keras
from keras import ops

from keras_powerlaw.arguments import Tensor
from keras_powerlaw.backends import vjp
from keras_powerlaw.units import to_samples


def loss_gradient_penalty(loss: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Mean squared norm of the per-example gradient of the loss.

    1/B Σ_b ‖∂L_b / ∂s_b‖²

    Args:
        loss: Function from a batch of inputs to the losses L_b of its examples, shape
            `(batch,)`. L_b must not depend on any example other than s_b.
        x: The inputs s, floating-point tensor of shape `(batch, …)`.

    Returns:
        A scalar, float32.

    Reference:
        Nassar et al. (2020), eq. (11), without its factor β.
    """
    losses, product, _ = vjp(loss, x)
    return ops.mean(_squared_norms(product(ops.ones_like(losses))))


def output_jacobian_penalty(
    outputs: Callable[[Tensor], Tensor], x: Tensor, directions: Tensor
) -> Tensor:
    """Mean squared Frobenius norm of the Jacobian of the outputs, or its estimate.

    1/B Σ_b C/P Σ_p ‖v_pbᵀ J_b‖²,  J_b = ∂z_b / ∂s_b

    For directions v drawn uniformly from the unit sphere in C dimensions, this is an
    unbiased estimate of 1/B Σ_b ‖J_b‖². For the C vectors of an orthonormal basis it
    is exact.

    Args:
        outputs: Function from a batch of inputs to the outputs z, shape `(batch, C)`.
        x: The inputs s, floating-point tensor of shape `(batch, …)`.
        directions: Unit vectors v, tensor of shape `(P, batch, C)`.

    Returns:
        A scalar, float32.

    Reference:
        Hoffman et al. (2019), *Robust learning with Jacobian regularization*, without
        their factor 1/2.
    """
    z, product, _ = vjp(outputs, x)
    count, _, classes = directions.shape
    norms = [
        _squared_norms(product(ops.cast(directions[index], z.dtype)))
        for index in range(count)
    ]
    return ops.mean(sum(norms)) * (classes / count)


def random_directions(
    count: int, batch: Tensor, classes: int, seed: keras.random.SeedGenerator
) -> Tensor:
    """Random directions, uniform on the unit sphere: `(count, batch, classes)`."""
    normal = keras.random.normal((count, batch, classes), dtype="float32", seed=seed)
    return normal / ops.norm(normal, axis=-1, keepdims=True)


def standard_basis(batch: Tensor, classes: int) -> Tensor:
    """The unit vector of each class, for every example: `(classes, batch, classes)`."""
    eye = ops.eye(classes, dtype="float32")
    return ops.broadcast_to(eye[:, None], (classes, batch, classes))


def _squared_norms(gradients: Tensor) -> Tensor:
    """Squared norms, `(batch, …)` to `(batch,)`: float32, as float16 is too narrow."""
    return ops.sum(ops.square(to_samples(ops.cast(gradients, "float32"))), axis=1)
