"""The paper's figures: spectra, robustness curves and sensitivity maps.

Matplotlib is imported when a function is called.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from keras_powerlaw.support.arguments import invalid_value

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from keras_powerlaw.robustness.evaluation import RobustnessReport
    from keras_powerlaw.spectral.sensitivity import SensitivityMaps
    from keras_powerlaw.spectral.spectra import Spectrum

_TITLES = {
    "fgsm": "FGSM",
    "pgd": "PGD",
    "noise": "white noise",
    "uniform_noise": "uniform noise",
    "pgd_ce": "PGD, cross-entropy",
    "pgd_dlr": "PGD, margin loss",
    "autopgd": "AutoPGD",
    "square": "Square",
    "worst_case": "worst case",
}
_EPSILON_LABELS = {"noise": "noise standard deviation ε"}
_BAND_OPACITY = 0.25


def plot_spectrum(
    spectra: Spectrum | Mapping[str, Spectrum | Sequence[Spectrum]],
    ax: Axes | None = None,
    *,
    tau: int | None = 10,
    alpha: float = 1.0,
) -> Axes:
    """Plots eigenvalue spectra against the power law that was asked for.

    On logarithmic axes, each curve shows the variance along the n-th principal
    component relative to the variance along the τ-th, so that networks of
    different scale can be compared:

    ```
    λₙ / λ_τ   against the dashed line   (n / τ)^(−α)
    ```

    The components that the regularizer leaves free, n < τ, are shaded. A star
    marks the number of components that carry 90 % of the variance, and the legend
    gives the fitted exponent. Eigenvalues that are numerically zero are left out.

    Args:
        spectra: One `Spectrum`, or a dictionary from label to `Spectrum`. Several
            spectra of one label (seeds, as a list) are drawn as their geometric
            mean with a band of ±1 standard deviation of the logarithm.
        ax: The Matplotlib axes to draw on. Defaults to the current axes.
        tau: Index τ of the first regularized eigenvalue, at least 1, or None to
            shade nothing and to divide by the first eigenvalue. Defaults to 10.
        alpha: Exponent α of the dashed line. Defaults to 1.0.

    Returns:
        The axes.

    Raises:
        ValueError: If `tau` is not an integer of at least 1, if a spectrum has fewer
            than `tau` eigenvalues above zero, or if the spectra of one label differ
            in length.
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
    if tau is not None and (
        not isinstance(tau, Integral) or isinstance(tau, bool) or tau < 1
    ):
        raise invalid_value("tau", "an integer of at least 1, or None", tau)
    first = tau or 1
    by_label = dict(spectra) if isinstance(spectra, Mapping) else {"": spectra}
    if not by_label:
        raise invalid_value("spectra", "at least one spectrum", spectra)
    runs_by_label = {label: _as_list(value) for label, value in by_label.items()}
    curves = {
        label: _log_curves(label, runs, first) for label, runs in runs_by_label.items()
    }

    ax = _current_axes(ax)
    if tau is not None:
        ax.axvspan(1, tau, color="0.92", zorder=0)

    for label, runs in runs_by_label.items():
        mean = curves[label].mean(axis=0)
        n = np.arange(1, len(mean) + 1)
        (line,) = ax.plot(n, np.exp(mean), label=_legend_entry(label, runs))
        if len(runs) > 1:
            std = curves[label].std(axis=0, ddof=1)
            ax.fill_between(
                n,
                np.exp(mean - std),
                np.exp(mean + std),
                color=line.get_color(),
                alpha=_BAND_OPACITY,
                linewidth=0,
            )
        star = round(np.mean([run.dimension_90 for run in runs]))
        ax.plot(
            star,
            np.exp(mean[star - 1]),
            marker="*",
            markersize=11,
            markeredgecolor="white",
            color=line.get_color(),
            linestyle="none",
            zorder=3,
        )

    last = max(curve.shape[1] for curve in curves.values())
    ends = np.array([first, max(last, first)])
    power_law = (ends / first) ** -alpha
    ax.plot(ends, power_law, "k--", linewidth=1, label=f"$n^{{{-alpha:g}}}$")

    ax.set(xscale="log", yscale="log", xlim=(1, None))
    ax.set_xlabel("principal component n")
    ax.set_ylabel(f"variance / $\\lambda_{{{first}}}$")
    ax.legend(fontsize="small")
    return ax


