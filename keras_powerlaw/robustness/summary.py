"""Several reports in one table: mean and standard deviation over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from keras_powerlaw.arguments import invalid_value
from keras_powerlaw.robustness.report import RobustnessReport, table_columns
from keras_powerlaw.robustness.tables import markdown_table, text_table


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
        return "\n".join([title, *text_table(self.epsilons, self._columns())])

    def to_markdown(self) -> str:
        """Returns the table in Markdown, with one row per epsilon."""
        return markdown_table(self.epsilons, self._columns())

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
    if not isinstance(reports, list | tuple) or not all(
        isinstance(report, RobustnessReport) for report in reports
    ):
        raise invalid_value("reports", "a list of reports", repr(reports))
    if len(reports) < 2:
        raise invalid_value("reports", "at least two reports", f"{len(reports)}")
    first = reports[0]
    for report in reports[1:]:
        for what, ours, theirs in (
            ("epsilons", first.epsilons.tolist(), report.epsilons.tolist()),
            ("attacks", list(first.correct), list(report.correct)),
            (
                "settings other than the seed",
                {**first.settings, "seed": None},
                {**report.settings, "seed": None},
            ),
        ):
            if ours != theirs:
                raise invalid_value(
                    "reports", f"reports with the same {what}", f"{ours} and {theirs}"
                )
    curves = [table_columns(report) for report in reports]
    stacked = {name: np.stack([curve[name] for curve in curves]) for name in curves[0]}
    clean = [report.clean_accuracy for report in reports]
    return RobustnessSummary(
        epsilons=first.epsilons,
        count=len(reports),
        clean=(float(np.mean(clean)), float(np.std(clean, ddof=1))),
        mean={name: rows.mean(axis=0) for name, rows in stacked.items()},
        std={name: rows.std(axis=0, ddof=1) for name, rows in stacked.items()},
    )
