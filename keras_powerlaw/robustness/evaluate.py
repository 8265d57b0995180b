"""Accuracy under attack: one loop over the attacks."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, Literal

import keras
import numpy as np
from keras import ops
from numpy.typing import ArrayLike, NDArray

from keras_powerlaw.activations import keeping_state
from keras_powerlaw.arguments import (
    Verbose,
    invalid_value,
    is_finite_number,
    refuse_mask,
    validate_integer,
    validate_verbose,
)
from keras_powerlaw.keras_internals import flatten_layers, hold_current_weights
from keras_powerlaw.progress import Progress
from keras_powerlaw.robustness.attacks import ATTACKS, BY_NAME
from keras_powerlaw.robustness.attacks.attack import Attack, Batch
from keras_powerlaw.robustness.attacks.gradient import PgdOnCrossEntropy
from keras_powerlaw.robustness.checkpoint import (
    identity,
    read_checkpoint,
    validate_checkpoint,
    write_checkpoint,
)
from keras_powerlaw.robustness.classifier import Classifier, Indices, classifier_of
from keras_powerlaw.robustness.flags import measure_checks
from keras_powerlaw.robustness.report import RobustnessReport

# A PGD step where pixels range from 0 to 1.
PAPER_STEP_SIZE = 0.01


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
    predict with it meanwhile. On TensorFlow, cleverhans keeps the compiled graph of
    every model that it attacks, though not its weights. Where the loss gradient of an
    image is exactly zero, FGSM and PGD do not move it; a very confident model can look
    robust for this reason.

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
    limits = _validate_clip(clip)
    options: dict[str, Any] = {
        "norm": _validate_norm(norm),
        "pgd_steps": validate_integer("pgd_steps", pgd_steps, minimum=1),
        "pgd_step_size": _validate_step_size(pgd_step_size, limits),
        "restarts": validate_integer("restarts", restarts, minimum=1),
        "noise_draws": validate_integer("noise_draws", noise_draws, minimum=1),
        "clip": limits,
        "seed": validate_integer("seed", seed, minimum=0),
    }
    settings = {
        **options,
        "norm": "inf" if options["norm"] == np.inf else 2,
        "clip": limits and list(limits),
    }
    batch_size = validate_integer("batch_size", batch_size, minimum=1)
    _validate_model(model)
    images = _validate_images(x, limits)
    strengths = _validate_epsilons(epsilons)
    names = _validate_attacks(attacks)
    progress = Progress("Robustness", validate_verbose(verbose))
    file = validate_checkpoint(checkpoint)
    if pgd_step_size is None and clip is None and any("pgd" in name for name in names):
        _require_reach(options["pgd_steps"], strengths[-1])
    chosen = [BY_NAME[name](**options) for name in names]
    for attack in chosen:
        attack.require(images.shape, strengths[-1])
    chosen.sort(key=lambda attack: ATTACKS.index(type(attack)))

    hold_current_weights(model)
    with keeping_state(model), ExitStack() as at_end:
        classifier = classifier_of(model, images[:batch_size], batch_size, at_end)
        labels = _validate_labels(y, len(images), classifier.classes)
        data = Batch(images, labels, np.arange(len(images)))
        evaluation: dict[str, Any] = {}
        if file is not None:
            evaluation = {"epsilons": strengths, "attacks": names, **settings}
            evaluation.update(identity(classifier, data))
        report = read_checkpoint(file, evaluation) or RobustnessReport(
            epsilons=np.array(strengths),
            clean_correct=Attack().run_all(classifier, data, 0.0, data.indices)[0],
            correct={name: np.zeros((0, len(images)), dtype=bool) for name in names},
            settings=settings,
        )
        if checks and not report.checks:
            pgd = PgdOnCrossEntropy(**options)
            report.checks.update(measure_checks(classifier, data, report, chosen, pgd))
        save = functools.partial(write_checkpoint, file, evaluation)
        _run_attacks(chosen, classifier, data, report, save, progress)
    return report


def _run_attacks(
    attacks: Sequence[Attack],
    classifier: Classifier,
    data: Batch,
    report: RobustnessReport,
    save: Callable[[RobustnessReport], None],
    progress: Progress,
) -> None:
    """Adds the missing results to `report`, attack by attack, strength by strength."""
    batches = math.ceil(len(data.images) / classifier.batch_size)
    total, done = batches * len(attacks) * len(report.epsilons), 0

    def show(fraction: float) -> None:
        progress.update(done + round(fraction * batches), total)

    for attack in attacks:
        for row, epsilon in enumerate(report.epsilons.tolist()):
            if row >= len(report.correct[attack.name]):
                indices = _images_to_attack(attack, row, report)
                if epsilon == 0.0:
                    rows = len(attack.starts()) if attack.random else 1
                    correct = np.tile(report.clean_correct, (rows, 1))
                else:
                    correct = attack.run_all(classifier, data, epsilon, indices, show)
                _add(report, attack.name, correct)
                save(report)
            done += batches
            show(0)
    progress.finish()
    save(report)


def _images_to_attack(attack: Attack, row: int, report: RobustnessReport) -> Indices:
    """The images for `attack` at the strength with index `row`; for most, all."""
    if not attack.follows_up:
        return np.arange(report.clean_correct.size)
    unbroken = report.clean_correct.copy()
    for other in ATTACKS[: ATTACKS.index(type(attack))]:
        if other.follows_up and other.name in report.correct:
            unbroken &= report.correct[other.name][row]
    if row:  # an image broken at a smaller strength counts as broken
        unbroken &= report.correct[attack.name][row - 1]
    return np.flatnonzero(unbroken)


def _add(report: RobustnessReport, name: str, correct: NDArray[np.bool_]) -> None:
    """Adds the next strength of an attack, of which `correct` has a row per draw."""
    in_every_draw = np.all(correct, axis=0, keepdims=True)
    report.correct[name] = np.concatenate([report.correct[name], in_every_draw])
    if len(correct) > 1:
        shares = correct.mean(axis=1, keepdims=True)
        earlier = report.draw_accuracy.get(name, shares[:, :0])
        report.draw_accuracy[name] = np.concatenate([earlier, shares], axis=1)


def _require_reach(pgd_steps: int, epsilon: float) -> None:
    reach = pgd_steps * PAPER_STEP_SIZE
    if reach < epsilon and not math.isclose(reach, epsilon):
        raise invalid_value(
            "pgd_step_size",
            f"a size with which {pgd_steps} steps reach the largest epsilon, "
            f"{epsilon:g}; without `clip`, there is no range of pixels to scale the "
            "default by",
            f"None, that is {PAPER_STEP_SIZE:g}",
        )


def _validate_norm(norm: Any) -> float:
    if norm not in ("inf", np.inf, 2):
        raise invalid_value("norm", '"inf" or 2', repr(norm))
    return 2 if norm == 2 else np.inf


def _validate_step_size(size: Any, clip: tuple[float, float] | None) -> float:
    if size is None:
        low, high = clip or (0.0, 1.0)
        return PAPER_STEP_SIZE * (high - low)
    if not is_finite_number(size) or size <= 0:
        expected = "None or a finite number above 0"
        raise invalid_value("pgd_step_size", expected, repr(size))
    return float(size)


def _validate_clip(clip: Any) -> tuple[float, float] | None:
    if clip is None:
        return None
    low, high = clip if isinstance(clip, tuple | list) and len(clip) == 2 else (0, 0)
    if not (is_finite_number(low) and is_finite_number(high) and low < high):
        raise invalid_value("clip", "a pair (low, high) with low < high, or None", clip)
    return float(low), float(high)


def _validate_model(model: Any) -> None:
    if not isinstance(model, keras.Model) or not model.built:
        raise invalid_value("model", "a built Keras model", model)
    layers = flatten_layers(model)
    if stateful := [each.name for each in layers if getattr(each, "stateful", False)]:
        raise invalid_value(
            "model",
            "a model whose answer to an image does not depend on those before it (make "
            "one with `stateful=False`, and give it the weights)",
            f"'{model.name}', with the stateful layers {stateful}",
        )


def _validate_images(x: Any, clip: tuple[float, float] | None) -> NDArray[np.float32]:
    images = _as_array("x", x)
    # NaN and infinity are not within it either.
    if clip is not None and not (clip[0] <= images.min() <= images.max() <= clip[1]):
        raise invalid_value(
            "x",
            f"pixel values within clip={clip} (for others, give `clip=(low, high)`, "
            "and epsilons in the same units)",
            f"values from {images.min():g} to {images.max():g}",
        )
    return images.astype(np.float32, copy=False)


def _validate_labels(y: Any, count: int, classes: int) -> NDArray[np.int64]:
    labels = _as_array("y", y)
    if labels.shape not in ((count,), (count, 1)):
        raise invalid_value(
            "y",
            f"integer labels of shape ({count},) (for one-hot labels give "
            "`y.argmax(axis=1)`)",
            f"shape {labels.shape}",
        )
    labels = labels.reshape(count)
    integers = labels.astype(np.int64)
    if np.any(integers != labels) or not 0 <= labels.min() <= labels.max() < classes:
        raise invalid_value(
            "y",
            f"labels from 0 to {classes - 1}, one for each output of the model",
            f"labels from {labels.min():g} to {labels.max():g}",
        )
    return integers


def _validate_epsilons(epsilons: Any) -> list[float]:
    values = np.asarray(epsilons, dtype=np.float64)
    if (
        values.ndim != 1
        or not values.size
        or not np.all(np.diff(values) > 0)
        or not 0 <= values[0] <= values[-1] < np.inf
    ):
        raise invalid_value(
            "epsilons",
            "one or more finite numbers of at least 0, strictly increasing",
            epsilons,
        )
    # Python floats: a NumPy scalar would turn float32 images into float64.
    strengths: list[float] = values.tolist()
    return strengths


def _validate_attacks(attacks: Any) -> list[str]:
    names = list(BY_NAME if attacks == "strong" else attacks)
    if not names or len({*names} & {*BY_NAME}) < len(names):
        raise invalid_value(
            "attacks",
            f'distinct names out of {tuple(BY_NAME)}, or "strong" for all',
            attacks,
        )
    return names


def _as_array(argument: str, value: Any) -> NDArray[Any]:
    """An array of any kind as one of NumPy."""
    refuse_mask(argument, value)
    if ops.is_tensor(value):
        value = ops.convert_to_numpy(value)
    elif hasattr(value, "toarray"):  # a sparse matrix
        value = value.toarray()
    elif not (hasattr(value, "__array__") or isinstance(value, list | tuple)):
        raise invalid_value(
            argument,
            "an array (of a data set of batches, or another iterable, give "
            "`x, y = map(np.concatenate, zip(*data))`)",
            f"an object of type {type(value)}",
        )
    return np.asarray(value)
