"""The compiled loss of a model, example by example."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_powerlaw.arguments import Tensor, invalid_value
from keras_powerlaw.keras_internals import mask_of
from keras_powerlaw.units import to_samples

# Maps the outputs of a model to the losses of the examples, `(batch,)`.
LossPerExample = Callable[[Tensor], Tensor]


def loss_per_example(loss: Any, y: Any, weight: float = 1.0) -> LossPerExample:
    """The losses L_b of which the compiled loss is the mean, or the sum.

    Args:
        loss: What `compile(loss=...)` takes for one output: a name, a function, a
            `keras.losses.Loss` or its class.
        y: The labels, a tensor of shape `(batch, …)`.
        weight: The factor that `compile(loss_weights=...)` gives it.

    Raises:
        ValueError: When the losses are computed, if there is not one per example.
    """

    def per_example(outputs: Tensor) -> Tensor:
        function, dtype, is_sum = _resolved(loss, y, outputs)
        values = function(_tensor(y, dtype), _tensor(outputs, dtype))
        examples = outputs.shape[0]
        # A reduction over the batch leaves a fixed number of values.
        if not len(values.shape) or values.shape[0] not in (examples, None):
            raise ValueError(
                "The Jacobian penalty needs a loss that returns one value per "
                "example, which does not depend on the others (Dice and Tversky need "
                f"an `axis` that leaves out 0). Received: loss={loss}, which returns "
                f"{_described(values)}"
            )
        masks = [mask_of(outputs), mask_of(values)]
        samples = to_samples(_masked(values, masks, is_sum))
        return weight * (ops.sum if is_sum else ops.mean)(samples, axis=1)

    return per_example


def _described(values: Tensor) -> str:
    if not len(values.shape):
        return "a scalar"
    return f"values of shape {tuple(values.shape)}"


def _resolved(
    loss: Any, y: Tensor, outputs: Tensor
) -> tuple[Callable[[Tensor, Tensor], Tensor], str, bool]:
    """The loss as Keras applies it: its function, dtype, and whether it is a sum."""
    if str(loss).lower() in ("crossentropy", "ce"):
        loss = _cross_entropy_for(y, outputs)
    loss = keras.losses.get(loss)
    _refuse_ctc(loss)
    if isinstance(loss, keras.losses.Loss):
        # It reduces over the batch; its `call` does not.
        return loss.call, loss.dtype, loss.reduction == "sum"
    return _with_equal_ranks(loss), keras.backend.floatx(), False


def _refuse_ctc(loss: Any) -> None:
    is_ctc = loss is keras.losses.ctc or isinstance(loss, keras.losses.CTC)
    backend = keras.backend.backend()
    if is_ctc and backend != "jax":
        raise invalid_value(
            "loss",
            "a loss that can be differentiated twice, since the penalty is a gradient "
            f"itself (on the {backend} backend, CTC cannot; on JAX it can. Or penalize "
            "the Jacobian of the outputs, by `projections`)",
            loss,
        )


def _cross_entropy_for(y: Tensor, outputs: Tensor) -> str:
    if outputs.shape[-1] == 1:
        return "binary_crossentropy"
    if len(y.shape) < len(outputs.shape) or y.shape[-1] == 1:
        return "sparse_categorical_crossentropy"
    return "categorical_crossentropy"


def _with_equal_ranks(
    function: Callable[[Tensor, Tensor], Tensor],
) -> Callable[[Tensor, Tensor], Tensor]:
    """A loss function as `compile()` wraps it.

    Without this, labels `(batch,)` and outputs `(batch, 1)` are broadcast to
    `(batch, batch)`. The Loss objects of Keras do it themselves.
    """

    def wrapped(y: Tensor, outputs: Tensor) -> Tensor:
        if len(y.shape) < len(outputs.shape):
            y, outputs = _of_one_rank(y, outputs)
        else:
            outputs, y = _of_one_rank(outputs, y)
        return function(y, outputs)

    return wrapped


def _of_one_rank(lower: Tensor, higher: Tensor) -> tuple[Tensor, Tensor]:
    if len(higher.shape) == len(lower.shape) + 1 and higher.shape[-1] == 1:
        if len(lower.shape) == 1:
            return ops.expand_dims(lower, -1), higher
        return lower, ops.squeeze(higher, axis=-1)
    return lower, higher


def _masked(values: Tensor, masks: list[Tensor | None], is_sum: bool) -> Tensor:
    """Losses that are zero where a mask is, and in a mean larger for the others."""
    weights: Tensor = None
    for mask in masks:
        if mask is not None:
            mask = ops.cast(mask, values.dtype)
            weights = mask if weights is None else weights * mask
    if weights is None:
        return values
    if not is_sum:
        weights = ops.divide_no_nan(weights, ops.mean(weights))
    return values * weights


def _tensor(value: Any, dtype: str) -> Tensor:
    return ops.convert_to_tensor(value, dtype=dtype)
