"""FGSM and PGD on each Keras backend, as the paper has them.

TensorFlow and PyTorch take cleverhans' attacks. cleverhans does not run with current
JAX, so there the same steps are written out.
"""

from __future__ import annotations

import functools
import importlib
import types
import weakref
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_powerlaw.robustness.programs import (
    compiled,
    cross_entropy,
    frozen,
    logits_and_gradient,
)

# Perturbs images, given their labels and epsilon.
Attack = Callable[[Any, Any, float], Any]

# cleverhans' attacks and the function that they attack, by model.
_CLEVERHANS: weakref.WeakKeyDictionary[keras.Model, Any] = weakref.WeakKeyDictionary()


def gradient_attacks(
    model: keras.Model,
    clip: tuple[float, float] | None,
    pgd_steps: int,
    pgd_step_size: float,
    norm: float = np.inf,
) -> dict[str, Attack]:
    """FGSM and PGD, without a random start, by name.

    Args:
        model: A model that returns logits.
        clip: Smallest and largest pixel value, or None.
        pgd_steps: Number of PGD steps.
        pgd_step_size: Their size, reduced to epsilon where that is smaller.
        norm: Infinity, as in the paper, or 2.

    Reference:
        Nassar et al. (2020), equations (6) to (8).
    """
    if keras.backend.backend() == "jax":
        return _own_attacks(model, clip, pgd_steps, pgd_step_size, norm)
    if model not in _CLEVERHANS:
        _CLEVERHANS[model] = _cleverhans(weakref.ref(model))
    logits, fast_gradient_method, projected_gradient_descent = _CLEVERHANS[model]
    low, high = clip or (None, None)
    limits = {"norm": norm, "clip_min": low, "clip_max": high}

    def fgsm(images, labels, epsilon):
        with frozen(model):
            return fast_gradient_method(
                logits, _tensor(images), epsilon, y=_tensor(labels), **limits
            )

    def pgd(images, labels, epsilon):
        with frozen(model):
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


def _own_attacks(model, clip, pgd_steps, pgd_step_size, norm):
    gradient = compiled(
        model, "gradient", functools.partial(logits_and_gradient, loss=cross_entropy)
    )

    def step(points, images, labels, epsilon, size):
        _, slope = gradient(points, labels)
        return projected_step(points, slope, images, epsilon, size, clip, norm)

    def fgsm(images, labels, epsilon):
        return step(images, images, labels, epsilon, epsilon)

    def pgd(images, labels, epsilon):
        points = images
        for _ in range(pgd_steps):
            size = min(pgd_step_size, epsilon)
            points = step(points, images, labels, epsilon, size)
        return points

    return {"fgsm": fgsm, "pgd": pgd}


def _cleverhans(model):
    """The logits of a model, FGSM and PGD: one function each for all calls.

    cleverhans compiles the gradient once for each function that it attacks, in a cache
    of its module, where every model would stay for good. So its attacks run here with
    the same gradient, compiled in a cache that goes with the model.
    """
    backend = keras.backend.backend()
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

    def logits(images):
        return model()(images, training=False)

    if backend == "torch":  # which compiles nothing
        return logits, fgsm.fast_gradient_method, pgd.projected_gradient_descent
    import tensorflow as tf

    original = fgsm.compute_gradient.python_function

    @tf.function
    def compute_gradient(model_fn, loss_fn, x, y, targeted):
        gradient = original(model_fn, loss_fn, x, y, targeted)
        # Rounded inputs leave no path to the images: their gradient is zero.
        return tf.zeros_like(x) if gradient is None else gradient

    fast_gradient_method = _with_globals(
        fgsm.fast_gradient_method, compute_gradient=compute_gradient
    )
    projected_gradient_descent = _with_globals(
        pgd.projected_gradient_descent, fast_gradient_method=fast_gradient_method
    )
    return logits, fast_gradient_method, projected_gradient_descent


def _with_globals(function, **names):
    """The same function, in which these global names mean something else."""
    copy = types.FunctionType(
        function.__code__,
        {**function.__globals__, **names},
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


def _tensor(array):
    # cleverhans' TensorFlow attack compiles for NumPy arrays, PyTorch's needs tensors.
    if keras.backend.backend() == "torch":
        return ops.convert_to_tensor(array)
    return array


def projected_step(points, gradient, images, epsilon, size, clip, norm):
    """The steepest step of the given size, back into the ball and the pixels' range.

    Reference:
        Nassar et al. (2020), equations (7) and (8), for the maximum norm.
    """
    direction = ops.sign(gradient)
    if norm == 2:
        direction = gradient / ops.maximum(_length(gradient), 1e-30)
    change = limited(points + size * direction, clip) - images
    if norm == 2:
        change = change * ops.minimum(
            1.0, epsilon / ops.maximum(_length(change), 1e-30)
        )
    else:
        change = ops.clip(change, -epsilon, epsilon)
    return limited(images + change, clip)


def limited(images, clip):
    return images if clip is None else ops.clip(images, *clip)


def _length(rows):
    # Scaled first: the square of a small float32 gradient is zero.
    axes = tuple(range(1, len(rows.shape)))
    largest = ops.maximum(ops.max(ops.abs(rows), axis=axes, keepdims=True), 1e-30)
    scaled = ops.sum(ops.square(rows / largest), axis=axes, keepdims=True)
    return largest * ops.sqrt(scaled)
