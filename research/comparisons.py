"""Figures that compare trainings: widths, exponents, and penalties matched with none.

Means over the seeds, and bars of one standard deviation. `looks` has the colours.
"""

import collections

import numpy as np
from matplotlib.figure import Figure

from .conditions import PENALTIES, penalty_of
from .looks import BLACK, BLUE, GREEN, LOOKS, ORANGE, VERMILION
from .matching import lowest_clean, on_unseen, select_best
from .panels import letter, put_legend_below
from .presets import CHOSEN_AT
from .printed import ACCURACIES, spread
from .settings import grouped
from .table import accuracies, worst_cases


def exponents(results):
    """Accuracies against the measured exponent, the plain network's dashed."""
    figure = Figure(figsize=(8.4, 3.8), layout="constrained")
    axes = figure.subplots(1, 2)
    epsilons = {"clean": [None], "PGD": [0.02, 0.05, 0.1]}
    groups = grouped(results, lambda settings: settings["alpha"])
    plain = groups.pop(None, [])
    styles = zip((BLUE, VERMILION, GREEN), ("o", "s", "^"), strict=True)
    styles = {None: (BLACK, "o"), **dict(zip(epsilons["PGD"], styles, strict=True))}
    for ax, (title, strengths) in zip(axes, epsilons.items(), strict=True):
        for epsilon in strengths:
            color, marker = styles[epsilon]
            points = [
                (*spread(_exponents(group)), *spread(accuracies(group, epsilon)))
                for group in groups.values()
            ]
            x, x_error, y, y_error = np.transpose(points)
            ax.errorbar(
                *(x, y, y_error, x_error),
                **{"color": color, "marker": marker, "capsize": 2, "linewidth": 1},
                label="regularized" if epsilon is None else f"ε = {epsilon:g}",
            )
            if plain:
                mean, _ = spread(accuracies(plain, epsilon))
                ax.axhline(mean, color=color, linestyle="--", linewidth=1)
        ax.set(title=title, xlabel="measured exponent", ylabel="accuracy (%)")
        put_legend_below(ax, ncols=3)
    axes[1].set_ylim(0, 100)
    letter(axes)
    if plain:
        mean, _ = spread(_exponents(plain))
        figure.suptitle(f"dashed: without a penalty, exponent {mean:.2f}", fontsize=9)
    yield "exponents", figure


def widths(results):
    """PGD and clean accuracy against the width, by batch, plain and regularized."""
    figure = Figure(figsize=(8.4, 3.8), layout="constrained")
    axes = figure.subplots(1, 2)
    sizes = {(s["settings"]["width"], s["settings"]["batch_size"]) for s in results}
    # One batch is that of every width.
    [(common, _)] = collections.Counter(batch for _, batch in sizes).most_common(1)
    kinds = {
        f"{common:,}": lambda settings: settings["batch_size"] == common,
        "1.5 widths": lambda s: 2 * s["batch_size"] == 3 * s["width"],
    }
    looks = dict(zip(kinds, [(BLUE, "s"), (ORANGE, "^")], strict=True))
    for ax, epsilon in zip(axes, (None, 0.05), strict=True):
        for kind, belongs in kinds.items():
            color, marker = looks[kind]
            for condition, line in {"vanilla": "--", "last": "-"}.items():
                chosen = [
                    result
                    for result in results
                    if belongs(result["settings"])
                    and result["settings"]["condition"] == condition
                ]
                groups = grouped(chosen, lambda settings: settings["width"])
                if not groups:
                    continue
                spreads = [spread(accuracies(g, epsilon)) for g in groups.values()]
                y, error = np.transpose(spreads)
                name = "plain" if condition == "vanilla" else "regularized"
                ax.errorbar(
                    *(list(groups), y, error),
                    **{"color": color, "marker": marker, "linestyle": line},
                    **{"capsize": 2, "label": f"{name}, batches of {kind}"},
                )
        title = "clean" if epsilon is None else f"PGD, ε = {epsilon:g}"
        ax.set(xscale="log", title=title, xlabel="units", ylabel="accuracy (%)")
        shown = sorted({width for width, _ in sizes})
        ax.set_xticks(shown, [f"{width:,}" for width in shown], minor=False)
        ax.minorticks_off()
    below = {"loc": "outside lower center", "ncols": 2, "frameon": False}
    figure.legend(*axes[0].get_legend_handles_labels(), fontsize="small", **below)
    letter(axes)
    yield "widths", figure


