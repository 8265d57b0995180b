"""Reasons not to trust a robustness figure, in words.

They follow from a report, without Keras: from the results of the attacks, and from the
checks that `checks.py` measured during the evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keras_powerlaw.robustness.attacks.table import ATTACKS, STRONG_ATTACKS

# Differences in accuracy below these shares, or of fewer than three images, count as
# chance.
BEATEN = 0.002  # a weaker attack beats a stronger one; the limit is AutoAttack's
CHANGED = 0.01  # all other differences
OVERSTATED = 0.02  # stronger attacks beat the paper's PGD, as they always do slightly

SHORT_OF_REACH = (
    "All PGD steps together change a pixel by at most {reach:g}: raise pgd_step_size."
)
MISLEADING = (
    "The gradients mislead. Attack with restarts, the margin loss, AutoPGD and Square, "
    "and report the worst case."
)


@dataclass(frozen=True)
class Flag:
    """One reason not to trust a report: a finding, its figure, and advice.

    Attributes:
        name: Short name of the finding.
        value: Its figure: a share of the images from 0 to 1, except for
            `"outputs change"` and `"batch dependence"`, for which it is the largest
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


def least_share(share: float, count: int) -> float:
    """The smallest difference in accuracy on `count` images that is not chance."""
    return max(share, 3 / count)


def find_flags(
    epsilons: NDArray[np.float64],
    clean_correct: NDArray[np.bool_],
    correct: Mapping[str, NDArray[np.bool_]],
    accuracy: Mapping[str, NDArray[np.float64]],
    checks: Mapping[str, Any],
    reach: float = np.inf,
) -> list[Flag]:
    """The flags that the results and checks of an evaluation raise.

    Args:
        epsilons: The attack strengths.
        clean_correct: Which images are classified correctly.
        correct: The same for each attack, strength and image.
        accuracy: The accuracy for each attack and strength.
        checks: The figures of `measure_checks()`.
        reach: How far all PGD steps together can move a pixel.
    """
    count, clean = clean_correct.size, float(clean_correct.mean())
    return [
        *_rising(epsilons, clean, accuracy, least_share(CHANGED, count)),
        *_beaten(epsilons, correct, accuracy, least_share(BEATEN, count), reach),
        *_overstated(epsilons, correct, least_share(OVERSTATED, count)),
        *_measured(checks),
    ]


def _rising(
    epsilons: NDArray[np.float64],
    clean: float,
    accuracy: Mapping[str, NDArray[np.float64]],
    least: float,
) -> Iterator[Flag]:
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


def _beaten(
    epsilons: NDArray[np.float64],
    correct: Mapping[str, NDArray[np.bool_]],
    accuracy: Mapping[str, NDArray[np.float64]],
    least: float,
    reach: float,
) -> Iterator[Flag]:
    strong = [
        attack.name
        for attack in ATTACKS
        if attack.follows_up and attack.white_box and attack.name in correct
    ]
    if "pgd" not in correct and not strong:
        return
    # The last strong attack also counts the images that those before it broke.
    reference = "pgd" if "pgd" in correct else strong[-1]
    for attack in ATTACKS:
        name = attack.name
        if attack.iterative or name not in correct:
            continue
        if attack.follows_up:  # image by image, against all attacks before it
            against = strong[-1] if strong else "pgd"
            unbroken = np.logical_and.accumulate(correct[against], axis=0)
            gaps = (unbroken & ~correct[name]).mean(axis=1)
            finding = "{name} breaks {share} of the images that {against} leaves."
        else:
            against = reference
            gaps = accuracy[against] - accuracy[name]
            finding = "{name} breaks {share} more of the images than {against} does."
        at = int(gaps.argmax())
        if gaps[at] >= least:
            finding = finding.format(
                name=name, share=_percent(gaps[at]), against=against
            )
            yield Flag(
                f"{name} beats {against}",
                float(gaps[at]),
                f"At ε = {epsilons[at]:g}, {finding}",
                SHORT_OF_REACH.format(reach=reach)
                if against == "pgd" and reach < 0.999 * epsilons[at]
                else MISLEADING,
            )


def _overstated(
    epsilons: NDArray[np.float64],
    correct: Mapping[str, NDArray[np.bool_]],
    least: float,
) -> Iterator[Flag]:
    strong = [rows for name, rows in correct.items() if name in STRONG_ATTACKS]
    if "pgd" not in correct or not strong:
        return
    unbroken = np.logical_and.reduce([correct["pgd"], *strong])
    gaps = (correct["pgd"] & ~unbroken).mean(axis=1)
    at = int(gaps.argmax())
    if gaps[at] >= least:
        yield Flag(
            "pgd overstates",
            float(gaps[at]),
            f"At ε = {epsilons[at]:g}, the strong attacks break {_percent(gaps[at])} "
            "of the images that pgd leaves.",
            "Report the worst case over the attacks.",
        )


def _measured(checks: Mapping[str, Any]) -> Iterator[Flag]:
    rules: dict[str, Callable[[float], Flag]] = {
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
            f"{value:.2g} standard deviations when the rest of its batch changes.",
            "Evaluate with statistics that are fixed after training (in a whitening "
            "layer the running ones): here the images of a batch attack each other.",
        ),
    }
    for name, rule in rules.items():
        if name in checks and checks[name] > checks["limits"][name]:
            yield rule(checks[name])


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
