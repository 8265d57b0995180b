"""Projected gradient descent, as in the paper: from the image, judged by its end."""

from __future__ import annotations

import keras

from keras_powerlaw.arguments import Tensor
from keras_powerlaw.robustness import cleverhans_attacks
from keras_powerlaw.robustness.attacks.steps import take_step
from keras_powerlaw.robustness.attacks.sweep import classifying_the_end
from keras_powerlaw.robustness.problem import Indices, Problem


def perturb(problem: Problem, epsilon: float, indices: Indices) -> Tensor:
    """s + δ after the last δ ← Proj(δ + η sign(∇_δ L(f(s + δ), y))), from δ = 0.

    On TensorFlow and PyTorch, this uses cleverhans, which does not run on current JAX.

    Reference:
        Nassar et al. (2020), equations (7) and (8).
    """
    if keras.backend.backend() == "jax":
        return step_by_step(problem, epsilon, indices)
    images, labels = problem.images[indices], problem.labels[indices]
    # cleverhans rejects a step larger than ε.
    size = min(problem.settings.pgd_step_size, epsilon)
    return cleverhans_attacks.pgd(problem, images, labels, epsilon, size)


def step_by_step(problem: Problem, epsilon: float, indices: Indices) -> Tensor:
    """The same without cleverhans."""
    images, labels = problem.images[indices], problem.labels[indices]
    size = min(problem.settings.pgd_step_size, epsilon)
    points = images
    for _ in range(problem.settings.pgd_steps):
        points = take_step(problem, points, images, labels, epsilon, size)
    return points


run = classifying_the_end(perturb)
require_compatible = cleverhans_attacks.require_compatible
