"""Which figures the results of the runs make, numbered as in the paper.

Each figure has the panels of the paper's, so the two can be laid side by side. Where
the paper shows the best β, so do these figures: `matching` says which one it is.

The functions without an underscore are what the scripts draw: they take all results and
return figures by name. `panels` holds what is in a figure.
"""

from .conditions import ARCHITECTURES, DEEP, label
from .matching import of_best_strengths
from .panels import ATTACKS, comparison, maps, row, with_maps


def shallow(results):
    """Figures 2 and A6 to A9."""
    drawn = {}
    for architecture, (robustness, noise) in {
        "shallow": ("A6", "A7"),
        "shallow-nobn": ("A8", "A9"),
    }.items():
        every = _of(results, architecture, ("vanilla", "last"))
        if every:
            title = ARCHITECTURES[architecture]
            if architecture == "shallow":
                best = _best(every)
                drawn["figure2"] = with_maps(best, _first_seeds(best))
            drawn[f"figure{robustness}"] = row(title, every, ("hidden1",), *ATTACKS)
            drawn[f"figure{noise}"] = row(title, every, (), "noise")
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
    for architecture in DEEP:
        best = _best(_of(results, architecture, ("vanilla", "all", "tapered")))
        if any(result["settings"]["condition"] == "tapered" for result in best):
            drawn[f"tapered-{architecture}"] = row(
                ARCHITECTURES[architecture], best, tuple(best[0]["spectra"]), *ATTACKS
            )
    return drawn


def sensitivity(results):
    """Figure 3, and the same for the other networks: a row of maps for each."""
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
        rows = sorted(
            _first_seeds(best),
            key=lambda pair: order.index(pair[1]["settings"]["condition"]),
        )
        if rows:
            title = ARCHITECTURES[architecture]
            for what in ("total", "first_image"):
                suffix = "" if what == "total" else "-first-image"
                drawn[name + suffix] = maps(title, rows, what)
    return drawn


def _deep(results, conditions, main_figure, first_of_appendix):
    """A figure of the main text, and four of the appendix for each architecture.

    Not of an architecture of which there is only the plain network.
    """
    drawn, main = {}, {}
    found = {
        architecture: every
        for architecture in first_of_appendix
        if (every := _of(results, architecture, conditions))
        and any(result["settings"]["condition"] != "vanilla" for result in every)
    }
    for architecture, every in found.items():
        number = first_of_appendix[architecture]
        title, best = ARCHITECTURES[architecture], _best(every)
        layers = tuple(every[0]["spectra"])
        main[title] = best
        drawn[f"figureA{number}"] = row(title, best, layers)
        has_strengths = len(best) < len(every)
        if has_strengths:
            drawn[f"figureA{number + 1}"] = row(title, every, layers)
        if has_strengths or len(found) > 1:  # otherwise the main figure shows it
            drawn[f"figureA{number + 2}"] = row(title, every, (), *ATTACKS)
        drawn[f"figureA{number + 3}"] = row(title, every, (), "noise")
    if main:
        drawn[main_figure] = comparison(main)
    return drawn


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
    best = of_best_strengths([result["settings"] for result in results], results)
    return [result for result in results if result["settings"] in best]


def _first_seeds(results):
    """A pair of label and result for each label: maps are not averaged over seeds."""
    first = {}
    for result in results:
        if "sensitivity" in result:
            first.setdefault(label(result["settings"]), result)
    return list(first.items())