def controls(results):
    """PGD against the exponent and against where the gradient lies, a line a way."""
    figure = Figure(figsize=(8.4, 4.2), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for penalty, found in grouped(results, penalty_of).items():
        color, marker = LOOKS[penalty]
        style = {"color": color, "marker": marker, "markersize": 6, "capsize": 2}
        style |= {"linestyle": "-", "linewidth": 1, "label": PENALTIES[penalty]}
        groups = grouped(found, lambda settings: settings["alpha"]).values()
        y, y_error = np.transpose([spread(accuracies(g, CHOSEN_AT)) for g in groups])
        leading = [[r["explanation"]["leading"] for r in group] for group in groups]
        for ax, measured in zip(
            axes, ([_exponents(group) for group in groups], leading), strict=True
        ):
            x, x_error = np.transpose([spread(values) for values in measured])
            ax.errorbar(x, y, y_error, x_error, **style)
    axes[0].set(
        xlabel="measured exponent", ylabel=f"PGD, ε = {CHOSEN_AT:g}: accuracy (%)"
    )
    axes[1].set(xlabel="energy of the input gradient in 50 components")
    axes[0].set_ylim(0, 100)
    below = {"loc": "outside lower center", "ncols": 3, "frameon": False}
    figure.legend(*axes[0].get_legend_handles_labels(), fontsize="small", **below)
    letter(axes)
    yield "controls", figure


def matched(results):
    """What every training gives, and what the chosen ones do when they are tested."""
    for architecture, found in grouped(results, lambda s: s["architecture"]).items():
        chosen = [r for r in found if r["settings"]["variant"].endswith("-tested")]
        grid = [r for r in found if r not in chosen]
        yield f"trainings-{architecture}", trainings(grid)
        yield f"matched-{architecture}", tested(chosen)


def tested(results):
    """A figure of each penalty at its best training, a panel for each accuracy."""
    figure = Figure(figsize=(8.4, 5.4), layout="constrained")
    axes = figure.subplots(2, 3, sharey=True).ravel()
    groups = grouped(results, penalty_of)
    for ax, (title, values) in zip(axes, MEASURES.items(), strict=True):
        for place, (penalty, group) in enumerate(reversed(groups.items())):
            color, marker = LOOKS[penalty]
            mean, error = spread(values(group))
            ax.errorbar(
                *(mean, place), xerr=error, color=color, marker=marker, capsize=3
            )
            if penalty == "vanilla":
                ax.axvline(mean, color=color, linestyle="--", linewidth=1)
        names = [PENALTIES[penalty] for penalty in reversed(groups)]
        ax.set_yticks(range(len(names)), names)
        ax.set(title=title, ylim=(-0.6, len(names) - 0.4))
    figure.supxlabel("accuracy (%)", fontsize="medium")
    letter(axes)
    return figure


def trainings(results):
    """A figure of what each training costs and gives, on the images kept out.

    Filled are the best. The line of a penalty goes along those that no other of it
    beats in both accuracies.
    """
    best = select_best(results)
    figure = Figure(figsize=(8.4, 4.6), layout="constrained")
    ax = figure.subplots()
    least = 100 * lowest_clean(results)
    for penalty, group in grouped(results, penalty_of).items():
        color, marker = LOOKS[penalty]
        line = "--" if penalty == "vanilla" else "-"
        points = {"color": color, "marker": marker, "linestyle": "none"}
        # From the highest clean accuracy on: what gains robustness by losing it.
        clean, pgd = 100 * np.array(sorted(map(on_unseen, group), reverse=True)).T
        # What loses more of the task says nothing about it.
        shown = clean > least - 3
        clean, pgd = clean[shown], pgd[shown]
        reached = np.maximum.accumulate(pgd)
        ax.step(clean, reached, line, color=color, where="post", linewidth=1)
        ax.plot(clean, pgd, **points, markersize=5, markerfacecolor="none")
        # None, if none keeps the task.
        chosen = [on_unseen(r) for r in group if r["settings"] in best]
        ax.plot(
            *100 * np.reshape(chosen, (-1, 2)).T,
            **points,
            markersize=9,
            label=PENALTIES[penalty],
        )
    ax.axvline(least, color="grey", linestyle=":", linewidth=1)
    ylabel = f"accuracy under PGD, ε = {CHOSEN_AT:g} (%)"
    ax.set(xlabel="clean accuracy (%)", ylabel=ylabel)
    put_legend_below(ax, ncols=5)
    return figure


def _exponents(results):
    return [list(result["layers"].values())[-1]["exponent"] for result in results]


MEASURES = {
    "clean": ACCURACIES["clean"],
    "FGSM, ε = 0.05": ACCURACIES["FGSM 0.05"],
    "PGD, ε = 0.05": ACCURACIES["PGD 0.05"],
    "PGD, ε = 0.1": ACCURACIES["PGD 0.1"],
    "noise": ACCURACIES["noise"],
    "worst case, ε = 0.05": worst_cases,
}
