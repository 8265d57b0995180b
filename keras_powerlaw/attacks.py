"""FGSM and PGD on each Keras backend.

TensorFlow and PyTorch take cleverhans' attacks. cleverhans does not run with current
JAX, so there the same steps are written out.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

# Perturbs images, given their labels and epsilon.
Attack = Callable[[Any, Any, float], Any]


def gradient_attacks(
    model: keras.Model,
    clip: tuple[float, float] | None,
    pgd_steps: int,
    pgd_step_size: float,
) -> dict[str, Attack]:
    """FGSM and PGD in the maximum norm, without a random start, by name.

    Args:
        model: A model that returns logits.
        clip: Smallest and largest pixel value, or None.
        pgd_steps: Number of PGD steps.
        pgd_step_size: Their size, reduced to epsilon where that is smaller.

    Reference:
        Nassar et al. (2020), equations (6) to (8).
    """
    backend = keras.backend.backend()
    if backend == "jax":
        gradient = _jax_loss_gradient(model)

        def fgsm(images, labels, epsilon):
            return _step(gradient, images, labels, epsilon, clip)

        def pgd(images, labels, epsilon):
            step_size = min(pgd_step_size, epsilon)
            attacked = images
            for _ in range(pgd_steps):
                attacked = _step(gradient, attacked, labels, step_size, clip)
                change = keras.ops.clip(attacked - images, -epsilon, epsilon)
                attacked = _limited(images + change, clip)
            return attacked

        return {"fgsm": fgsm, "pgd": pgd}

    fast_gradient_method, projected_gradient_descent = _cleverhans(backend)
    low, high = clip or (None, None)
    limits = {"norm": np.inf, "clip_min": low, "clip_max": high}

    # One function for all calls: cleverhans compiles the gradient once for each.
    def logits(images):
        return model(images, training=False)

    def fgsm(images, labels, epsilon):
        with _frozen(model):
            return fast_gradient_method(
                logits, _tensor(images), epsilon, y=_tensor(labels), **limits
            )

    def pgd(images, labels, epsilon):
        with _frozen(model):
            return projected_gradient_descent(
                logits,
                _tensor(images),
                epsilon,
                min(pgd_step_size, epsilon),  # cleverhans refuses a larger step
                pgd_steps,
                y=_tensor(labels),
                rand_init=False,  # the default differs between the two backends
                sanity_checks=False,  # they stop at an epsilon above the pixels' range
                **limits,
            )

    return {"fgsm": fgsm, "pgd": pgd}


def _cleverhans(backend):
    package = {"tensorflow": "tf2", "torch": "torch"}[backend]
    try:
        fgsm, pgd = (
            importlib.import_module(f"cleverhans.{package}.attacks.{name}")
            for name in ("fast_gradient_method", "projected_gradient_descent")
        )
    except ImportError as error:
        raise ImportError(
            'The attacks "fgsm" and "pgd" need cleverhans. Install it with: '
            "pip install keras_powerlaw[robustness]"
        ) from error
    return fgsm.fast_gradient_method, pgd.projected_gradient_descent


def _tensor(array):
    # cleverhans' TensorFlow attack compiles for NumPy arrays, PyTorch's needs tensors.
    if keras.backend.backend() == "torch":
        return keras.ops.convert_to_tensor(array)
    return array


@contextlib.contextmanager
def _frozen(model):
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


def _jax_loss_gradient(model):
    """The gradient of the summed cross-entropy for the images, compiled."""
    import jax

    # Arguments of the program: as constants of it, they would be compiled in.
    variables = [*model.trainable_variables, *model.non_trainable_variables]

    @jax.jit
    @jax.grad
    def gradient(images, labels, values):
        with keras.StatelessScope(list(zip(variables, values, strict=True))):
            logits = model(images, training=False)
        log_probabilities = jax.nn.log_softmax(logits.astype("float32"))
        return -log_probabilities[np.arange(len(labels)), labels].sum()

    return lambda images, labels: gradient(
        images, labels, [variable.value for variable in variables]
    )


def _step(gradient, images, labels, size, clip):
    return _limited(images + size * keras.ops.sign(gradient(images, labels)), clip)


def _limited(images, clip):
    return images if clip is None else keras.ops.clip(images, *clip)
