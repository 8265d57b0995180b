"""Accuracy under attack: a loop over the table of attacks."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Sequence
from typing import Literal

import keras
import numpy as np
from numpy.typing import ArrayLike

from keras_powerlaw.activations import keeping_state
from keras_powerlaw.arguments import (
    Verbose,
    invalid_value,
    validate_boolean,
    validate_verbose,
)
from keras_powerlaw.keras_internals import hold_current_weights
from keras_powerlaw.progress import Progress
from keras_powerlaw.robustness.attacks.attack import Attack
from keras_powerlaw.robustness.attacks.sweep import classify_perturbed
from keras_powerlaw.robustness.attacks.table import ATTACKS, BY_NAME
from keras_powerlaw.robustness.checkpoint import Checkpoint
from keras_powerlaw.robustness.checks import measure_checks
from keras_powerlaw.robustness.inputs import (
    validate_attacks,
    validate_epsilons,
    validate_images,
    validate_labels,
    validate_settings,
)
from keras_powerlaw.robustness.logits import classifier_of
from keras_powerlaw.robustness.problem import Indices, Problem, Settings
from keras_powerlaw.robustness.report import RobustnessReport
from keras_powerlaw.robustness.results import Results


def evaluate_robustness(
    model: keras.Model,
    x: ArrayLike,
    y: ArrayLike,
    epsilons: ArrayLike,
    attacks: Sequence[str] | Literal["strong"] = ("fgsm", "pgd", "noise"),
    *,
    norm: float | Literal["inf"] = "inf",
    pgd_steps: int = 40,
    pgd_step_size: float | None = None,
    restarts: int = 2,
    noise_draws: int = 1,
    clip: tuple[float, float] | None = (0.0, 1.0),
    batch_size: int = 500,
    seed: int = 0,
    checks: bool = True,
    checkpoint: str | os.PathLike[str] | None = None,
    verbose: Verbose = "auto",
) -> RobustnessReport:
    """Measures a classifier's accuracy under attacks of increasing strength.

    The attacks of the paper are three. For an image s with label y, the model f and its
    cross-entropy L, `"fgsm"` goes one step to

        s + ε sign(∇ₛ L(f(s), y))

    while `"pgd"` goes to s + δ in many steps, from δ = 0 by

        δ ← Proj(δ + η sign(∇_δ L(f(s + δ), y)))

    where Proj clips every entry of δ to [−ε, ε] and η is `pgd_step_size`. The sign
    makes it the steepest ascent in the maximum norm, in which ε is measured. `"noise"`
    adds ε times standard normal noise. Perturbed images are clipped to `clip`.

    The strong attacks test the results of the first:

    - `"uniform_noise"`: noise, uniform in the ball of radius ε.
    - `"pgd_ce"`: PGD on L, from the image and from random points of the ball.
    - `"pgd_dlr"`: the same on the margin of the logits.
    - `"autopgd"`: AutoPGD, with its own step sizes, on both losses.
    - `"square"`: Square, which uses no gradient.

    The last four count an image as broken if any point along the attack's path is
    misclassified, at ε or a smaller strength. They run in this order, whatever the
    order in `attacks`, each on the images that those before it did not break.
    `report.worst_case` takes the minimum over the attacks image by image, and
    `report.flags` states the reasons, if any, not to trust the results.

    The model is called with `training=False`, as it is now: nothing is kept from an
    earlier evaluation. The attacks need its logits: a softmax at the end of a
    Sequential or Functional model is left out, and one sigmoid unit counts as two
    classes, with logits 0 and z. The model itself keeps them, so that other threads may
    predict with it meanwhile. Where the loss gradient of an image is exactly zero, FGSM
    and PGD do not move it; a very confident model can look robust for this reason.

    Args:
        model: A built Keras model with one input and one output, the logits of at
            least two classes, shape `(batch, classes)`; or a Sequential or Functional
            model that ends in a softmax over them, or in one sigmoid unit,
            shape `(batch, 1)`.
        x: Images, shape `(M, ...)`, numbers within `clip`. Of a data set of batches
            give `x, y = map(np.concatenate, zip(*data))`.
        y: Integer or boolean labels, shape `(M,)` or `(M, 1)`, from 0 to `classes - 1`.
        epsilons: Attack strengths in units of pixel values, shape `(E,)`, at
            least 0 and strictly increasing: the largest change of a pixel or, with
            `norm=2`, the Euclidean length of the change; for `"noise"`, the standard
            deviation of a pixel.
        attacks: Names from the lists above, or `"strong"` for all of them. `"fgsm"`
            and `"pgd"` need cleverhans, except on the JAX backend; `"autopgd"` and
            `"square"` need the Adversarial Robustness Toolbox. Defaults to
            `("fgsm", "pgd", "noise")`.
        norm: `"inf"`, in which ε is the largest change of a pixel, or 2, the
            Euclidean norm. Defaults to `"inf"`.
        pgd_steps: Number of PGD steps, at least 1. Defaults to 40.
        pgd_step_size: Size η of a PGD step in units of pixel values, above 0. It
            is reduced to ε where ε is smaller. Random starts take steps of
            `2.5 * ε / pgd_steps`. Defaults to None: 0.01 times the range of `clip`,
            2.55 for pixels from 0 to 255; without `clip`, 0.01, which is refused where
            it is too small to reach the largest ε.
        restarts: Starts of each strong attack, at least 1. The first start of PGD is
            the image itself. Defaults to 2.
        noise_draws: Draws of noise per image, at least 1. Defaults to 1.
        clip: Smallest and largest pixel value, or None for no limits. Defaults to
            `(0.0, 1.0)`.
        batch_size: Images per batch, at least 1. Defaults to 500.
        seed: Seed of the noise and of the random starts, at least 0. All strengths
            share the same draws of noise. Defaults to 0.
        checks: Whether to measure the figures that the flags need besides the
            results: on the first 500 images, the model's outputs, their gradients,
            and PGD with twice the steps and at an ε that allows every image to
            become the same. Defaults to True.
        checkpoint: Path of a JSON file for finished results. An interrupted
            evaluation resumes from it, and a finished one is read from it. Defaults
            to None: nothing is written.
        verbose: `"auto"` shows progress when the evaluation is slow, 0 never, 1
            always. Defaults to `"auto"`.

    Returns:
        A `RobustnessReport`.

    Raises:
        ValueError: If an argument is invalid, the model returns probabilities
            or NaN, or `checkpoint` holds another evaluation.
        ImportError: If the package that an attack needs is missing.

    Example:

    ```python
    import keras
    import keras_powerlaw as kp
    import numpy as np

    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    rng = np.random.default_rng(0)
    x, y = rng.random((20, 4)), rng.integers(3, size=20)
    report = kp.evaluate_robustness(model, x, y, epsilons=[0.05, 0.1], pgd_steps=10)
    print(report)

    strong = kp.evaluate_robustness(
        model, x, y, epsilons=[0.05, 0.1], attacks=["pgd", "pgd_ce", "pgd_dlr"]
    )
    print(strong.worst_case_accuracy, strong.flags)
    ```

    Reference:
        [Nassar et al., 2020](https://arxiv.org/abs/2012.04729), equation (6) for
        FGSM and equations (7) and (8) for PGD, with its 40 steps of 0.01.
        [Croce & Hein, 2020](https://arxiv.org/abs/2003.01690) for AutoPGD and the
        margin loss; [Andriushchenko et al., 2020](https://arxiv.org/abs/1912.00049)
        for Square.
    """
    settings = validate_settings(
        norm=norm,
        pgd_steps=pgd_steps,
        pgd_step_size=pgd_step_size,
        restarts=restarts,
        noise_draws=noise_draws,
        clip=clip,
        batch_size=batch_size,
        seed=seed,
    )
    images = validate_images(x, model, settings.clip)
    strengths = validate_epsilons(epsilons)
    names = validate_attacks(attacks)
    validate_boolean("checks", checks)
    progress = Progress("Robustness", validate_verbose(verbose))
    for name in names:
        BY_NAME[name].prepare(images.shape, settings, keras.backend.backend())
    if any(name.startswith("pgd") for name in names):
        unknown_scale = pgd_step_size is None and settings.clip is None
        _require_reach(settings, strengths[-1], unknown_scale, "pgd" in names)

    hold_current_weights(model)
    with keeping_state(model):
        first = images[: settings.batch_size]
        classifier = classifier_of(model, first)
        classes = classifier(first[:1]).shape[1]
        labels = validate_labels(y, len(images), classes)
        problem = Problem(classifier, images, labels, settings)
        file = Checkpoint(checkpoint, problem, strengths, names)
        results = file.read() or Results(names)
        if checks and not results.checks:
            results.checks = measure_checks(problem, strengths, names)
        _run_attacks(problem, strengths, results, file, progress)
    return results.report(strengths, settings)


def _run_attacks(
    problem: Problem,
    epsilons: Sequence[float],
    results: Results,
    checkpoint: Checkpoint,
    progress: Progress,
) -> None:
    """Adds the missing results to `results`, attack by attack, strength by strength."""
    count = len(problem.images)
    attacks = [attack for attack in ATTACKS if attack.name in results.correct]
    batches = math.ceil(count / problem.settings.batch_size)
    total, done = batches * len(attacks) * len(epsilons), 0

    def report(fraction: float) -> None:
        progress.update(done + round(fraction * batches), total)

    if results.clean is None:
        results.clean = classify_perturbed(
            problem, problem.indices, lambda batch: problem.images[batch]
        )
    for attack in attacks:
        draws = problem.settings.noise_draws if attack.random else 1
        for row, epsilon in enumerate(epsilons):
            if not results.has(attack, row):
                correct = np.zeros((draws, count), dtype=bool)
                if epsilon == 0.0:
                    correct[:] = results.clean
                else:
                    indices = _images_to_attack(attack, row, results)
                    correct[:, indices] = attack.run(problem, epsilon, indices, report)
                results.add(attack, correct)
                checkpoint.write(results)
            done += batches
            report(0)
    progress.finish()
    checkpoint.write(results)


def _images_to_attack(attack: Attack, row: int, results: Results) -> Indices:
    """The images for `attack` at the strength with index `row`; for most, all."""
    unbroken = np.array(results.clean)
    if not attack.follows_up:
        unbroken[:] = True
        return np.flatnonzero(unbroken)
    for other in ATTACKS[: ATTACKS.index(attack)]:
        if other.follows_up and other.name in results.correct:
            unbroken &= results.correct[other.name][row]
    if row:  # an image broken at a smaller strength counts as broken
        unbroken &= results.correct[attack.name][row - 1]
    return np.flatnonzero(unbroken)


def _require_reach(
    settings: Settings, epsilon: float, unknown_scale: bool, warns: bool
) -> None:
    """Refuses, or warns of, PGD steps that cannot reach the largest ε.

    Args:
        settings: The settings.
        epsilon: The largest ε.
        unknown_scale: Whether the step is a default, and nothing says how large pixel
            values are.
        warns: Whether to warn of steps that were chosen.
    """
    reach = settings.reach
    if reach >= epsilon or math.isclose(reach, epsilon):
        return
    if unknown_scale:
        raise invalid_value(
            "pgd_step_size",
            f"a size with which {settings.pgd_steps} steps reach the largest epsilon, "
            f"{epsilon:g}; without `clip`, there is no range of pixels to scale the "
            "default by",
            f"None, that is {settings.pgd_step_size:g}",
        )
    if warns:
        warnings.warn(
            f"{settings.pgd_steps} PGD steps of {settings.pgd_step_size:g} change a "
            f"pixel by at most {reach:g}, less than the largest epsilon, {epsilon:g}. "
            "Raise `pgd_steps` or `pgd_step_size`.",
            stacklevel=3,
        )
