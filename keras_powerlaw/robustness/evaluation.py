"""Accuracy under attack: the paper's attacks, stronger ones, and noise."""

from __future__ import annotations

import hashlib
import json
import math
import os
import pathlib
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral, Real
from typing import Any, Literal

import keras
import numpy as np
from numpy.typing import ArrayLike, NDArray

from keras_powerlaw.robustness.attacks import gradient_attacks
from keras_powerlaw.robustness.flags import measure_checks
from keras_powerlaw.robustness.reports import RobustnessReport, from_bits, to_state
from keras_powerlaw.robustness.strong import (
    STRONG_ATTACKS,
    Problem,
    ball_points,
    check_square,
    check_toolbox,
    correct_rows,
    strong_attack,
)
from keras_powerlaw.spectral.activity import Progress, observe
from keras_powerlaw.support.arguments import invalid_value

ATTACKS = ("fgsm", "pgd", "noise")
_NOISES = ("noise", "uniform_noise")
ALL_ATTACKS = (*ATTACKS, "uniform_noise", *STRONG_ATTACKS)

# The models without their last softmax that were evaluated, by model.
_LOGITS: weakref.WeakKeyDictionary[keras.Model, keras.Model] = (
    weakref.WeakKeyDictionary()
)


def evaluate_robustness(
    model: keras.Model,
    x: ArrayLike,
    y: ArrayLike,
    epsilons: ArrayLike,
    attacks: Sequence[str] | Literal["strong"] = ATTACKS,
    *,
    norm: float | Literal["inf"] = "inf",
    pgd_steps: int = 40,
    pgd_step_size: float = 0.01,
    restarts: int = 2,
    noise_draws: int = 1,
    clip: tuple[float, float] | None = (0.0, 1.0),
    batch_size: int = 500,
    seed: int = 0,
    checks: bool = True,
    checkpoint: str | os.PathLike[str] | None = None,
    verbose: Literal["auto", 0, 1] = "auto",
) -> RobustnessReport:
    """Measures a classifier's accuracy under attacks of growing strength.

    For an image `s` with label `y`, cross-entropy loss `L` and model `f`, the attacks
    of the paper:

    ```
    fgsm    s + ε sign(∇ₛ L(f(s), y))
    pgd     s + δ, from δ = 0 by δ ← Proj(δ + η sign(∇_δ L(f(s + δ), y)))
    noise   s + ε z,  z standard normal
    ```

    where `Proj` limits every entry of δ to [−ε, ε] and `η` is `pgd_step_size`.
    The sign in the PGD step makes it the steepest ascent in the maximum norm,
    in which ε is measured. Perturbed images are limited to `clip`.

    The strong attacks, with which to doubt the first:

    ```
    uniform_noise  uniform in the ball of radius ε
    pgd_ce         PGD on L, from the image and from random points of the ball
    pgd_dlr        the same on the margin of the logits
    autopgd        AutoPGD, with its own step sizes, on both losses
    square         Square, which uses no gradient
    ```

    The last four count an image as broken if any point of the attack's way is
    misclassified, at ε or a smaller one. They run in this order, each on what those
    before it left, whatever the order in `attacks`. `report.worst_case` takes the
    minimum over the attacks image by image, and `report.flags` says in words what
    speaks against the figures.

    The model is called with `training=False`. The attacks need its logits: a
    softmax at the end of a Sequential or Functional model is left out for the
    evaluation, and the model is as before afterwards. Where the loss gradient of
    an image is exactly zero, FGSM and PGD do not move it; a very confident model
    can look robust for this reason.

    Args:
        model: A built Keras model with one input and one output, the logits of
            at least two classes, shape `(batch, classes)`.
        x: Images, shape `(M, ...)`, numbers within `clip`.
        y: Integer labels, shape `(M,)`, from 0 to `classes - 1`.
        epsilons: Attack strengths in units of pixel values, shape `(E,)`, at
            least 0 and strictly increasing: the largest change of a pixel, or with
            `norm=2` the Euclidean length of the change; for `"noise"` the standard
            deviation of a pixel.
        attacks: Names out of those above, or `"strong"` for all of them. `"fgsm"`
            and `"pgd"` need cleverhans, except on the JAX backend; `"autopgd"` and
            `"square"` the Adversarial Robustness Toolbox. Defaults to
            `("fgsm", "pgd", "noise")`.
        norm: `"inf"`, in which ε is the largest change of a pixel, or 2, the
            Euclidean norm. Defaults to `"inf"`.
        pgd_steps: Number of PGD steps, at least 1. Defaults to 40.
        pgd_step_size: Size η of a PGD step in units of pixel values, above 0. It
            is reduced to ε where ε is smaller. Random starts take steps of
            `2.5 * ε / pgd_steps`. Defaults to 0.01.
        restarts: Starts of each strong attack, at least 1. PGD's first start is the
            image itself. Defaults to 2.
        noise_draws: Draws of noise for each image, at least 1. Defaults to 1.
        clip: Smallest and largest pixel value, or None for no limits. Defaults to
            `(0.0, 1.0)`.
        batch_size: Images per batch, at least 1. Defaults to 500.
        seed: Seed of the noise and of the random starts, at least 0. A draw of
            noise serves all strengths. Defaults to 0.
        checks: Whether to measure what the flags need beside the results: on the
            first 500 images, the model's outputs, their gradients, and PGD with
            twice the steps and at an ε that reaches every image. Defaults to True.
        checkpoint: Path of a JSON file to keep finished results in: an evaluation
            that was interrupted goes on from there, and a finished one is read.
            Defaults to None: nothing is written.
        verbose: `"auto"` shows progress when the evaluation is slow, 0 never, 1
            always. Defaults to `"auto"`.

    Returns:
        A `RobustnessReport`.

    Raises:
        ValueError: If an argument is invalid, the model returns probabilities
            or NaN, or `checkpoint` holds another evaluation.
        ImportError: If an attack is asked for without the package it needs.

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
    clip = _check_clip(clip)
    images = _check_images(x, model, clip)
    strengths = _check_epsilons(epsilons)
    attacks = _check_attacks(attacks)
    radius = _check_norm(norm)
    _check_integer("pgd_steps", pgd_steps, minimum=1)
    _check_integer("restarts", restarts, minimum=1)
    _check_integer("noise_draws", noise_draws, minimum=1)
    _check_integer("batch_size", batch_size, minimum=1)
    _check_integer("seed", seed, minimum=0)
    if not _is_finite_number(pgd_step_size) or pgd_step_size <= 0:
        raise invalid_value("pgd_step_size", "a finite number above 0", pgd_step_size)
    if verbose not in ("auto", 0, 1):
        raise invalid_value("verbose", '"auto", 0 or 1', verbose)
    if {"autopgd", "square"} & set(attacks):
        check_toolbox()
    if "square" in attacks:
        check_square(images.shape, radius)
    reach = pgd_steps * pgd_step_size
    if (
        "pgd" in attacks
        and reach < strengths[-1]
        and not math.isclose(reach, strengths[-1])
    ):
        warnings.warn(
            f"{pgd_steps} PGD steps of {pgd_step_size:g} change a pixel by at most "
            f"{reach:g}, less than the largest epsilon, "
            f"{strengths[-1]:g}. Raise `pgd_steps` or `pgd_step_size`.",
            stacklevel=2,
        )
    settings = {
        "norm": "inf" if radius == np.inf else 2,
        "pgd_steps": int(pgd_steps),
        "pgd_step_size": float(pgd_step_size),
        "restarts": int(restarts),
        "noise_draws": int(noise_draws),
        "clip": None if clip is None else list(clip),
        "seed": int(seed),
    }

    # Observing no layer only makes the regularizers step aside.
    with _without_softmax(model) as logits_model, observe(logits_model, []):
        classes = _count_classes(logits_model, images[:batch_size])
        labels = _check_labels(y, len(images), classes)
        problem = Problem(logits_model, images, labels, clip, radius, batch_size, seed)
        run = _Run(problem, attacks, strengths, settings, checkpoint, verbose)
        if checks and not run.checks:
            run.checks = measure_checks(
                problem,
                strengths,
                gradients=not set(attacks) <= {*_NOISES, "square"},
                pgd_steps=pgd_steps if set(attacks) & _PGD else None,
                pgd_step_size=pgd_step_size,
            )
        return run.report()


_PGD = {"pgd", "pgd_ce", "pgd_dlr", "autopgd"}


class _Run:
    """An evaluation under way: what is finished, and how to do the rest.

    The unit of work is one attack at one strength. After each, the results so far are
    written to the checkpoint.
    """

    def __init__(self, problem, attacks, epsilons, settings, checkpoint, verbose):
        self._problem = problem
        self._attacks = attacks
        self._epsilons = epsilons
        self._settings = settings
        self._path = None if checkpoint is None else pathlib.Path(checkpoint)
        self._verbose = verbose
        self.checks: dict[str, Any] = {}
        self._clean: NDArray[np.bool_] | None = None
        # Rows of the finished strengths, and the accuracy of each draw of noise.
        self._rows: dict[str, list[NDArray[np.bool_]]] = {name: [] for name in attacks}
        self._draws: dict[str, list[list[float]]] = {
            name: []
            for name in attacks
            if name in _NOISES and settings["noise_draws"] > 1
        }
        if self._path is not None:
            self._identity = self._identify()
            if self._path.exists():
                self._read()

    def report(self) -> RobustnessReport:
        """Does what is not finished."""
        problem = self._problem
        # The strong attacks in their order, after the others.
        order = sorted(
            self._attacks,
            key=lambda name: name in STRONG_ATTACKS and ALL_ATTACKS.index(name),
        )
        batches = len(range(0, len(problem.images), problem.batch_size))
        progress = Progress("Robustness", self._verbose)
        total, done = batches * len(order) * len(self._epsilons), 0

        def update(fraction):
            progress.update(done + round(fraction * batches), total)

        if self._clean is None:
            self._clean = self._classify(lambda batch: problem.images[batch])
        for name in order:
            for row, epsilon in enumerate(self._epsilons):
                if row >= len(self._rows[name]):
                    self._rows[name].append(self._bits(name, row, epsilon, update))
                    self._write()
                done += batches
                update(0)
        progress.finish()
        self._write()
        return self._so_far()

    def _so_far(self):
        return RobustnessReport(
            epsilons=np.array(self._epsilons, dtype=np.float64),
            clean_correct=self._clean,
            correct={name: np.array(self._rows[name]) for name in self._attacks},
            settings=self._settings,
            draw_accuracy={name: np.array(v).T for name, v in self._draws.items()},
            checks=self.checks,
        )

    def _bits(self, name, row, epsilon, progress):
        """Which images withstand the attack, shape `(M,)`."""
        problem = self._problem
        if name in _NOISES:
            return self._under_noise(name, epsilon, progress)
        if epsilon == 0.0:
            return self._clean
        if name in STRONG_ATTACKS:
            left = self._clean.copy()
            for earlier in STRONG_ATTACKS[: STRONG_ATTACKS.index(name)]:
                if earlier in self._rows:
                    left &= self._rows[earlier][row]
            if row:
                left &= self._rows[name][row - 1]
            indices = np.flatnonzero(left)
            left[indices] = ~strong_attack(
                problem,
                name,
                epsilon,
                indices,
                steps=self._settings["pgd_steps"],
                step_size=self._settings["pgd_step_size"],
                restarts=self._settings["restarts"],
                progress=progress,
            )
            return left
        attack = gradient_attacks(
            problem.model,
            problem.clip,
            self._settings["pgd_steps"],
            self._settings["pgd_step_size"],
            problem.norm,
        )[name]
        return self._classify(
            lambda batch: attack(problem.images[batch], problem.labels[batch], epsilon),
            progress,
        )

    def _under_noise(self, name, epsilon, progress):
        problem, draws = self._problem, self._settings["noise_draws"]
        every = np.ones(len(problem.images), dtype=bool)
        accuracies = []
        for draw in range(draws):
            # One stream for all images, drawn again for each strength: nothing is
            # kept, and the batch size changes nothing.
            rng = np.random.default_rng([problem.seed, draw] if draw else problem.seed)

            def noisy(batch, rng=rng, draw=draw):
                images = problem.images[batch]
                if name == "noise":
                    noise = rng.standard_normal(images.shape, dtype=np.float32)
                else:
                    indices = np.arange(batch.start, batch.start + len(images))
                    noise = ball_points(problem, indices, [draw])
                noisy = images + epsilon * noise
                return noisy if problem.clip is None else np.clip(noisy, *problem.clip)

            bits = self._classify(
                noisy, lambda share, draw=draw: progress((draw + share) / draws)
            )
            every &= bits
            accuracies.append(float(bits.mean()))
        if name in self._draws:
            self._draws[name].append(accuracies)
        return every

    def _classify(
        self,
        perturbed: Callable[[slice], Any],
        progress: Callable[[float], None] = lambda share: None,
    ) -> NDArray[np.bool_]:
        """Which images are classified correctly when perturbed, batch by batch."""
        problem = self._problem
        count = len(problem.images)
        correct = np.empty(count, dtype=bool)
        for start in range(0, count, problem.batch_size):
            batch = slice(start, start + problem.batch_size)
            correct[batch] = _is_correct(
                problem.model, perturbed(batch), problem.labels[batch]
            )
            progress(min(batch.stop, count) / count)
        return correct

    def _identify(self) -> dict[str, Any]:
        """What makes a checkpoint one of this evaluation."""

        def digest(arrays):
            found = hashlib.blake2b(digest_size=16)
            for array in arrays:
                # As bytes: bfloat16 has no buffer of its own.
                found.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
            return found.hexdigest()

        problem = self._problem
        return {
            "epsilons": self._epsilons,
            "attacks": list(self._attacks),
            **self._settings,
            "x": digest([problem.images]),
            "y": digest([problem.labels]),
            "model": digest(
                keras.ops.convert_to_numpy(keras.ops.convert_to_tensor(weight))
                for weight in problem.model.weights
            ),
        }

    def _read(self) -> None:
        try:
            state = json.loads(self._path.read_text(encoding="utf-8"))
            found = state["evaluation"]
            differing = [
                key for key in self._identity if found[key] != self._identity[key]
            ]
            clean = from_bits(state["clean_correct"])
            rows = {
                name: [from_bits(row) for row in rows]
                for name, rows in state["correct"].items()
            }
            draws = state.get("draw_accuracy", {})
            checks = state.get("checks", {})
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise invalid_value(
                "checkpoint", "the path of a checkpoint, or a new one", self._path
            ) from error
        if differing:
            raise invalid_value(
                "checkpoint",
                f"a checkpoint of the same evaluation; {differing} differ",
                self._path,
            )
        self._clean, self._rows, self.checks = clean, rows, checks
        self._draws = {name: np.array(rows).T.tolist() for name, rows in draws.items()}

    def _write(self) -> None:
        """A file that `RobustnessReport.from_json` reads, once all is finished."""
        if self._path is None or self._clean is None:
            return
        state = {**to_state(self._so_far()), "evaluation": self._identity}
        unfinished = self._path.with_name(f"{self._path.name}.unfinished")
        unfinished.write_text(json.dumps(state), encoding="utf-8")
        unfinished.replace(self._path)  # a file that is there is whole


@contextmanager
def _without_softmax(model: keras.Model) -> Iterator[keras.Model]:
    """Yields a model that returns the logits of `model`, which it then restores."""
    layer = _output_layer(model)
    if isinstance(layer, keras.layers.Softmax) and layer.output is model.outputs[0]:
        if model not in _LOGITS:  # one model for all calls, as for its programs
            _LOGITS[model] = keras.Model(model.inputs[0], layer.input)
        yield _LOGITS[model]
    elif getattr(layer, "activation", None) is keras.activations.softmax:
        layer.activation = keras.activations.linear
        try:
            yield model
        finally:
            layer.activation = keras.activations.softmax
    else:
        yield model


def _output_layer(model: keras.Model) -> Any:
    """Returns the layer that makes the output of `model` and nothing else."""
    if isinstance(model, keras.Sequential):
        return model.layers[-1]
    if isinstance(model, keras.Function):
        # Ordered by depth: a layer also used further up does not come last.
        return model.operations[-1]
    return None


def _count_classes(model: keras.Model, images: NDArray[np.float32]) -> int:
    """Returns the number of classes, or raises if the outputs are not logits."""
    outputs = model(images, training=False)
    if not keras.ops.is_tensor(outputs):
        raise invalid_value(
            "model", "a model with one output", f"outputs of type {type(outputs)}"
        )
    if len(outputs.shape) != 2 or outputs.shape[1] < 2:
        raise invalid_value(
            "model",
            "a model with outputs of shape (batch, classes) and at least 2 classes",
            f"outputs of shape {tuple(outputs.shape)}",
        )
    values = keras.ops.convert_to_numpy(keras.ops.cast(outputs, "float32"))
    sums_to_one = np.abs(values.sum(axis=1) - 1.0) < 1e-3
    if np.all(sums_to_one) and values.min() >= 0.0 and values.max() <= 1.0:
        raise invalid_value(
            "model",
            "a model that returns logits; give the model without its softmax",
            "outputs that are probabilities (every row sums to 1)",
        )
    return values.shape[1]


def _is_correct(
    model: keras.Model, images: Any, labels: NDArray[np.int64]
) -> NDArray[np.bool_]:
    logits = keras.ops.cast(model(images, training=False), "float32")
    return correct_rows(keras.ops.convert_to_numpy(logits), labels)


def _check_clip(clip: Any) -> tuple[float, float] | None:
    if clip is None:
        return None
    if (
        not isinstance(clip, tuple | list)
        or len(clip) != 2
        or not all(map(_is_finite_number, clip))
        or clip[0] >= clip[1]
    ):
        raise invalid_value("clip", "a pair (low, high) with low < high, or None", clip)
    return float(clip[0]), float(clip[1])


def _check_images(
    x: Any, model: Any, clip: tuple[float, float] | None
) -> NDArray[np.float32]:
    if not isinstance(model, keras.Model) or not model.built:
        raise invalid_value("model", "a built Keras model", model)
    if len(getattr(model, "inputs", None) or [None]) != 1:
        raise invalid_value(
            "model", "a model with one input", f"{len(model.inputs)} inputs"
        )
    if len(getattr(model, "outputs", None) or [None]) != 1:
        raise invalid_value(
            "model", "a model with one output", f"{len(model.outputs)} outputs"
        )

    images = _to_numpy("x", x)
    if images.dtype.kind not in "fiu":
        raise invalid_value("x", "an array of numbers", f"dtype {images.dtype}")
    if images.ndim < 2 or images.size == 0:
        raise invalid_value(
            "x", "images of shape (M, ...), M > 0", f"shape {images.shape}"
        )
    # NaN and infinity show in the extremes, which take no memory.
    if not np.isfinite([images.min(), images.max()]).all():
        raise invalid_value("x", "finite numbers", "an array with NaN or infinity")
    if getattr(model, "inputs", None):
        expected = tuple(model.inputs[0].shape[1:])
        matches = len(expected) == images.ndim - 1 and all(
            size in (None, received)
            for size, received in zip(expected, images.shape[1:], strict=True)
        )
        if not matches:
            raise invalid_value(
                "x",
                f"images of the model's input shape {expected}",
                f"images of shape {images.shape[1:]}",
            )
    if clip is not None and (images.min() < clip[0] or images.max() > clip[1]):
        raise invalid_value(
            "x",
            f"pixel values within clip={clip}",
            f"values from {images.min():g} to {images.max():g}",
        )
    return images.astype(np.float32, copy=False)


def _check_labels(y: Any, count: int, classes: int) -> NDArray[np.int64]:
    labels = _to_numpy("y", y)
    if labels.shape != (count,):
        hint = (
            "; for one-hot labels give `y.argmax(axis=1)`" if labels.ndim == 2 else ""
        )
        raise invalid_value(
            "y", f"integer labels of shape ({count},){hint}", f"shape {labels.shape}"
        )
    if labels.dtype.kind not in "fiu" or not np.array_equal(labels, np.round(labels)):
        raise invalid_value("y", "integer labels", labels)
    if labels.min() < 0 or labels.max() >= classes:
        raise invalid_value(
            "y",
            f"labels from 0 to {classes - 1}, one for each output of the model",
            f"labels from {labels.min():g} to {labels.max():g}",
        )
    return labels.astype(np.int64)


def _check_epsilons(epsilons: Any) -> list[float]:
    values = _to_numpy("epsilons", epsilons)
    if (
        values.dtype.kind not in "fiu"
        or values.ndim != 1
        or values.size == 0
        or not np.isfinite(values).all()
        or values[0] < 0
        or not np.all(values[1:] > values[:-1])
    ):
        raise invalid_value(
            "epsilons",
            "one or more finite numbers of at least 0, strictly increasing",
            epsilons,
        )
    # Python floats: a NumPy scalar would turn float32 images into float64.
    return values.astype(np.float64).tolist()


def _check_attacks(attacks: Any) -> tuple[str, ...]:
    if attacks == "strong":
        return ALL_ATTACKS
    names = () if isinstance(attacks, str) else tuple(attacks)
    if not names or not set(names) <= set(ALL_ATTACKS) or len(set(names)) < len(names):
        raise invalid_value(
            "attacks",
            f'a sequence of different names out of {ALL_ATTACKS}, or "strong" for all',
            attacks,
        )
    return names


def _check_norm(norm: Any) -> float:
    if norm == "inf" or (_is_number(norm) and norm == np.inf):
        return np.inf
    if _is_number(norm) and norm == 2:
        return 2
    raise invalid_value("norm", '"inf" or 2', repr(norm))


def _check_integer(argument: str, value: Any, minimum: int) -> None:
    is_integer = isinstance(value, Integral) and not isinstance(value, bool)
    if not is_integer or value < minimum:
        raise invalid_value(argument, f"an integer of at least {minimum}", value)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_finite_number(value: Any) -> bool:
    return _is_number(value) and math.isfinite(value)


def _to_numpy(argument: str, value: Any) -> NDArray[Any]:
    if keras.ops.is_tensor(value):
        return keras.ops.convert_to_numpy(value)
    try:
        return np.asarray(value)
    except ValueError as error:  # a ragged list
        raise invalid_value(argument, "an array", value) from error
