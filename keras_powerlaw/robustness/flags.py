"""Reasons not to trust a robustness figure, in words.

They follow from the results of the attacks, and from checks: figures that take a few
more evaluations of the model, on the first images.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from keras import ops
from numpy.typing import NDArray

from keras_powerlaw.robustness.attacks import ATTACKS
from keras_powerlaw.robustness.attacks.attack import Attack, Batch
from keras_powerlaw.robustness.attacks.gradient import PgdOnCrossEntropy
from keras_powerlaw.robustness.classifier import Classifier, Indices

if TYPE_CHECKING:
    from keras_powerlaw.robustness.report import RobustnessReport

# Differences in accuracy below these shares, or of fewer than three images, count as
# chance.
BEATEN = 0.002  # a weaker attack beats a stronger one; the limit is AutoAttack's
CHANGED = 0.01  # all other differences
OVERSTATED = 0.02  # stronger attacks beat the paper's PGD, as they always do slightly

# Number of images that the checks use.
CHECKED = 500

# Rounding changes outputs by at most this share of their standard deviation.
ROUNDING = 1e-3

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


def find_flags(report: RobustnessReport) -> list[Flag]:
    """The flags that the results and checks of an evaluation raise."""
    settings, correct = report.settings, report.correct
    if settings.get("norm") == 2:
        # Gaussian noise is left out: its ε is the standard deviation of a pixel, not
        # the length of the whole change.
        unbounded = [attack.name for attack in ATTACKS if not attack.bounded]
        correct = {name: correct[name] for name in correct if name not in unbounded}
    # How far all PGD steps together can move a pixel.
    reach = settings.get("pgd_steps", np.inf) * settings.get("pgd_step_size", np.inf)
    epsilons, accuracy = report.epsilons, report.accuracy
    count, clean = report.clean_correct.size, report.clean_accuracy
    findings = [
        *_rises(clean, accuracy, _least_share(CHANGED, count)),
        *_gaps(correct, accuracy, _least_share(BEATEN, count)),
        *_overstated(correct, _least_share(OVERSTATED, count)),
    ]
    flags = []
    for name, gaps, least, finding, advice in findings:
        at = int(gaps.argmax())
        if gaps[at] >= least:
            words = finding.format(epsilon=epsilons[at], share=_percent(gaps[at]))
            if name.endswith("beats pgd") and reach < 0.999 * epsilons[at]:
                advice = SHORT_OF_REACH.format(reach=reach)
            flags.append(Flag(name, float(gaps[at]), words, advice))
    return [*flags, *_measured(report.checks)]


def _least_share(share: float, count: int) -> float:
    """The smallest difference in accuracy on `count` images that is not chance."""
    return max(share, 3 / count)


# The name of a flag, its figure at each ε, the least figure that raises it, the
# finding with places for ε and the figure, and advice.
Finding = tuple[str, NDArray[np.float64], float, str, str]


def _rises(
    clean: float, accuracy: Mapping[str, NDArray[np.float64]], least: float
) -> Iterator[Finding]:
    for name, values in accuracy.items():
        curve = np.concatenate([[clean], values])
        rises = values - np.minimum.accumulate(curve)[:-1]
        yield (
            "accuracy rises",
            rises,
            least,
            f"Under {name}, accuracy at ε = {{epsilon:g}} is {{share}} above that at a "
            "smaller ε.",
            "A stronger attack cannot do worse: this one fails at large ε. Report the "
            "worst case over stronger attacks.",
        )


def _gaps(
    correct: Mapping[str, NDArray[np.bool_]],
    accuracy: Mapping[str, NDArray[np.float64]],
    least: float,
) -> Iterator[Finding]:
    """Where an attack that does not climb beats PGD."""
    ran = [attack for attack in ATTACKS if attack.name in correct]
    # The last one also counts the images that those before it broke.
    strong = [attack.name for attack in ran if attack.follows_up and attack.white_box]
    climbers = [*strong[-1:], *(["pgd"] if "pgd" in correct else [])]
    for attack in ran if climbers else []:
        name = attack.name
        if attack.iterative:
            continue
        if attack.follows_up:  # image by image, against all attacks before it
            against = climbers[0]
            left = np.logical_and.accumulate(correct[against], axis=0)
            gaps = (left & ~correct[name]).mean(axis=1)
            finding = f"{name} breaks {{share}} of the images that {against} leaves."
        else:
            against = climbers[-1]
            gaps = accuracy[against] - accuracy[name]
            finding = f"{name} breaks {{share}} more of the images than {against} does."
        finding = "At ε = {epsilon:g}, " + finding
        yield f"{name} beats {against}", gaps, least, finding, MISLEADING


def _overstated(
    correct: Mapping[str, NDArray[np.bool_]], least: float
) -> Iterator[Finding]:
    strong = [attack.name for attack in ATTACKS if attack.follows_up]
    rows = [correct[name] for name in strong if name in correct]
    if "pgd" in correct and rows:
        gaps = (correct["pgd"] & ~np.logical_and.reduce(rows)).mean(axis=1)
        yield (
            "pgd overstates",
            gaps,
            least,
            "At ε = {epsilon:g}, the strong attacks break {share} of the images that "
            "pgd leaves.",
            "Report the worst case over the attacks.",
        )


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


def _measured(checks: Mapping[str, Any]) -> Iterator[Flag]:
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
    epsilons: Sequence[float],
    attacks: Sequence[Attack],
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """Figures for the flags, and the limits above which the flags are raised.

    Args:
        classifier: Maps images to logits.
        data: Images and labels, of which only the first are used.
        epsilons: Strengths at which to try more steps.
        attacks: The attacks of the evaluation. If none of them uses gradients, no
            figure about gradients is measured.
        options: The options of `evaluate_robustness` that affect the attacks.
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
    pgd = _CheckedPgd(classifier, data, PgdOnCrossEntropy.with_options(options))
    if any(attack.white_box for attack in attacks):
        values["zero_gradients"] = pgd.share_of_zero_gradients()
        values["large_epsilon"] = pgd.accuracy_at_large_epsilon()
    if any(attack.iterative for attack in attacks):
        values["more_steps"] = pgd.gain_of_steps(epsilons)
    limits = {
        "probabilities": 0.99,
        "outputs_change": ROUNDING,
        "batch_dependence": ROUNDING,
        "zero_gradients": 0.0,
        "more_steps": float(np.nextafter(_least_share(CHANGED, len(data.images)), 0)),
        "large_epsilon": 1 / classifier.classes,
    }
    return {**values, "limits": limits}


