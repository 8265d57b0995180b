"""What is drawn in the figures: spectra, accuracies under attack, sensitivity maps.

`figures` says which results go into which figure.
"""

import string

import numpy as np
from matplotlib.figure import Figure

import keras_powerlaw as kp

from .conditions import TAPER, label
from .looks import look
from .printed import over_seeds
from .settings import grouped
from .table import report_of

ATTACKS = ("fgsm", "pgd")
WIDTH, HEIGHT = 4.2, 3.9  # of a panel, in inches
# Below a millionth of λ_τ, spectra say nothing about 1/n.
SMALLEST = 1e-6


def row(title, results, layers, *attacks):
    """A figure of the spectra of some layers, then accuracies under some attacks."""
    count = len(layers) + len(attacks)
    figure = Figure(figsize=(WIDTH * count, _height(results)), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(1, count, squeeze=False)[0]
    for layer, ax in zip(layers, axes, strict=False):
        _draw_spectra(results, layer, ax)
    for attack, ax in zip(attacks, axes[len(layers) :], strict=True):
        _draw_robustness(results, attack, ax)
    if count > 1:
        letter(axes)
    return figure


def comparison(results_by_title):
    """A figure of accuracies under FGSM and PGD, architectures side by side."""
    count = len(results_by_title)
    height = max(map(_height, results_by_title.values()))
    figure = Figure(figsize=(2 * WIDTH * count, height), layout="constrained")
    parts = np.ravel(figure.subfigures(1, count))
    axes = []
    for part, (title, results) in zip(parts, results_by_title.items(), strict=True):
        part.suptitle(title)
        for ax, attack in zip(part.subplots(1, 2), ATTACKS, strict=True):
            _draw_robustness(results, attack, ax)
            axes.append(ax)
    letter(axes)
    return figure


def with_maps(results, rows):
    """A figure of spectrum, FGSM and PGD, with the maps of each network below them."""
    maps_height = 0.6 + 1.6 * len(rows)
    heights = [_height(results), maps_height]
    figure = Figure(figsize=(3 * WIDTH, sum(heights)), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=heights)
    axes = top.subplots(1, 3)
    _draw_spectra(results, "hidden1", axes[0])
    for attack, ax in zip(ATTACKS, axes[1:], strict=True):
        _draw_robustness(results, attack, ax)
    letter(axes)
    bottom.suptitle("$\\bf{D}$  sensitivity maps, sum over all training images")
    _draw_maps(bottom, rows)
    return figure


def maps(title, rows):
    """A figure of sensitivity maps, the sum over all training images.

    Args:
        title: The architecture's.
        rows: Pairs of a label and a result.
    """
    size = (2 + 1.7 * _columns(rows), 0.6 + 1.7 * len(rows))
    figure = Figure(figsize=size, layout="constrained")
    of = "sum over all training images"
    figure.suptitle(f"{title}: ∂λ/∂x of the last hidden layer, {of}")
    _draw_maps(figure, rows)
    return figure


def letter(axes):
    for letter, ax in zip(string.ascii_uppercase, axes, strict=False):
        ax.set_title(letter, loc="left", fontweight="bold")


def draw_spectra(spectra, exponents, styles, ax, **options):
    """`plot_spectrum`, each curve in its style, the legend below.

    The legend has the exponents given: those of a table's spectra are of all n, and the
    spectra are not.
    """
    _cycle(styles, ax)
    kp.plot_spectrum(spectra, ax, **options)
    for curve, (name, values) in zip(ax.lines[::2], exponents.items(), strict=False):
        curve.set_label(f"{name} (α = {over_seeds(values, 2)})")
    # Each curve is followed by its star; before these marks, those of the conditions.
    for star, style in zip(ax.lines[1::2], styles, strict=False):
        star.set(marker=style["marker"], markersize=8)
    put_legend_below(ax)


def draw_robustness(reports, styles, attack, ax):
    """`plot_robustness`, each curve in its style, the legend below."""
    _cycle(styles, ax)
    kp.plot_robustness(reports, attack, ax)
    for curve, style in zip(ax.lines, styles, strict=True):
        curve.set(marker=style["marker"], markersize=5)
    put_legend_below(ax)


def _cycle(styles, ax):
    """What is drawn next has these colours and lines, in order."""
    ax.set_prop_cycle(
        color=[style["color"] for style in styles],
        linestyle=[style["linestyle"] for style in styles],
    )


def _draw_spectra(results, layer, ax):
    groups = grouped(results, label)
    layers = {name: [r["layers"][layer] for r in rs] for name, rs in groups.items()}
    spectra = {
        name: [kp.Spectrum(each["eigenvalues"], floor=each["floor"]) for each in found]
        for name, found in layers.items()
    }
    exponents = {n: [each["exponent"] for each in fs] for n, fs in layers.items()}
    taus = {result["settings"]["tau"] for result in results} - {None}
    tau = min(taus, default=10)
    draw_spectra(spectra, exponents, _styles(groups, results), ax, tau=tau)
    if any(result["settings"]["condition"] == "tapered" for result in results):
        alpha = 1 + TAPER[int(layer.removeprefix("hidden")) - 1]
        if alpha > 1:
            n = np.array([tau, ax.get_xlim()[1]])
            ax.plot(n, (n / tau) ** -alpha, "k:", lw=1, label=f"$n^{{{-alpha:g}}}$")
            put_legend_below(ax)
    ax.set_ylim(bottom=max(ax.get_ylim()[0], SMALLEST))
    ax.set_title(f"hidden layer {layer.removeprefix('hidden')}")


def _draw_robustness(results, attack, ax):
    groups = grouped(results, label)
    reports = {
        name: [report_of(result["robustness"]) for result in group]
        for name, group in groups.items()
    }
    draw_robustness(reports, _styles(groups, results), attack, ax)


def _styles(groups, results):
    shown = [result["settings"] for result in results]
    return [look(group[0]["settings"], shown) for group in groups.values()]


def put_legend_below(ax, **more):
    below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.15)}
    # Long enough to tell the dashes of several strengths apart behind the marker.
    ax.legend(fontsize="small", frameon=False, handlelength=3.5, **below, **more)


def _height(results):
    """Of a row of panels in inches, with the legend below them."""
    return HEIGHT + 0.19 * len({label(result["settings"]) for result in results})


def _columns(rows):
    return max(len(result["sensitivity"]["components"]) for _, result in rows)


def _draw_maps(figure, rows):
    grid = figure.subplots(len(rows), _columns(rows), squeeze=False)
    for axes, (name, result) in zip(grid, rows, strict=True):
        found = result["sensitivity"]
        count = len(found["components"])
        total = np.array(found["total"], "float32")
        maps = kp.SensitivityMaps(
            components=tuple(found["components"]),
            eigenvalues=np.array(found["eigenvalues"]),
            maps=total[:, np.newaxis],  # of no image
            total=total,
        )
        kp.plot_sensitivity(maps, axes[:count])
        axes[0].set_ylabel(
            name.replace(", ", ",\n"), rotation=0, ha="right", va="center"
        )
        for ax in axes[count:]:
            ax.set_axis_off()
    for ax in np.ravel(grid[1:]):
        ax.set_title("")
