"""Figures 2B and 2C: accuracy against attack strength."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from keras_powerlaw.arguments import invalid_value
from keras_powerlaw.plotting.axes import (
    as_list,
    new_axes,
    plot_mean,
    validate_axes,
    validate_kind,
)
from keras_powerlaw.robustness.attacks import BY_NAME
from keras_powerlaw.robustness.report import RobustnessReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Of the curves, in order: they differ in black and white, too.
MARKERS = "os^DvPX"


def plot_robustness(
    reports: Mapping[str, RobustnessReport | Sequence[RobustnessReport]],
    attack: str,
    ax: Axes | None = None,
) -> Axes:
    """Plots accuracy against attack strength, one curve per label.

    Every curve starts with the clean accuracy at ε = 0. For several reports under one
    label (seeds), it shows their mean, with a band of ±1 sample standard deviation
    (divisor: number of reports − 1). Each has its own marker; the colours
    are those of `ax`, by default of Matplotlib's `rcParams["axes.prop_cycle"]`.

    Args:
        reports: Dictionary from label to `RobustnessReport`, or to a list of them.
        attack: An attack in every report, such as `"fgsm"`, or `"worst_case"`.
        ax: The Matplotlib axes to draw on. Defaults to those of a new figure.

    Returns:
        The axes; accuracy is in percent.

    Raises:
        ValueError: If there is no report, if a report lacks `attack`, or if the
            reports under one label differ in `epsilons`.
        ImportError: If Matplotlib is missing.

    Example:

    ```python
    import keras_powerlaw as kp
    import numpy as np

    report = kp.RobustnessReport(
        epsilons=np.array([0.1, 0.2]),
        clean_correct=np.array([True, True]),
        correct={"fgsm": np.array([[True, False], [False, False]])},
    )
    ax = kp.plot_robustness({"plain": report}, "fgsm")
    ax.figure.savefig("fgsm.png")
    ```

    Reference:
        [Nassar et al., 2020](https://arxiv.org/abs/2012.04729), figures 2B and 2C;
        the attacks are equations (6) to (8).
    """
    if not isinstance(reports, Mapping) or not reports:
        raise invalid_value("reports", "at least one report, by label", reports)
    runs_by_label = {label: as_list(value) for label, value in reports.items()}
    for runs in runs_by_label.values():
        validate_kind("reports", runs, RobustnessReport, "reports by label")
    curves = {
        label: _accuracy_curves(label, runs, attack)
        for label, runs in runs_by_label.items()
    }

    if ax is None:
        [ax] = new_axes()
    validate_axes("ax", [ax])
    for (label, curve), marker in zip(
        curves.items(), itertools.cycle(MARKERS), strict=False
    ):
        plot_mean(ax, *curve, marker=marker, markersize=4, label=label)

    ax.set(ylim=(0, 100), title=_title(attack))
    bounded = attack not in BY_NAME or BY_NAME[attack].bounded
    every = [run for runs in runs_by_label.values() for run in runs]
    ax.set_xlabel(_ball(every) if bounded else "noise standard deviation ε")
    ax.set_ylabel("accuracy (%)")
    ax.legend(fontsize="small")
    return ax


def _ball(runs: Sequence[RobustnessReport]) -> str:
    if any(run.settings.get("norm") == 2 for run in runs):
        return "ε (Euclidean norm)"
    ranges = {tuple(run.settings.get("clip", (0, 1)) or ()) for run in runs}
    if len(ranges) > 1 or not all(ranges):
        return "ε (max-norm)"
    [(low, high)] = ranges
    return f"ε (max-norm, pixel range {low:g}–{high:g})"


def _title(attack: str) -> str:
    if attack == "worst_case":
        return "worst case"
    return BY_NAME[attack].title if attack in BY_NAME else attack


def _accuracy_curves(
    label: str, runs: Sequence[RobustnessReport], attack: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns ε from 0, shape `(E,)`, and the accuracies in percent, `(runs, E)`."""
    if not runs:
        raise invalid_value(
            "reports", "at least one report for each label", {label: []}
        )
    for run in runs:
        if attack != "worst_case" and attack not in run.correct:
            raise invalid_value(
                "attack",
                f"an attack in the reports of {label!r}: {tuple(run.correct)}",
                repr(attack),
            )
        if not np.array_equal(run.epsilons, runs[0].epsilons):
            raise invalid_value(
                "reports",
                "reports of one label to have the same epsilons",
                f"{runs[0].epsilons} and {run.epsilons} for label {label!r}",
            )
    epsilons = runs[0].epsilons
    accuracies = np.stack(
        [
            run.worst_case_accuracy if attack == "worst_case" else run.accuracy[attack]
            for run in runs
        ]
    )
    if epsilons[0] != 0.0:
        clean = [[run.clean_accuracy] for run in runs]
        epsilons = np.concatenate([[0.0], epsilons])
        accuracies = np.concatenate([clean, accuracies], axis=1)
    return epsilons, 100.0 * accuracies
