"""FGSM and PGD by cleverhans, on TensorFlow and PyTorch.

On TensorFlow, cleverhans compiles the gradient once per attacked function, in a cache
of its module that would keep every model alive forever. It also fails on a model that
rounds its inputs and so has no gradient. Its functions therefore run here with one
global name replaced, after a test that cleverhans still uses the names as assumed.
"""

from __future__ import annotations

import importlib
import types
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from keras_powerlaw.arguments import Tensor, installation_command
from keras_powerlaw.robustness.logits import Classifier
from keras_powerlaw.robustness.problem import Problem


def fgsm(
    problem: Problem,
    images: NDArray[np.float32],
    labels: NDArray[np.int64],
    epsilon: float,
) -> Tensor:
    """Images after one step of size ε."""
    logits, fast_gradient_method, _ = _attacks_on(problem.classifier)
    return fast_gradient_method(
        logits, _tensor(images), epsilon, y=_tensor(labels), **_limits(problem)
    )


def pgd(
    problem: Problem,
    images: NDArray[np.float32],
    labels: NDArray[np.int64],
    epsilon: float,
    step_size: float,
) -> Tensor:
    """Images after `pgd_steps` PGD steps within ε, started at the images themselves."""
    logits, _, projected_gradient_descent = _attacks_on(problem.classifier)
    return projected_gradient_descent(
        logits,
        _tensor(images),
        epsilon,
        step_size,
        problem.settings.pgd_steps,
        y=_tensor(labels),
        rand_init=False,  # the default differs between the two backends
        sanity_checks=False,  # they reject an epsilon above the pixel range
        **_limits(problem),
    )


def require_compatible(*_: Any) -> None:
    """Raises an `ImportError`, before anything is computed, if cleverhans is no use.

    The arguments are those of a precondition in the table of attacks.
    """
    if keras.backend.backend() == "jax":
        return
    try:
        modules = _cleverhans()
    except ImportError as error:
        raise ImportError(
            "cleverhans is installed, and cannot be imported. Install it again with: "
            f"{installation_command('robustness')}. The error was: {error}"
        ) from error
    if keras.backend.backend() == "tensorflow":
        _require_compatible_cleverhans(*modules)


def _limits(problem: Problem) -> dict[str, Any]:
    low, high = problem.settings.clip or (None, None)
    return {"norm": problem.settings.norm, "clip_min": low, "clip_max": high}


def _tensor(array: NDArray[Any]) -> Tensor:
    # The TensorFlow attacks of cleverhans take NumPy arrays, those for PyTorch tensors.
    if keras.backend.backend() == "torch":
        return ops.convert_to_tensor(array)
    return array


def _attacks_on(classifier: Classifier) -> tuple[Callable[..., Any], ...]:
    """The logits function of a classifier, FGSM and PGD, to be reused in every call."""
    programs: dict[Any, Any] = classifier.programs
    if "cleverhans" not in programs:
        programs["cleverhans"] = _make_attacks(classifier)
    attacks: tuple[Callable[..., Any], ...] = programs["cleverhans"]
    return attacks


def _make_attacks(classifier: Classifier) -> tuple[Callable[..., Any], ...]:
    fgsm, pgd = _cleverhans()
    if keras.backend.backend() == "torch":  # where nothing is compiled
        logits = _cut_from_weights(classifier.logits)
        return logits, fgsm.fast_gradient_method, pgd.projected_gradient_descent
    return (classifier.logits, *_with_private_cache(fgsm, pgd))


def _cleverhans() -> tuple[types.ModuleType, types.ModuleType]:
    package = {"tensorflow": "tf2", "torch": "torch"}[keras.backend.backend()]
    fgsm, pgd = (
        importlib.import_module(f"cleverhans.{package}.attacks.{name}")
        for name in ("fast_gradient_method", "projected_gradient_descent")
    )
    return fgsm, pgd


def _cut_from_weights(function: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """The same function, whose `backward()` adds no gradients to weights it uses."""
    import torch

    class CutFromWeights(torch.autograd.Function):  # type: ignore[misc]
        @staticmethod
        def forward(context: Any, images: Tensor) -> Tensor:
            context.images = images.detach().requires_grad_(True)
            with torch.enable_grad():
                context.outputs = function(context.images)
            return context.outputs.detach()

        @staticmethod
        def backward(context: Any, cotangent: Tensor) -> Tensor:
            if not context.outputs.requires_grad:  # of a function that rounds
                return torch.zeros_like(context.images)
            # cleverhans averages the loss over the batch. An image's share of it would
            # vanish in float16; of the gradient, the attacks use the direction alone.
            # A power of two changes no digit of it.
            cotangent = cotangent * 2.0 ** (len(cotangent) - 1).bit_length()
            [gradient] = torch.autograd.grad(
                context.outputs, context.images, cotangent, allow_unused=True
            )
            return torch.zeros_like(context.images) if gradient is None else gradient

    return lambda images: CutFromWeights.apply(images)


def _with_private_cache(
    fgsm: types.ModuleType, pgd: types.ModuleType
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """cleverhans's attacks, with a compiled gradient that only these two share."""
    import tensorflow as tf

    _require_compatible_cleverhans(fgsm, pgd)
    original = fgsm.compute_gradient.python_function

    @tf.function  # type: ignore[untyped-decorator]
    def compute_gradient(
        model_fn: Any, loss_fn: Any, x: Any, y: Any, targeted: Any
    ) -> Tensor:
        gradient = original(model_fn, loss_fn, x, y, targeted)
        # A model that rounds its inputs leaves no path to them: the gradient is zero.
        return tf.zeros_like(x) if gradient is None else gradient

    fast_gradient_method = _with_globals(
        fgsm.fast_gradient_method, compute_gradient=compute_gradient
    )
    projected_gradient_descent = _with_globals(
        pgd.projected_gradient_descent, fast_gradient_method=fast_gradient_method
    )
    return fast_gradient_method, projected_gradient_descent


def _require_compatible_cleverhans(
    fgsm: types.ModuleType, pgd: types.ModuleType
) -> None:
    """Raises an `ImportError` unless the names to be replaced exist and are used."""
    compatible = (
        hasattr(getattr(fgsm, "compute_gradient", None), "python_function")
        and "compute_gradient" in fgsm.fast_gradient_method.__code__.co_names
        and "fast_gradient_method" in pgd.projected_gradient_descent.__code__.co_names
    )
    if not compatible:
        raise ImportError(
            "This keras_powerlaw works with cleverhans 4.0.0, and the installed one "
            "computes its gradients in another way: install cleverhans==4.0.0, or a "
            "newer keras_powerlaw."
        )


def _with_globals(function: Any, **names: Any) -> Callable[..., Any]:
    """A copy of a function in which these global names have other values."""
    copy = types.FunctionType(
        function.__code__,
        {**function.__globals__, **names},
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy
