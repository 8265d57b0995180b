"""The losses that attacks maximize, and their gradients with respect to the images."""

from __future__ import annotations

from collections.abc import Callable

from keras import ops

from keras_powerlaw.arguments import Tensor
from keras_powerlaw.backends import vjp

# Maps logits and labels to one value per example.
Loss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """−log softmax(z)_y of each example, shape `(batch,)`."""
    return ops.sparse_categorical_crossentropy(labels, logits, from_logits=True)


def logit_ratio(logits: Tensor, labels: Tensor) -> Tensor:
    """The DLR loss of each example, which does not depend on the scale of the logits.

    `−(z_y − max_{i≠y} z_i) / (z_π1 − z_π3)`, where π sorts the logits from the largest
    down. With only two classes, there is no denominator.

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


LOSSES: dict[str, Loss] = {"ce": cross_entropy, "dlr": logit_ratio}


def logits_and_gradient(
    forward: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor, loss: Loss
) -> tuple[Tensor, Tensor]:
    """Logits of `images`, and the gradient of each loss with respect to its image."""

    def losses_and_logits(images: Tensor) -> tuple[Tensor, Tensor]:
        logits = forward(images)
        return loss(logits, labels), logits

    losses, product, logits = vjp(losses_and_logits, images, has_aux=True)
    gradient = product(ops.ones_like(losses))
    return ops.stop_gradient(logits), ops.stop_gradient(gradient)