@dataclass
class _CheckedPgd:
    """PGD on the first images, to see whether it does what it should."""

    classifier: Classifier
    data: Batch
    pgd: PgdOnCrossEntropy

    def share_of_zero_gradients(self) -> float:
        zeros = 0
        for batch in self._batches(self.data.indices):
            slopes = self.classifier.gradient(batch.images, batch.labels)
            zeros += (slopes == 0).reshape(len(slopes), -1).all(axis=1).sum()
        return float(zeros / len(self.data.images))

    def accuracy_at_large_epsilon(self) -> float:
        """Accuracy at an ε that allows every image to become the same gray."""
        images = self.data.images
        low, high = self.pgd.clip or (images.min(), images.max())
        epsilon = 0.5 * float(high - low)
        if self.pgd.norm == 2:
            epsilon *= np.sqrt(images[0].size)
        pgd = dataclasses.replace(
            self.pgd, pgd_steps=40, pgd_step_size=2.5 * epsilon / 40
        )
        unbroken = self._unbroken(pgd, epsilon, self._correctly_classified())
        return unbroken.size / len(images)

    def gain_of_steps(self, epsilons: Sequence[float]) -> float:
        """Largest share over ε of the images broken only with twice the steps."""
        twice = dataclasses.replace(self.pgd, pgd_steps=2 * self.pgd.pgd_steps)
        unbroken = unbroken_by_twice = self._correctly_classified()
        gain = 0
        for epsilon in filter(None, epsilons):
            unbroken = self._unbroken(self.pgd, epsilon, unbroken)
            unbroken_by_twice = self._unbroken(
                twice, epsilon, np.intersect1d(unbroken_by_twice, unbroken)
            )
            gain = max(gain, unbroken.size - unbroken_by_twice.size)
        return gain / len(self.data.images)

    def _correctly_classified(self) -> Indices:
        return self._unbroken(Attack(), 0.0, self.data.indices)

    def _unbroken(self, attack: Attack, epsilon: float, indices: Indices) -> Indices:
        unbroken = [
            batch.indices[attack.run(self.classifier, batch, epsilon)]
            for batch in self._batches(indices)
        ]
        return np.concatenate([indices[:0], *unbroken])

    def _batches(self, indices: Indices) -> Iterator[Batch]:
        return map(self.data.take, self.classifier.batches(indices))
