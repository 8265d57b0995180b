"""What is drawn in the figures: spectra, accuracies under attack, sensitivity maps.

`figures` says which results go into which figure.
"""

import numpy as np
from matplotlib.figure import Figure

import keras_powerlaw as kp

from .conditions import label
from .results import report_from_json

ATTACKS = ("fgsm", "pgd")
WIDTH, HEIGHT = 4.2, 3.6  # of a panel, in inches


def row(title, results, layers, *attacks):
    """A figure of the spectra of some layers, then accuracies under some attacks."""
    count = len(layers) + len(attacks)
    figure = Figure(figsize=(WIDTH * count, HEIGHT + 0.2), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(1, count, squeeze=False)[0]
    for layer, ax in zip(layers, axes, strict=False):
        _draw_spectra(results, layer, ax)
    for attack, ax in zip(attacks, axes[len(layers) :], strict=True):
        _draw_robustness(results, attack, ax)
    if count > 1:
        _letter(axes)
    return figure


def comparison(results_by_title):
    """A figure of accuracies under FGSM and PGD, architectures side by side."""
    count = len(results_by_title)
    figure = Figure(figsize=(2 * WIDTH * count, HEIGHT + 0.2), layout="constrained")
    parts = np.ravel(figure.subfigures(1, count))
    axes = []
    for part, (title, results) in zip(parts, results_by_title.items(), strict=True):
        part.suptitle(title)
        for ax, attack in zip(part.subplots(1, 2), ATTACKS, strict=True):
            _draw_robustness(results, attack, ax)
            axes.append(ax)
    _letter(axes)
    return figure


def with_maps(results, rows):
    """A figure of spectrum, FGSM and PGD, with the maps of each network below them."""
    maps_height = 0.6 + 1.6 * len(rows)
    figure = Figure(figsize=(3 * WIDTH, HEIGHT + maps_height), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=[HEIGHT, maps_height])
    axes = top.subplots(1, 3)
    _draw_spectra(results, "hidden1", axes[0])
    for attack, ax in zip(ATTACKS, axes[1:], strict=True):
        _draw_robustness(results, attack, ax)
    _letter(axes)
    bottom.suptitle("$\\bf{D}$  sensitivity maps, sum over all training images")
    _draw_maps(bottom, rows, "total")
    return figure


def maps(title, rows, what):
    """A figure of sensitivity maps.

    Args:
        title: The architecture's.
        rows: Pairs of a label and a result.
        what: `"total"`, the sum over all training images, or `"first_image"`.
    """
    columns = _columns(rows)
    size = (2 + 1.7 * columns, 0.6 + 1.7 * len(rows))
    figure = Figure(figsize=size, layout="constrained")
    of = "sum over all training images" if what == "total" else "first training image"
    figure.suptitle(f"{title}: ∂λ/∂x of the last hidden layer, {of}")
    _draw_maps(figure, rows, what)
    return figure


def _letter(axes):
    for letter, ax in zip("ABCDE", axes, strict=False):
        ax.set_title(letter, loc="left", fontweight="bold")


def _by_label(results, value):
    grouped = {}
    for result in results:
        grouped.setdefault(label(result["settings"]), []).append(value(result))
    return grouped


def _draw_spectra(results, layer, ax):

    def spectrum(result):
        found = result["spectra"][layer]
        return kp.Spectrum(found["eigenvalues"], floor=found.get("floor"))

    spectra = _by_label(results, spectrum)
    taus = {result["settings"]["tau"] for result in results} - {None}
    kp.plot_spectrum(spectra, ax, tau=min(taus, default=10))
    ax.set_title(f"hidden layer {layer.removeprefix('hidden')}")
    # As in the paper, whitened networks are dashed and marked by a diamond. Each curve
    # is followed by its star.
    for curve, star in zip(ax.lines[:-1:2], ax.lines[1::2], strict=True):
        if curve.get_label().startswith("Whitened"):
            curve.set_linestyle("--")
            star.set(marker="D", markersize=7)
    ax.legend(fontsize=6, loc="lower left")


def _draw_robustness(results, attack, ax):
    reports = _by_label(results, lambda result: report_from_json(result["robustness"]))
    kp.plot_robustness(reports, attack, ax=ax)
    for curve in ax.lines:
        if curve.get_label().startswith("Whitened"):
            curve.set_linestyle("--")
    ax.legend(fontsize="x-small")


def _columns(rows):
    return max(len(result["sensitivity"]["components"]) for _, result in rows)


def _draw_maps(figure, rows, what):
    grid = figure.subplots(len(rows), _columns(rows), squeeze=False)
    for axes, (name, result) in zip(grid, rows, strict=True):
        found = result["sensitivity"]
        count = len(found["components"])
        maps = kp.SensitivityMaps(
            components=tuple(found["components"]),
            eigenvalues=np.array(found["eigenvalues"]),
            maps=np.array(found["first_image"])[:, np.newaxis],
            total=np.array(found["total"]),
        )
        kp.plot_sensitivity(maps, axes[:count], image=None if what == "total" else 0)
        axes[0].set_ylabel(
            name.replace(", ", ",\n"), rotation=0, ha="right", va="center"
        )
        for ax in axes[count:]:
            ax.set_axis_off()
    for ax in np.ravel(grid[1:]):
        ax.set_title("")
