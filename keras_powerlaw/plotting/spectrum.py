"""Figure 2A: eigenvalue spectra."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from keras_powerlaw.arguments import invalid_value, validate_optional_integer
from keras_powerlaw.plotting.axes import (
    as_list,
    new_axes,
    plot_mean,
    validate_axes,
    validate_kind,
)
from keras_powerlaw.spectrum import PowerLawFits

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_spectrum(
    spectra: PowerLawFits | Mapping[str, PowerLawFits | Sequence[PowerLawFits]],
    ax: Axes | None = None,
    *,
    tau: int | None = 10,
    alpha: float = 1.0,
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
        alpha: Exponent α of the dashed line. Defaults to 1.0.

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
    by_label = dict(spectra) if isinstance(spectra, Mapping) else {"": spectra}
    if not by_label:
        raise invalid_value("spectra", "at least one spectrum", spectra)
    runs_by_label = {label: as_list(value) for label, value in by_label.items()}
    for runs in runs_by_label.values():
        validate_kind("spectra", runs, PowerLawFits, "a Spectrum, or several by label")
    curves = {
        label: _log_curves(label, runs, first) for label, runs in runs_by_label.items()
    }

    if ax is None:
        [ax] = new_axes()
    validate_axes("ax", [ax])
    if tau is not None:
        ax.axvspan(1, tau, color="0.92", zorder=0)

    for label, runs in runs_by_label.items():
        n = np.arange(1, curves[label].shape[1] + 1)
        entry = _legend_entry(label, runs)
        line = plot_mean(ax, n, curves[label], np.exp, label=entry)
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
    ends = np.array([first, max(last, first)])
    power_law = (ends / first) ** -alpha
    ax.plot(ends, power_law, "k--", linewidth=1, label=f"$n^{{{-alpha:g}}}$")

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
    logarithms: NDArray[np.float64] = np.stack(
        [
            np.log(
                run.eigenvalues,
                out=np.full(n.shape, np.nan),
                where=(n <= run.rank) & (run.eigenvalues > 0),
            )
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
