"""The paper's figures from the results of `experiments.py`.

Each figure keeps the panels of the paper's, so that the two can be laid side by side.
Where the paper shows the best β, the one with the highest accuracy under FGSM and PGD
is shown, averaged over strengths and seeds.
"""

import experiments
import numpy as np
from matplotlib.figure import Figure

import keras_powerlaw as kp

WIDTH, HEIGHT = 4.2, 3.6  # of a panel, in inches
NETWORKS = {
    "shallow": "one hidden layer, batch norm",
    "shallow-nobn": "one hidden layer",
    "mlp": "MLP",
    "cnn": "CNN",
}


def shallow(results):
    """Figures 2 and A6 to A9."""
    drawn = {}
    for architecture, (robustness, noise) in {
        "shallow": ("A6", "A7"),
        "shallow-nobn": ("A8", "A9"),
    }.items():
        every = _of(results, architecture, ("vanilla", "last"))
        if every:
            best = _best(every)
            title = NETWORKS[architecture]
            if architecture == "shallow":
                drawn["figure2"] = _figure2(best)
            drawn[f"figure{robustness}"] = _row(title, every, ("hidden1",), *_ATTACKS)
            drawn[f"figure{noise}"] = _row(title, every, (), "noise")
    return drawn


def whitening(results):
    """Figures 4 and A10 to A17."""
    return _deep(
        results,
        ("vanilla", "whitened", "last", "whitened-last"),
        "figure4",
        {"mlp": 10, "cnn": 14},
    )


def all_layers(results):
    """Figures 5 and A18 to A25, and one of exponents that fall with depth."""
    drawn = _deep(
        results,
        ("vanilla", "all", "jacobian", "output-jacobian"),
        "figure5",
        {"mlp": 18, "cnn": 22},
    )
    for architecture in experiments.DEEP:
        best = _best(_of(results, architecture, ("vanilla", "all", "tapered")))
        if any(result["settings"]["condition"] == "tapered" for result in best):
            drawn[f"tapered-{architecture}"] = _row(
                NETWORKS[architecture], best, tuple(best[0]["spectra"]), *_ATTACKS
            )
    return drawn


def sensitivity(results):
    """Figure 3 and the same for the CNN: the maps of each network, one row each."""
    drawn = {}
    order = (
        *("whitened", "whitened-last", "last", "vanilla"),
        *("all", "jacobian", "output-jacobian"),
    )
    for architecture, name in {
        "shallow": "figure2-maps",
        "mlp": "figure3",
        "cnn": "figure3-cnn",
    }.items():
        best = _best(_of(results, architecture, order))
        first = {}  # of each label's seeds
        for result in best:
            first.setdefault(experiments.label(result["settings"]), result)
        rows = sorted(
            first.items(),
            key=lambda item: order.index(item[1]["settings"]["condition"]),
        )
        if rows:
            for what in ("total", "first_image"):
                suffix = "" if what == "total" else "-first-image"
                drawn[name + suffix] = _maps(NETWORKS[architecture], rows, what)
    return drawn


_ATTACKS = ("fgsm", "pgd")


def _of(results, architecture, conditions):
    return [
        result
        for condition in conditions
        for result in results
        if result["settings"]["architecture"] == architecture
        and result["settings"]["condition"] == condition
    ]


def _best(results):
    """Leaves only the best β of every condition."""
    scores = {}
    for result in results:
        settings = result["settings"]
        accuracy = experiments.robustness_report(result).accuracy
        scores.setdefault(settings["condition"], {}).setdefault(
            settings["beta"], []
        ).append(np.mean([accuracy[attack] for attack in _ATTACKS]))
    best = {
        condition: max(by_beta, key=lambda beta: np.mean(by_beta[beta]))
        for condition, by_beta in scores.items()
    }
    return [
        result
        for result in results
        if result["settings"]["beta"] == best[result["settings"]["condition"]]
    ]


def _deep(results, conditions, main_figure, first_of_appendix):
    drawn, main = {}, {}
    for architecture, number in first_of_appendix.items():
        every = _of(results, architecture, conditions)
        if not every:
            continue
        title, best = NETWORKS[architecture], _best(every)
        layers = tuple(every[0]["spectra"])
        main[title] = best
        drawn[f"figureA{number}"] = _row(title, best, layers)
        drawn[f"figureA{number + 1}"] = _row(title, every, layers)
        drawn[f"figureA{number + 2}"] = _row(title, every, (), *_ATTACKS)
        drawn[f"figureA{number + 3}"] = _row(title, every, (), "noise")
    if main:
        figure = Figure(
            figsize=(2 * WIDTH * len(main), HEIGHT + 0.2), layout="constrained"
        )
        parts = np.ravel(figure.subfigures(1, len(main)))
        axes = []
        for part, (title, best) in zip(parts, main.items(), strict=True):
            part.suptitle(title)
            for ax, attack in zip(part.subplots(1, 2), _ATTACKS, strict=True):
                _draw_robustness(best, attack, ax)
                axes.append(ax)
        _letter(axes)
        drawn[main_figure] = figure
    return drawn


def _row(title, results, layers, *attacks):
    """Spectra of some hidden layers, then accuracies under some attacks."""
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


def _letter(axes):
    for letter, ax in zip("ABCDE", axes, strict=False):
        ax.set_title(letter, loc="left", fontweight="bold")


def _by_label(results, value):
    grouped = {}
    for result in results:
        grouped.setdefault(experiments.label(result["settings"]), []).append(
            value(result)
        )
    return grouped


def _draw_spectra(results, layer, ax):
    spectra = _by_label(
        results, lambda result: kp.Spectrum(result["spectra"][layer]["eigenvalues"])
    )
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
    kp.plot_robustness(_by_label(results, experiments.robustness_report), attack, ax=ax)
    for curve in ax.lines:
        if curve.get_label().startswith("Whitened"):
            curve.set_linestyle("--")
    ax.legend(fontsize="x-small")


def _figure2(results):
    """Spectrum, FGSM and PGD, and below them the maps of both networks."""
    first = {experiments.label(r["settings"]): r for r in reversed(results)}
    rows = list(first.items())[::-1]
    figure = Figure(
        figsize=(3 * WIDTH, HEIGHT + 0.6 + 1.6 * len(rows)), layout="constrained"
    )
    top, bottom = figure.subfigures(2, 1, height_ratios=[HEIGHT, 0.6 + 1.6 * len(rows)])
    axes = top.subplots(1, 3)
    _draw_spectra(results, "hidden1", axes[0])
    for attack, ax in zip(_ATTACKS, axes[1:], strict=True):
        _draw_robustness(results, attack, ax)
    _letter(axes)
    bottom.suptitle("$\\bf{D}$  sensitivity maps, sum over all training images")
    _draw_maps(bottom, rows, "total")
    return figure


def _maps(title, rows, what):
    columns = max(len(result["sensitivity"]["components"]) for _, result in rows)
    size = (2 + 1.7 * columns, 0.6 + 1.7 * len(rows))
    figure = Figure(figsize=size, layout="constrained")
    of = "sum over all training images" if what == "total" else "first training image"
    figure.suptitle(f"{title}: ∂λ/∂x of the last hidden layer, {of}")
    _draw_maps(figure, rows, what)
    return figure


def _draw_maps(figure, rows, what):
    columns = max(len(r["sensitivity"]["components"]) for _, r in rows)
    grid = figure.subplots(len(rows), columns, squeeze=False)
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
