"""The report of a robustness evaluation, and several of them in one table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keras_powerlaw.arguments import invalid_value
from keras_powerlaw.robustness.attacks import BY_NAME
from keras_powerlaw.robustness.flags import Flag, find_flags


@dataclass(frozen=True, eq=False)
class RobustnessReport:
    """Which images a model classifies correctly under each attack and strength.

    `str(report)` is a table of the accuracies, followed by the flags. Two reports are
    equal if they hold the same results and settings.

    Attributes:
        epsilons: The E attack strengths, in units of pixel values. Shape `(E,)`,
            float64.
        clean_correct: Whether each unperturbed image is classified correctly.
            Shape `(M,)`, bool.
        correct: The same for each attack, strength and image: attack name to
            array of shape `(E, M)`, bool. With several draws of noise, whether the
            image is classified correctly in every one. For a strong attack, whether
            neither it nor the strong ones before it broke the image, at this strength
            or a smaller one.
        settings: The options of `evaluate_robustness` that affect the results, by
            argument name.
        draw_accuracy: With several draws of noise, D of them, the accuracy in each:
            attack name to array of shape `(D, E)`, float64.
        checks: The figures measured for the flags.

    Example:

    ```python
    import keras_powerlaw as kp
    import numpy as np

    report = kp.RobustnessReport(
        epsilons=np.array([0.1, 0.2]),
        clean_correct=np.array([True, True]),
        correct={"fgsm": np.array([[True, False], [False, False]])},
    )
    report.accuracy["fgsm"]  # array([0.5, 0. ])
    restored = kp.RobustnessReport.from_json(report.to_json())
    ```
    """

    epsilons: NDArray[np.float64]
    clean_correct: NDArray[np.bool_]
    correct: dict[str, NDArray[np.bool_]]
    settings: dict[str, Any] = field(default_factory=dict)
    draw_accuracy: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    checks: dict[str, Any] = field(default_factory=dict)

    @property
    def clean_accuracy(self) -> float:
        """Fraction of the unperturbed images classified correctly."""
        return float(self.clean_correct.mean())

    @property
    def accuracy(self) -> dict[str, NDArray[np.float64]]:
        """Fraction classified correctly: attack name to array of shape `(E,)`.

        With several draws of noise, the mean over the draws.
        """
        return {
            name: self.draw_accuracy[name].mean(axis=0)
            if name in self.draw_accuracy
            else rows.mean(axis=1)
            for name, rows in self.correct.items()
        }

    @property
    def worst_case(self) -> NDArray[np.bool_]:
        """Whether each image withstands every attack up to each strength: `(E, M)`.

        An image broken at a smaller strength is broken at every larger one, whose ball
        contains the smaller ball. Gaussian noise is left out, since no ball contains
        it.
        """
        rows = [self.clean_correct[np.newaxis] & np.ones((len(self.epsilons), 1), bool)]
        rows += [
            correct
            for name, correct in self.correct.items()
            if name not in BY_NAME or BY_NAME[name].bounded
        ]
        return np.logical_and.accumulate(np.logical_and.reduce(rows), axis=0)

    @property
    def worst_case_accuracy(self) -> NDArray[np.float64]:
        """Fraction of the images that withstand every attack, shape `(E,)`."""
        accuracy: NDArray[np.float64] = self.worst_case.mean(axis=1)
        return accuracy

    @property
    def flags(self) -> list[Flag]:
        """Reasons not to trust the figures, as a list of `Flag` objects."""
        return find_flags(self)

    def to_json(self) -> str:
        """Returns the report as JSON text, with one character per image and result."""
        return json.dumps(to_state(self))

    @classmethod
    def from_json(cls, text: str) -> RobustnessReport:
        """Restores a report from the text that `to_json` returned.

        Args:
            text: The JSON text.

        Returns:
            A report equal to the one that was written.

        Raises:
            ValueError: If `text` is not the JSON text of a report.
        """
        try:
            report = report_of(json.loads(text))
            if any(
                len(rows) < len(report.epsilons) for rows in report.correct.values()
            ):
                raise ValueError("The report is not finished.")
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise invalid_value(
                "text", "the text returned by `RobustnessReport.to_json`", text
            ) from error
        return report

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RobustnessReport):
            return NotImplemented
        first, second = (
            replace(report, checks={}).to_json() for report in (self, other)
        )
        return first == second

    def __str__(self) -> str:
        columns = {
            name: [f"{100 * value:.1f}" for value in [self.clean_accuracy, *values]]
            for name, values in _table_columns(self).items()
        }
        lines = [
            f"Accuracy in % on {self.clean_correct.size} images",
            *_text_table(self.epsilons, columns),
        ]
        if self.checks or self.flags:
            lines += ["", "Flags:" if self.flags else "No flags."]
            lines += [f"- {flag}" for flag in self.flags]
        return "\n".join(lines)


def _table_columns(report: RobustnessReport) -> dict[str, NDArray[np.float64]]:
    """The accuracies in the table of a report, by column title."""
    curves = report.accuracy
    if any(name in BY_NAME and BY_NAME[name].follows_up for name in curves):
        curves["worst case"] = report.worst_case_accuracy
    return curves


def to_state(report: RobustnessReport) -> dict[str, Any]:
    """A report, finished or not, as the JSON object that `to_json` writes."""
    state = {
        "epsilons": report.epsilons.tolist(),
        "clean_correct": _to_bits(report.clean_correct),
        "correct": {
            name: [_to_bits(row) for row in rows]
            for name, rows in report.correct.items()
        },
        "settings": report.settings,
    }
    if report.draw_accuracy:
        state["draw_accuracy"] = {
            name: rows.tolist() for name, rows in report.draw_accuracy.items()
        }
    if report.checks:
        state["checks"] = report.checks
    return state


def report_of(state: Mapping[str, Any]) -> RobustnessReport:
    """The report, finished or not, of what `to_state()` returned."""
    clean = _from_bits(state["clean_correct"])
    return RobustnessReport(
        epsilons=np.array(state["epsilons"], dtype=np.float64),
        clean_correct=clean,
        correct={
            name: np.array(list(map(_from_bits, rows)), bool).reshape(-1, clean.size)
            for name, rows in state["correct"].items()
        },
        settings=state["settings"],
        draw_accuracy={
            name: np.array(rows)
            for name, rows in state.get("draw_accuracy", {}).items()
        },
        checks=state.get("checks", {}),
    )


def _to_bits(row: NDArray[np.bool_]) -> str:
    return "".join("01"[int(value)] for value in row)


def _from_bits(bits: str) -> NDArray[np.bool_]:
    return np.array([{"0": False, "1": True}[bit] for bit in bits], dtype=bool)


@dataclass(frozen=True, eq=False)
class RobustnessSummary:
    """Mean and standard deviation of the accuracies in several reports.

    `str(summary)` is a table as plain text, `summary.to_markdown()` one in Markdown.

    Attributes:
        epsilons: The E attack strengths. Shape `(E,)`, float64.
        count: Number of reports.
        clean: Mean and sample standard deviation of the clean accuracy.
        mean: Mean accuracy: attack name to array of shape `(E,)`. If strong attacks
            were run, `"worst case"` is the worst case over the attacks.
        std: Sample standard deviation (divisor: count − 1), by the same names.
    """

    epsilons: NDArray[np.float64]
    count: int
    clean: tuple[float, float]
    mean: dict[str, NDArray[np.float64]]
    std: dict[str, NDArray[np.float64]]

    def __str__(self) -> str:
        title = f"Accuracy in %, mean ± standard deviation of {self.count} reports"
        return "\n".join([title, *_text_table(self.epsilons, self._columns())])

    def to_markdown(self) -> str:
        """Returns the table in Markdown, with one row per epsilon."""
        return _markdown_table(self.epsilons, self._columns())

    def _columns(self) -> dict[str, list[str]]:
        clean_mean, clean_std = self.clean
        return {
            name: [
                f"{100 * mean:.1f} ± {100 * std:.1f}"
                for mean, std in zip(
                    [clean_mean, *self.mean[name]],
                    [clean_std, *self.std[name]],
                    strict=True,
                )
            ]
            for name in self.mean
        }


def combine_reports(reports: Sequence[RobustnessReport]) -> RobustnessSummary:
    """Combines the reports of several seeds into mean ± standard deviation.

    For a figure, pass the reports themselves to `plot_robustness`.

    Args:
        reports: At least two reports with the same epsilons, attacks and settings,
            except for the seed.

    Returns:
        A `RobustnessSummary`.

    Raises:
        ValueError: If there are fewer than two reports, or they differ.

    Example:

    ```python
    import keras_powerlaw as kp
    import numpy as np

    reports = [
        kp.RobustnessReport(
            epsilons=np.array([0.1, 0.2]),
            clean_correct=np.array([True, True]),
            correct={"fgsm": np.array([[True, seed == 1], [False, False]])},
        )
        for seed in (0, 1)
    ]
    summary = kp.combine_reports(reports)
    summary.mean["fgsm"], summary.std["fgsm"]  # [0.75, 0.], [0.354, 0.]
    print(summary.to_markdown())
    ```

    Reference:
        [Nassar et al., 2020](https://arxiv.org/abs/2012.04729), figures 2 to 5: three
        seeds each.
    """
    kinds = [type(report).__name__ for report in reports]
    if set(kinds) - {"RobustnessReport"}:
        raise invalid_value("reports", "a list of reports", kinds)
    if len(reports) < 2:
        raise invalid_value("reports", "at least two reports", f"{len(reports)}")
    first, *others = map(_conditions, reports)
    for other in others:
        for what, ours in first.items():
            if other[what] != ours:
                expected = f"reports with the same {what}"
                raise invalid_value("reports", expected, f"{ours} and {other[what]}")
    curves = [_table_columns(report) for report in reports]
    stacked = {name: np.stack([curve[name] for curve in curves]) for name in curves[0]}
    clean = [report.clean_accuracy for report in reports]
    return RobustnessSummary(
        epsilons=reports[0].epsilons,
        count=len(reports),
        clean=(float(np.mean(clean)), float(np.std(clean, ddof=1))),
        mean={name: rows.mean(axis=0) for name, rows in stacked.items()},
        std={name: rows.std(axis=0, ddof=1) for name, rows in stacked.items()},
    )


def _conditions(report: RobustnessReport) -> dict[str, Any]:
    """What has to be the same in reports that are combined."""
    return {
        "epsilons": report.epsilons.tolist(),
        "attacks": list(report.correct),
        "settings other than the seed": {**report.settings, "seed": None},
    }


def _text_table(
    epsilons: NDArray[np.float64], columns: Mapping[str, list[str]]
) -> list[str]:
    """Lines of a table: header, row of the clean images, one row per epsilon."""
    labels = ["   epsilon", "     clean", *(f"{epsilon:>10g}" for epsilon in epsilons)]
    for name, cells in columns.items():
        width = max(8, *(len(cell) + 3 for cell in (name, *cells)))
        labels = [
            label + f"{cell:>{width}}"
            for label, cell in zip(labels, (name, *cells), strict=True)
        ]
    return labels


def _markdown_table(
    epsilons: NDArray[np.float64], columns: Mapping[str, Sequence[str]]
) -> str:
    """The same table in Markdown."""
    labels = ["clean", *(f"{epsilon:g}" for epsilon in epsilons)]
    rows = zip(labels, *columns.values(), strict=True)
    table = [["ε", *columns], ["---"] * (len(columns) + 1), *rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in table)
