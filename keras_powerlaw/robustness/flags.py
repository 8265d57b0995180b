"""Reasons not to trust a robustness figure, in words.

They follow from the results of the attacks, and from checks: figures that take a few
more evaluations of the model, on the first images.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from keras import ops
from numpy.typing import NDArray

from keras_powerlaw.robustness.attacks import ATTACKS
from keras_powerlaw.robustness.attacks.attack import Attack, Batch
from keras_powerlaw.robustness.attacks.gradient import PgdOnCrossEntropy
from keras_powerlaw.robustness.classifier import Classifier

if TYPE_CHECKING:
    from keras_powerlaw.robustness.report import RobustnessReport

# Differences in accuracy below these shares, or of fewer than three images, count as
# chance.
BEATEN = 0.002  # a weaker attack beats a stronger one; the limit is AutoAttack's
CHANGED = 0.01  # all other differences
OVERSTATED = 0.02  # stronger attacks beat the paper's PGD, as they always do slightly

# An accuracy that rises with ε does so by more than chance, if it is this many standard
# deviations of the number of images that change sides: one healthy curve in 200.
DEVIATIONS = 2.6

# Number of images that the checks use.
CHECKED = 500

# Rounding changes outputs by at most this share of their standard deviation.
ROUNDING = 1e-3

SHORT_OF_REACH = (
    "All PGD steps together change a pixel by at most {reach:g}: raise pgd_step_size."
)
FAILS = (
    "A stronger attack cannot do worse: this one fails at large ε. Report the worst "
    "case over stronger attacks."
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


def find_flags(report: RobustnessReport) -> list[Flag]:
    """The flags that the results and checks of an evaluation raise."""
    return [*_of_results(report), *_of_checks(report.checks)]


def _of_results(report: RobustnessReport) -> Iterator[Flag]:
    epsilons, accuracy = report.epsilons, report.accuracy
    settings, correct = report.settings, report.correct
    # Gaussian noise is left out where its ε, the standard deviation of a pixel, is not
    # the length of the whole change.
    euclidean = settings.get("norm") == 2
    ran = [
        attack
        for attack in ATTACKS
        if attack.name in correct and (attack.bounded or not euclidean)
    ]
    # How far all PGD steps together can move a pixel.
    reach = settings.get("pgd_steps", np.inf) * settings.get("pgd_step_size", np.inf)

    def raised(
        name: str, gaps: NDArray[Any], share: float, finding: str, advice: str
    ) -> Iterator[Flag]:
        """The flag, if the largest of the gaps, one for each ε, is not chance."""
        at = int(gaps.argmax())
        if gaps[at] >= _least_share(share, report.clean_correct.size):
            if name.endswith("beats pgd") and reach < 0.999 * epsilons[at]:
                advice = SHORT_OF_REACH.format(reach=reach)
            words = finding.format(epsilon=epsilons[at], share=_percent(gaps[at]))
            yield Flag(name, float(gaps[at]), words, advice)

    for attack in ran:
        rows = np.vstack([report.clean_correct, correct[attack.name]]).astype(int)
        means = rows.mean(axis=1)
        lowest = [means[:end].argmin() for end in range(1, len(rows))]
        changes = rows[1:] - rows[lowest]  # 1: right at ε, and wrong at a smaller one
        chance = DEVIATIONS * np.sqrt(np.abs(changes).sum(axis=1))
        gaps = np.where(changes.sum(axis=1) > chance, changes.mean(axis=1), 0)
        finding = (
            f"Under {attack.name}, accuracy at ε = {{epsilon:g}} is {{share}} above "
            "that at a smaller ε."
        )
        advice = "Take more draws: noise_draws." if attack.random else FAILS
        yield from raised("accuracy rises", gaps, CHANGED, finding, advice)

    # Where an attack that does not climb beats PGD. The last strong one also counts the
    # images that those before it broke.
    strong = [attack for attack in ran if attack.follows_up]
    climbers = [attack.name for attack in strong if attack.white_box][-1:]
    climbers += ["pgd"] if "pgd" in correct else []
    for attack in ran if climbers else []:
        if attack.iterative:
            continue
        if attack.follows_up:  # image by image, against all attacks before it
            against = climbers[0]
            left = np.logical_and.accumulate(correct[against], axis=0)
            gaps = (left & ~correct[attack.name]).mean(axis=1)
            finding = f"{{share}} of the images that {against} leaves."
        else:
            against = climbers[-1]
            gaps = accuracy[against] - accuracy[attack.name]
            finding = f"{{share}} more of the images than {against} does."
        finding = f"At ε = {{epsilon:g}}, {attack.name} breaks {finding}"
        yield from raised(
            f"{attack.name} beats {against}", gaps, BEATEN, finding, MISLEADING
        )

    if "pgd" in correct and strong:
        left = np.logical_and.reduce([correct[attack.name] for attack in strong])
        yield from raised(
            "pgd overstates",
            (correct["pgd"] & ~left).mean(axis=1),
            OVERSTATED,
            "At ε = {epsilon:g}, the strong attacks break {share} of the images that "
            "pgd leaves.",
            "Report the worst case over the attacks.",
        )


def _least_share(share: float, count: int) -> float:
    """The smallest difference in accuracy on `count` images that is not chance."""
    return max(share, 3 / count)


# Of each check: the flag's name, its finding, and advice.
CHECKS = {
    "zero_gradients": (
        "zero gradients",
        "The loss gradient is exactly zero for {percent} of the images: FGSM and PGD "
        "cannot move them.",
        "Use the margin loss (pgd_dlr) and Square; look for saturated outputs, "
        "rounding, or other steps without a slope.",
    ),
    "more_steps": (
        "more steps help",
        "Twice the PGD steps break {percent} more of the images.",
        "Raise pgd_steps until the accuracy no longer falls.",
    ),
    "large_epsilon": (
        "large ε leaves accuracy",
        "With every image free to become the same grey, PGD still leaves an accuracy "
        "of {percent}, above chance.",
        "The attack fails, not the images: use other losses, restarts and Square.",
    ),
    "probabilities": (
        "outputs look like probabilities",
        "All outputs of {percent} of the images are between 0 and 1.",
        "The attacks take outputs for logits: give the model without its last softmax "
        "or sigmoid.",
    ),
    "outputs_change": (
        "outputs change",
        "Two calls with the same images differ by {value:.2g} standard deviations of "
        "the outputs.",
        "Average each attack step over many calls (expectation over transformation), "
        "or evaluate without the randomness.",
    ),
    "batch_dependence": (
        "batch dependence",
        "An image's outputs differ by {value:.2g} standard deviations when the rest of "
        "its batch changes.",
        "Evaluate with statistics that are fixed after training (in a whitening layer "
        "the running ones): here the images of a batch attack each other.",
    ),
}


def _of_checks(checks: Mapping[str, Any]) -> Iterator[Flag]:
    for check, (name, finding, advice) in CHECKS.items():
        if check in checks and checks[check] > checks["limits"][check]:
            value = checks[check]
            words = finding.format(value=value, percent=_percent(value))
            yield Flag(name, value, words, advice)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def measure_checks(
    classifier: Classifier,
    data: Batch,
    report: RobustnessReport,
    attacks: Sequence[Attack],
    pgd: PgdOnCrossEntropy,
) -> dict[str, Any]:
    """Figures for the flags, and the limits above which the flags are raised.

    Args:
        classifier: Maps images to logits.
        data: Images and labels, of which only the first are used.
        report: The strengths at which to try more steps, and the clean results.
        attacks: The attacks of the evaluation. If none of them uses gradients, no
            figure about gradients is measured.
        pgd: The attack to check, with the options of the evaluation.
    """
    data = data.take(data.indices[:CHECKED])
    first = data.images[: classifier.batch_size]
    outputs = ops.convert_to_numpy(classifier(first))
    spread = max(float(outputs.std()), 1e-30)

    def difference(count: int) -> float:
        others = ops.convert_to_numpy(classifier(first[:count]))
        return float(np.abs(outputs[:count] - others).max()) / spread

    values = {
        "probabilities": float(
            ((outputs >= 0) & (outputs <= 1)).all(axis=1).mean(dtype=float)
        ),
        "outputs_change": difference(len(outputs)),
    }
    # The outputs of a random model differ between any two calls.
    if len(outputs) > 1 and values["outputs_change"] <= ROUNDING:
        values["batch_dependence"] = difference((len(outputs) + 1) // 2)

    def left(pgd: PgdOnCrossEntropy, epsilon: float, among: Any) -> NDArray[np.bool_]:
        rows = pgd.run_all(classifier, data, epsilon, np.flatnonzero(among))
        unbroken: NDArray[np.bool_] = rows[0]
        return unbroken

    pgd = replace(pgd, restarts=1)
    correct = report.clean_correct[:CHECKED]
    if any(attack.white_box for attack in attacks):
        values["zero_gradients"] = _share_of_zero_gradients(classifier, data)
        epsilon = _epsilon_to_grey(data.images, pgd)
        strong = replace(pgd, pgd_steps=40, pgd_step_size=2.5 * epsilon / 40)
        values["large_epsilon"] = float(left(strong, epsilon, correct).mean())
    if any(attack.iterative for attack in attacks):
        twice = replace(pgd, pgd_steps=2 * pgd.pgd_steps)
        by_pgd = by_twice = correct
        gains = [0.0]
        for epsilon in filter(None, report.epsilons.tolist()):
            by_pgd = left(pgd, epsilon, by_pgd)
            by_twice = left(twice, epsilon, by_pgd & by_twice)
            gains.append(float((by_pgd & ~by_twice).mean()))
        values["more_steps"] = max(gains)
    limits = {
        "probabilities": 0.99,
        "outputs_change": ROUNDING,
        "batch_dependence": ROUNDING,
        "zero_gradients": 0.0,
        "more_steps": float(np.nextafter(_least_share(CHANGED, len(data.images)), 0)),
        "large_epsilon": 1 / classifier.classes,
    }
    return {**values, "limits": limits}


def _share_of_zero_gradients(classifier: Classifier, data: Batch) -> float:
    zeros = 0
    for batch in data.batches(data.indices, classifier.batch_size):
        slopes = classifier.gradient(batch.images, batch.labels)
        zeros += (slopes == 0).reshape(len(slopes), -1).all(axis=1).sum()
    return float(zeros / len(data.images))


def _epsilon_to_grey(images: NDArray[np.float32], attack: Attack) -> float:
    """The ε that allows every image to become the same grey."""
    low, high = attack.clip or (images.min(), images.max())
    epsilon = 0.5 * float(high - low)
    return epsilon * math.sqrt(images[0].size) if attack.norm == 2 else epsilon
