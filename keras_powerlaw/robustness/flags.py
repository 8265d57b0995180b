"""Signs that a robustness figure is not to be trusted, in words.

Some are read off the results of the attacks; the others are measured on the first
images with a few more evaluations of the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from keras import ops
from numpy.typing import NDArray

from keras_powerlaw.robustness.programs import (
    compiled,
    cross_entropy,
    logits_and_gradient,
)
from keras_powerlaw.robustness.strong import STRONG_ATTACKS, Problem, is_correct, pgd

# Images that the measured checks look at.
CHECKED = 500

# Differences in accuracy below these shares, or of fewer than three images, are chance:
# that of an attack beaten by a weaker one (as in AutoAttack), the others, and that of
# the paper's PGD from stronger attacks, which always find a little more.
BEATEN = 0.002
CHANGED = 0.01
OVERSTATED = 0.02

# Outputs that differ by more than this share of their standard deviation differ by
# more than rounding.
ROUNDING = 1e-3

_WHITE_BOX = ("pgd_ce", "pgd_dlr", "autopgd")


@dataclass(frozen=True)
class Flag:
    """One finding: what was seen, with its figure, and what to do about it.

    Attributes:
        name: Short name of the finding.
        value: Its figure: a share of the images from 0 to 1, except for
            `"outputs change"` and `"batch dependence"`, where it is the largest
            difference in standard deviations of the outputs.
        finding: The finding in words.
        advice: What to do.
    """

    name: str
    value: float
    finding: str
    advice: str

    def __str__(self) -> str:
        return f"{self.name}: {self.finding} {self.advice}"


def find_flags(
    epsilons: NDArray[np.float64],
    clean_correct: NDArray[np.bool_],
    correct: Mapping[str, NDArray[np.bool_]],
    accuracy: Mapping[str, NDArray[np.float64]],
    checks: Mapping[str, Any],
) -> list[Flag]:
    """The flags that results and measured figures of an evaluation raise."""
    count = clean_correct.size
    return [
        *_rising(epsilons, clean_correct.mean(), accuracy, _least(CHANGED, count)),
        *_beaten(epsilons, correct, accuracy, _least(BEATEN, count)),
        *_overstated(epsilons, correct, _least(OVERSTATED, count)),
        *_measured(checks),
    ]


def _least(share, count):
    return max(share, 3 / count)


def _rising(epsilons, clean, accuracy, least):
    for name, values in accuracy.items():
        curve = np.concatenate([[clean], values])
        rises = curve - np.minimum.accumulate(curve)
        at = int(rises.argmax())
        if rises[at] >= least:
            yield Flag(
                "accuracy rises",
                float(rises[at]),
                f"Under {name}, accuracy at ε = {epsilons[at - 1]:g} is "
                f"{_percent(rises[at])} above that at a smaller ε.",
                "A stronger attack cannot do worse: this one fails at large ε. Report "
                "the worst case over stronger attacks.",
            )


def _beaten(epsilons, correct, accuracy, least):
    white_box = [name for name in _WHITE_BOX if name in correct]
    # The last of the strong attacks counts what those before it broke.
    reference = "pgd" if "pgd" in correct else (white_box or [None])[-1]
    if reference is None:
        return
    for name in ("fgsm", "noise", "uniform_noise", "square"):
        if name not in correct:
            continue
        gaps = accuracy[reference] - accuracy[name]
        against = reference
        if name == "square":  # image by image, and against all that it ran after
            against = white_box[-1] if white_box else "pgd"
            left = np.logical_and.accumulate(correct[against], axis=0)
            gaps = (left & ~correct["square"]).mean(axis=1)
        at = int(gaps.argmax())
        if gaps[at] >= least:
            yield Flag(
                f"{name} beats {against}",
                float(gaps[at]),
                f"At ε = {epsilons[at]:g}, {name} breaks {_percent(gaps[at])} more of "
                f"the images than {against} does."
                if name != "square"
                else f"At ε = {epsilons[at]:g}, square breaks {_percent(gaps[at])} of "
                f"the images, which {against} leaves.",
                "The gradients mislead. Attack with restarts, the margin loss, AutoPGD "
                "and Square, and report the worst case.",
            )


def _overstated(epsilons, correct, least):
    strong = [rows for name, rows in correct.items() if name in STRONG_ATTACKS]
    if "pgd" not in correct or not strong:
        return
    left = np.logical_and.reduce([correct["pgd"], *strong])
    gaps = (correct["pgd"] & ~left).mean(axis=1)
    at = int(gaps.argmax())
    if gaps[at] >= least:
        yield Flag(
            "pgd overstates",
            float(gaps[at]),
            f"At ε = {epsilons[at]:g}, the strong attacks break {_percent(gaps[at])} "
            "of the images, which pgd leaves.",
            "Report the worst case over the attacks.",
        )


def _measured(checks):
    rules = {
        "zero_gradients": lambda value: Flag(
            "zero gradients",
            value,
            f"The loss gradient is exactly zero for {_percent(value)} of the images: "
            "FGSM and PGD cannot move them.",
            "Use the margin loss (pgd_dlr) and Square; look for saturated outputs, "
            "rounding, or other steps without a slope.",
        ),
        "more_steps": lambda value: Flag(
            "more steps help",
            value,
            f"Twice the PGD steps break {_percent(value)} more of the images.",
            "Raise pgd_steps until the accuracy no longer falls.",
        ),
        "large_epsilon": lambda value: Flag(
            "large ε leaves accuracy",
            value,
            "With every image free to become the same grey, PGD still leaves an "
            f"accuracy of {_percent(value)}, above chance.",
            "The attack fails, not the images: use other losses, restarts and Square.",
        ),
        "probabilities": lambda value: Flag(
            "outputs look like probabilities",
            value,
            f"All outputs of {_percent(value)} of the images are between 0 and 1.",
            "The attacks take outputs for logits: give the model without its last "
            "softmax or sigmoid.",
        ),
        "outputs_change": lambda value: Flag(
            "outputs change",
            value,
            "Two calls with the same images differ by "
            f"{value:.2g} standard deviations of the outputs.",
            "Average each attack step over many calls (expectation over "
            "transformation), or evaluate without the randomness.",
        ),
        "batch_dependence": lambda value: Flag(
            "batch dependence",
            value,
            "An image's outputs differ by "
            f"{value:.2g} standard deviations with the rest of its batch.",
            "Evaluate with statistics that are fixed after training (in a whitening "
            "layer the running ones): here the images of a batch attack each other.",
        ),
    }
    for name, rule in rules.items():
        if name in checks and checks[name] > checks["limits"][name]:
            yield rule(checks[name])


def _percent(share):
    return f"{100 * share:.1f} %"


def measure_checks(
    problem: Problem,
    epsilons: list[float],
    *,
    gradients: bool,
    pgd_steps: int | None,
    pgd_step_size: float,
) -> dict[str, Any]:
    """Figures for the flags that need more evaluations, and the limits they have.

    Args:
        problem: Model and images, of which the first are looked at.
        epsilons: Where to try more steps.
        gradients: Whether to look at gradients: some attack uses them.
        pgd_steps: Steps of PGD, or None if it was not run.
        pgd_step_size: Their size.
    """
    count = min(CHECKED, len(problem.images))
    first = replace(
        problem, images=problem.images[:count], labels=problem.labels[:count]
    )
    one_batch = replace(first, images=first.images[: problem.batch_size])
    outputs = _outputs(one_batch)
    spread = max(float(outputs.std()), 1e-30)

    def difference(others):
        return float(np.abs(outputs[: len(others)] - others).max()) / spread

    values = {
        "probabilities": float(
            ((outputs >= 0) & (outputs <= 1)).all(axis=1).mean(dtype=float)
        ),
        "outputs_change": difference(_outputs(one_batch)),
    }
    # A random model differs between batches for its own reason.
    if len(outputs) > 1 and values["outputs_change"] <= ROUNDING:
        half = replace(first, images=one_batch.images[: (len(outputs) + 1) // 2])
        values["batch_dependence"] = difference(_outputs(half))
    least = _least(CHANGED, count)
    chance = 1 / outputs.shape[1]
    limits = {
        "probabilities": 0.99,
        "outputs_change": ROUNDING,
        "batch_dependence": ROUNDING,
        "zero_gradients": 0.0,
        "more_steps": float(np.nextafter(least, 0)),
        "large_epsilon": chance,
    }
    if gradients:
        values["zero_gradients"] = _zero_gradients(first)
        values["large_epsilon"] = _at_large_epsilon(first)
    if pgd_steps is not None:
        values["more_steps"] = _gain_of_steps(first, epsilons, pgd_steps, pgd_step_size)
    return {**values, "limits": limits}


def _outputs(problem):
    outputs = problem.model(problem.images, training=False)
    return ops.convert_to_numpy(ops.cast(outputs, "float32"))


def _zero_gradients(problem):
    def program(forward, images, labels):
        return logits_and_gradient(forward, images, labels, cross_entropy)

    gradient = compiled(problem.model, "gradient", program)
    zeros = 0
    for batch in _batches(problem, np.arange(len(problem.images))):
        _, slopes = gradient(problem.images[batch], problem.labels[batch])
        zeros += (slopes == 0).reshape(len(slopes), -1).all(axis=1).sum()
    return float(zeros / len(problem.images))


def _at_large_epsilon(problem):
    """Accuracy where every image may become the same, after the longer PGD steps."""
    low, high = problem.clip or (problem.images.min(), problem.images.max())
    epsilon = 0.5 * float(high - low)
    if problem.norm == 2:
        epsilon *= np.sqrt(problem.images[0].size)
    steps = 40
    left = _correctly_classified(problem)
    return _left_by_pgd(problem, epsilon, steps, 2.5 * epsilon / steps, left).size / (
        len(problem.images)
    )


def _gain_of_steps(problem, epsilons, steps, step_size):
    """Share of the images that twice the steps break beside those of PGD, at most."""
    left = longer = _correctly_classified(problem)
    gain = 0
    for epsilon in epsilons:
        if epsilon == 0:
            continue
        left = _left_by_pgd(problem, epsilon, steps, step_size, left)
        longer = np.intersect1d(longer, left)
        longer = _left_by_pgd(problem, epsilon, 2 * steps, step_size, longer)
        gain = max(gain, left.size - longer.size)
    return gain / len(problem.images)


def _left_by_pgd(problem, epsilon, steps, step_size, indices):
    left = [
        batch[~pgd(problem, "ce", epsilon, steps, step_size, batch)]
        for batch in _batches(problem, indices)
    ]
    return np.concatenate([indices[:0], *left])


def _correctly_classified(problem):
    indices = np.arange(len(problem.images))
    return np.concatenate(
        [
            batch[is_correct(problem, problem.images[batch], batch)]
            for batch in _batches(problem, indices)
        ]
    )


def _batches(problem, indices):
    size = problem.batch_size
    return [indices[start : start + size] for start in range(0, len(indices), size)]