def plot_robustness(
    reports: Mapping[str, RobustnessReport | Sequence[RobustnessReport]],
    attack: str,
    ax: Axes | None = None,
) -> Axes:
    """Plots accuracy against attack strength, one curve per label.

    Every curve begins with the clean accuracy at ε = 0. For several reports of
    one label (seeds) it shows their mean, with a band of ±1 sample standard
    deviation (divisor: number of reports − 1):

    ```
    mean(accuracy) ± sqrt(Σ (accuracy − mean(accuracy))² / (reports − 1))
    ```

    Args:
        reports: Label to `RobustnessReport`, or to a list of them.
        attack: An attack that every report holds, such as `"fgsm"`, or `"worst_case"`.
        ax: The Matplotlib axes to draw on. Defaults to the current axes.

    Returns:
        The axes; accuracy is in per cent.

    Raises:
        ValueError: If there is no report, if a report lacks `attack`, or if the
            reports of one label differ in `epsilons`.
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
    if not reports:
        raise invalid_value("reports", "at least one report", reports)
    runs_by_label = {label: _as_list(value) for label, value in reports.items()}
    curves = {
        label: _accuracy_curves(label, runs, attack)
        for label, runs in runs_by_label.items()
    }

    ax = _current_axes(ax)
    for label, (epsilons, accuracies) in curves.items():
        mean = accuracies.mean(axis=0)
        (line,) = ax.plot(epsilons, mean, marker="o", markersize=3, label=label)
        if len(accuracies) > 1:
            std = accuracies.std(axis=0, ddof=1)
            ax.fill_between(
                epsilons,
                mean - std,
                mean + std,
                color=line.get_color(),
                alpha=_BAND_OPACITY,
                linewidth=0,
            )

    ax.set(ylim=(0, 100), title=_TITLES.get(attack, attack))
    euclidean = any(
        run.settings.get("norm") == 2 for runs in runs_by_label.values() for run in runs
    )
    ball = "ε (Euclidean norm)" if euclidean else "ε (max-norm, pixel range 0–1)"
    ax.set_xlabel(_EPSILON_LABELS.get(attack, ball))
    ax.set_ylabel("accuracy (%)")
    ax.legend(fontsize="small")
    return ax


def plot_sensitivity(
    sensitivity: SensitivityMaps,
    axes: Sequence[Axes] | None = None,
    *,
    image: int | None = None,
) -> NDArray[Any]:
    """Plots sensitivity maps as images, one panel per eigenvalue.

    Red pixels raise the eigenvalue λₙ when they get brighter, blue ones lower it. Each
    panel has its own scale, symmetric around zero: eigenvalues differ by orders of
    magnitude, and it is the pattern that tells networks apart.

    Args:
        sensitivity: What `sensitivity_maps` returned, of images of shape
            `(height, width)` or `(height, width, channels)`; channels are summed.
        axes: A row of Matplotlib axes, one per component. Defaults to new ones in the
            current figure.
        image: Index of the image whose own maps to draw, from 0. Defaults to None: the
            sum over all images.

    Returns:
        The axes, an array of shape `(components,)`.

    Raises:
        ValueError: If the maps are not of images, `image` is not among those kept, or
            the number of axes differs from that of components.
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
    count, kept = len(sensitivity.components), sensitivity.maps.shape[1]
    if sensitivity.total.ndim not in (3, 4):
        raise invalid_value(
            "sensitivity",
            "maps of images, (height, width) or (height, width, channels)",
            f"maps of shape {sensitivity.total.shape[1:]}",
        )
    if image is None:
        images = sensitivity.total
    elif isinstance(image, Integral) and 0 <= image < kept:
        images = sensitivity.maps[:, image]
    else:
        raise invalid_value(
            "image", f"None or an integer from 0 to {kept - 1}", repr(image)
        )
    if images.ndim == 4:
        images = images.sum(axis=-1)
    if axes is None:
        axes = _pyplot().gcf().subplots(1, count, squeeze=False)[0]
    panels = np.ravel(np.asarray(axes, dtype=object))
    if len(panels) != count:
        raise invalid_value("axes", f"{count} axes, one for each map", len(panels))

    for n, panel, ax in zip(sensitivity.components, images, panels, strict=True):
        largest = np.abs(panel).max() or 1.0
        ax.imshow(panel, cmap="RdBu_r", vmin=-largest, vmax=largest)
        ax.set(title=f"$\\partial\\lambda_{{{n}}}/\\partial x$", xticks=[], yticks=[])
    return panels


def _log_curves(
    label: str, runs: Sequence[Spectrum], first: int
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
        if run.rank < first:
            raise invalid_value(
                "spectra",
                f"at least {first} eigenvalues above zero, for a curve relative to "
                f"the one at n = {first}",
                f"{run.rank} for label {label!r}",
            )
    n = np.arange(1, lengths.pop() + 1)
    logarithms = np.stack(
        [
            np.log(run.eigenvalues, out=np.full(n.shape, np.nan), where=n <= run.rank)
            for run in runs
        ]
    )
    return logarithms - logarithms[:, first - 1 : first]


def _legend_entry(label: str, runs: Sequence[Spectrum]) -> str:
    exponents = [run.exponent for run in runs]
    if not np.all(np.isfinite(exponents)):  # too few eigenvalues to fit a line to
        return label
    text = f"α = {np.mean(exponents):.2f}"
    if len(runs) > 1:
        text += f" ± {np.std(exponents, ddof=1):.2f}"
    return f"{label} ({text})" if label else text


def _accuracy_curves(
    label: str, runs: Sequence[RobustnessReport], attack: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns ε from 0, shape `(E,)`, and accuracy in per cent, `(runs, E)`."""
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


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _current_axes(ax: Axes | None) -> Axes:
    return _pyplot().gca() if ax is None else ax


def _pyplot() -> Any:
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            "Plotting needs Matplotlib. Install it with: "
            "pip install keras_powerlaw[plots]"
        ) from error
    return plt
