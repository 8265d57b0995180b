"""The fast gradient sign method, as in the paper."""

from __future__ import annotations

import keras

from keras_powerlaw.arguments import Tensor
from keras_powerlaw.robustness import cleverhans_attacks
from keras_powerlaw.robustness.attacks.steps import take_step
from keras_powerlaw.robustness.attacks.sweep import classifying_the_end
from keras_powerlaw.robustness.problem import Indices, Problem


def perturb(problem: Problem, epsilon: float, indices: Indices) -> Tensor:
    """s + ε sign(∇ₛ L(f(s), y)), clipped to the pixel range.

    On TensorFlow and PyTorch, this uses cleverhans, which does not run on current JAX.

    Reference:
        Nassar et al. (2020), equation (6).
    """
    if keras.backend.backend() == "jax":
        return one_step(problem, epsilon, indices)
    images, labels = problem.images[indices], problem.labels[indices]
    return cleverhans_attacks.fgsm(problem, images, labels, epsilon)


def one_step(problem: Problem, epsilon: float, indices: Indices) -> Tensor:
    """The same without cleverhans."""
    images, labels = problem.images[indices], problem.labels[indices]
    return take_step(problem, images, images, labels, epsilon, size=epsilon)


run = classifying_the_end(perturb)
require_compatible = cleverhans_attacks.require_compatible
