"""The paper's figures: spectra, robustness curves and sensitivity maps.

Matplotlib is imported when a function is called.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from keras_powerlaw.arguments import (
    installation_command,
    invalid_value,
    is_integer,
    validate_optional_integer,
)
from keras_powerlaw.robustness.attacks import BY_NAME
from keras_powerlaw.robustness.report import RobustnessReport
from keras_powerlaw.sensitivity import SensitivityMaps
from keras_powerlaw.spectrum import PowerLawFits
from keras_powerlaw.targets import PowerLaw, Target, as_target

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

# Of the curves, in order: they differ in black and white, too.
MARKERS = "os^DvPX"


def plot_spectrum(
    spectra: PowerLawFits | Mapping[str, PowerLawFits | Sequence[PowerLawFits]],
    ax: Axes | None = None,
    *,
    tau: int | None = 10,
    alpha: float | Target = 1.0,
) -> Axes:
    """Plots eigenvalue spectra against the target power law.

    On logarithmic axes, each curve shows λₙ/λ_τ, the variance along the n-th principal
    component relative to that along the τ-th, so that networks of different scales can
    be compared. The dashed line is the target, (n/τ)^(−α). The colours are those
    of `ax`, by default of Matplotlib's `rcParams["axes.prop_cycle"]`.

    The components that the regularizer leaves free, n < τ, are shaded. A star
    marks the number of components that carry 90 % of the variance, and the legend
    gives the fitted exponent. Eigenvalues at or below `Spectrum.floor`, rounding
    errors, are left out, and negative ones of a `CrossValidatedSpectrum`.

    Args:
        spectra: One `Spectrum` or `CrossValidatedSpectrum`, or a dictionary from label
            to one, as `measure_spectrum` returns of several layers. Several spectra
            under one label (seeds, as a list) are drawn as their geometric mean, with a
            band of ±1 standard deviation of the logarithm.
        ax: The Matplotlib axes to draw on. Defaults to those of a new figure.
        tau: Index τ of the first regularized eigenvalue, at least 1, or None to
            shade nothing and divide by the first eigenvalue. Defaults to 10.
        alpha: Exponent α of the dashed line, or another target that it follows: a
            `PowerLaw`, a `BrokenPowerLaw` or a `Spectrum`. Defaults to 1.0.

    Returns:
        The axes.

    Raises:
        ValueError: If `tau` is not an integer of at least 1, if a spectrum has fewer
            than `tau` eigenvalues above its floor, or if the spectra under one label
            differ in length.
        ImportError: If Matplotlib is missing.

    Example:

    ```python
    import keras_powerlaw as kp
    import numpy as np

    n = np.arange(1, 101)
    spectra = {"SpecReg": kp.Spectrum(1 / n), "plain": kp.Spectrum(1 / n**2)}
    ax = kp.plot_spectrum(spectra, tau=10)
    ax.figure.savefig("spectrum.png")
    ```

    Reference:
        [Nassar et al., 2020](https://arxiv.org/abs/2012.04729), figure 2A; the
        dashed line is the target of equation (2).
    """
    first = validate_optional_integer("tau", tau, minimum=1) or 1
    target = as_target(alpha, "alpha")
    by_label = spectra if isinstance(spectra, Mapping) else {"": spectra}
    if not by_label:
        raise invalid_value("spectra", "at least one spectrum", spectra)
    expected = "a Spectrum, or several by label"
    runs_by_label = _lists("spectra", by_label, PowerLawFits, expected)
    curves = {
        label: _log_curves(label, runs, first) for label, runs in runs_by_label.items()
    }

    [ax] = _axes("ax", ax)
    if tau is not None:
        ax.axvspan(1, tau, color="0.92", zorder=0)

    for label, runs in runs_by_label.items():
        n = np.arange(1, curves[label].shape[1] + 1)
        entry = _legend_entry(label, runs)
        line = _plot_mean(ax, n, curves[label], np.exp, label=entry)
        star = np.mean([run.dimension_90 for run in runs])
        if np.isnan(star):  # the leading eigenvalues hold less
            continue
        star = round(star)
        ax.plot(
            star,
            np.exp(curves[label][:, star - 1].mean()),
            marker="*",
            markersize=11,
            markeredgecolor="white",
            color=line.get_color(),
            linestyle="none",
            zorder=3,
        )

    last = max(curve.shape[1] for curve in curves.values())
    if isinstance(target, PowerLawFits):  # as far as it was measured
        last = min(last, target.rank)
    n, name = np.arange(first, last + 1), "target"
    if isinstance(target, PowerLaw):  # a straight line, of which the ends are enough
        n, name = n[[0, -1]], f"$n^{{{0 - target.alpha:g}}}$"
    levels = target.levels(n) / target.levels(n[:1])
    ax.plot(n, levels, "k--", linewidth=1, label=name)

    ax.set(xscale="log", yscale="log", xlim=(1, None))
    ax.set_xlabel("principal component n")
    ax.set_ylabel(f"variance / $\\lambda_{{{first}}}$")
    ax.legend(fontsize="small")
    return ax


def _log_curves(
    label: str, runs: Sequence[PowerLawFits], first: int
) -> NDArray[np.float64]:
    """Returns log(λₙ / λ_first), shape `(runs, N)`, NaN beyond the rank."""
    lengths = {len(run.eigenvalues) for run in runs}
    if len(lengths) != 1:
        raise invalid_value(
            "spectra",
            "spectra of the same length, at least one, for each label",
            f"lengths {sorted(lengths)} for label {label!r}",
        )
    for run in runs:
        if run.rank < first or run.eigenvalues[first - 1] <= 0:
            raise invalid_value(
                "spectra",
                f"at least {first} eigenvalues above rounding errors, for a curve "
                f"relative to the one at n = {first}",
                f"{run.rank} for label {label!r}",
            )
    n = np.arange(1, lengths.pop() + 1)
    logarithms = np.log(
        [
            np.where((n <= run.rank) & (run.eigenvalues > 0), run.eigenvalues, np.nan)
            for run in runs
        ]
    )
    curves: NDArray[np.float64] = logarithms - logarithms[:, first - 1 : first]
    return curves


def _legend_entry(label: str, runs: Sequence[PowerLawFits]) -> str:
    exponents = [run.exponent for run in runs]
    if not np.all(np.isfinite(exponents)):  # too few eigenvalues for a fit
        return label
    text = f"α = {np.mean(exponents):.2f}"
    if len(runs) > 1:
        text += f" ± {np.std(exponents, ddof=1):.2f}"
    return f"{label} ({text})" if label else text


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
    runs_by_label = _lists("reports", reports, RobustnessReport, "reports by label")
    curves = {
        label: _accuracy_curves(label, runs, attack)
        for label, runs in runs_by_label.items()
    }

    [ax] = _axes("ax", ax)
    for (label, curve), marker in zip(
        curves.items(), itertools.cycle(MARKERS), strict=False
    ):
        _plot_mean(ax, *curve, marker=marker, markersize=4, label=label)

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


def plot_sensitivity(
    sensitivity: SensitivityMaps,
    axes: Sequence[Axes] | None = None,
    *,
    image: int | None = None,
) -> NDArray[Any]:
    """Plots sensitivity maps as images, one panel per eigenvalue.

    Brightening a red pixel raises the eigenvalue λₙ, brightening a blue one lowers it.
    Each panel has its own scale, symmetric about zero: eigenvalues differ by orders of
    magnitude, and networks are distinguished by the patterns.

    Args:
        sensitivity: The result of `sensitivity_maps` for images of shape
            `(height, width)` or `(height, width, channels)`; channels are summed.
        axes: A row of Matplotlib axes, one per component. Defaults to those of a new
            figure.
        image: Index of the image whose maps are drawn, from 0. Defaults to None: the
            sum of the maps over all images is drawn.

    Returns:
        The axes, an array of shape `(components,)`.

    Raises:
        ValueError: If the maps are not of images, if `image` is not among those kept,
            or if the number of axes differs from the number of components.
        ImportError: If Matplotlib is missing.

    Example:

    ```python
    import keras_powerlaw as kp
    import numpy as np

    maps = np.random.default_rng(0).normal(size=(3, 5, 8, 8))
    sensitivity = kp.SensitivityMaps(
        components=(1, 2, 10),
        eigenvalues=np.array([3.0, 2.0, 0.1]),
        maps=maps,
        total=maps.sum(axis=1),
    )
    axes = kp.plot_sensitivity(sensitivity, image=0)
    axes[0].figure.savefig("sensitivity.png")
    ```

    Reference:
        [Nassar et al., 2020](https://arxiv.org/abs/2012.04729), figures 2D and 3; the
        maps are equation (9).
    """
    _validate_kind("sensitivity", [sensitivity], SensitivityMaps, "SensitivityMaps")
    count, kept = len(sensitivity.components), sensitivity.maps.shape[1]
    if sensitivity.total.ndim not in (3, 4):
        raise invalid_value(
            "sensitivity",
            "maps of images, (height, width) or (height, width, channels)",
            f"maps of shape {sensitivity.total.shape[1:]}",
        )
    images: NDArray[Any]
    if image is None:
        images = sensitivity.total
    elif is_integer(image) and 0 <= image < kept:
        images = sensitivity.maps[:, image]
    else:
        raise invalid_value(
            "image", f"None or an integer from 0 to {kept - 1}", repr(image)
        )
    if images.ndim == 4:
        images = images.sum(axis=-1)
    panels = _axes("axes", axes, count)
    for n, panel, ax in zip(sensitivity.components, images, panels, strict=True):
        largest = np.abs(panel).max() or 1.0
        ax.imshow(panel, cmap="RdBu_r", vmin=-largest, vmax=largest)
        ax.set(title=f"$\\partial\\lambda_{{{n}}}/\\partial x$", xticks=[], yticks=[])
    return panels


def _lists(
    argument: str, by_label: Mapping[str, Any], kind: type, expected: str
) -> dict[str, list[Any]]:
    """A list of runs for each label, for which a single one may stand."""
    lists = {
        label: list(value) if isinstance(value, list | tuple) else [value]
        for label, value in by_label.items()
    }
    _validate_kind(argument, itertools.chain(*lists.values()), kind, expected)
    return lists


def _validate_kind(
    argument: str, values: Iterable[Any], kind: type, expected: str
) -> None:
    for value in values:
        if not isinstance(value, kind):
            raise invalid_value(argument, expected, f"{value} (of type {type(value)})")


def _axes(argument: str, given: Any, count: int = 1) -> NDArray[Any]:
    """The axes that are given, or a row of them in a figure of their own."""
    try:
        import matplotlib.pyplot as plt
        from matplotlib.axes import Axes
    except ImportError as error:
        raise ImportError(
            "Plotting needs Matplotlib. "
            f"Install it with: {installation_command('plots')}"
        ) from error
    if given is None:
        size = (6.4, 4.8) if count == 1 else (2.4 * count, 2.8)
        figure = plt.figure(figsize=size, layout="constrained")
        given = figure.subplots(1, count, squeeze=False)
    axes: NDArray[Any] = np.ravel(np.asarray(given, dtype=object))
    if len(axes) != count:
        raise invalid_value(argument, f"{count} axes, one for each map", len(axes))
    _validate_kind(argument, axes, Axes, "Matplotlib's `Axes`")
    return axes


def _plot_mean(
    ax: Axes,
    x: NDArray[Any],
    runs: NDArray[np.float64],
    transform: Callable[[NDArray[np.float64]], NDArray[np.float64]] = np.asarray,
    **line: Any,
) -> Line2D:
    """Plots the mean of several runs, with a band of ±1 sample standard deviation.

    Args:
        ax: The axes.
        x: Array of shape `(points,)`.
        runs: Array of shape `(runs, points)`.
        transform: Applied to the mean and the band before they are drawn.
        **line: Line properties of the mean.
    """
    mean = runs.mean(axis=0)
    (curve,) = ax.plot(x, transform(mean), **line)
    if len(runs) > 1:
        std = runs.std(axis=0, ddof=1)
        band = transform(mean - std), transform(mean + std)
        color = curve.get_color()
        ax.fill_between(x, *band, color=color, alpha=0.25, linewidth=0)
    return curve
