"""Which figures the results of the paper's experiments make, numbered as in the paper.

Each figure has the panels of the paper's, so the two can be laid side by side. Where
the paper shows the best β, so do these figures: `matching` says which one it is.
`panels` holds what is in a figure; `comparisons` has the figures of the other
experiments.
"""

from .conditions import ARCHITECTURES, label
from .matching import of_best_strengths
from .panels import ATTACKS, comparison, maps, row, with_maps

ONE_LAYER = ("vanilla", "last")
WHITENING = ("vanilla", "whitened", "last", "whitened-last")
ALL_LAYERS = ("vanilla", "all", "jacobian", "output-jacobian")
TAPERED = ("vanilla", "all", "tapered")
# From the top, where all have sensitivity maps.
MAPS = ("whitened", "whitened-last", "last", "vanilla", *ALL_LAYERS[1:])
# Architecture, conditions, and what is shown: the spectra of all hidden layers, the
# accuracies under attack, or both; of the best β, or of every one.
ROWS = {
    "figureA6": ("shallow", ONE_LAYER, "spectra and attacks", "every β"),
    "figureA8": ("shallow-nobn", ONE_LAYER, "spectra and attacks", "every β"),
    "figureA10": ("mlp", WHITENING, "spectra", "best β"),
    "figureA14": ("cnn", WHITENING, "spectra", "best β"),
    "figureA18": ("mlp", ALL_LAYERS, "spectra", "best β"),
    "figureA22": ("cnn", ALL_LAYERS, "spectra", "best β"),
    "figureA24": ("cnn", ALL_LAYERS, "attacks", "every β"),
    "tapered-mlp": ("mlp", TAPERED, "spectra and attacks", "best β"),
    "tapered-cnn": ("cnn", TAPERED, "spectra and attacks", "best β"),
}


def paper(results):
    """Yields names and figures: of each, if there is more than the plain network.

    Results without spectra, which a table has for its figures only, are left out.
    """
    results = [r for r in results if all("floor" in f for f in r["layers"].values())]
    for name, conditions in {"figure4": WHITENING, "figure5": ALL_LAYERS}.items():
        main = {
            ARCHITECTURES[architecture]: best(found)
            for architecture in ("mlp", "cnn")
            if (found := compared(results, architecture, conditions))
        }
        if main:
            yield name, comparison(main)
    for name, (architecture, conditions, what, betas) in ROWS.items():
        found = compared(results, architecture, conditions)
        if not found or ("tapered" in name and not has(found, "tapered")):
            continue
        yield (
            name,
            row(
                ARCHITECTURES[architecture],
                best(found) if betas == "best β" else found,
                tuple(found[0]["layers"]) if "spectra" in what else (),
                *(ATTACKS if "attacks" in what else ()),
            ),
        )
    found = best(compared(results, "shallow", ONE_LAYER))
    if found:
        yield "figure2", with_maps(found, _with_maps(found))
    for name, architecture in {"figure3": "mlp", "figure3-cnn": "cnn"}.items():
        rows = _with_maps(best(compared(results, architecture, MAPS)))
        if rows:
            yield name, maps(ARCHITECTURES[architecture], rows)


def compared(results, architecture, conditions):
    """The results of an architecture, if there are more than the plain network's."""
    found = [
        result
        for condition in conditions
        for result in results
        if result["settings"]["architecture"] == architecture
        and result["settings"]["condition"] == condition
    ]
    return found if any(not has([r], "vanilla") for r in found) else []


def best(results):
    """Leaves only the best β of every condition."""
    chosen = of_best_strengths([result["settings"] for result in results], results)
    return [result for result in results if result["settings"] in chosen]


def has(results, condition):
    return any(result["settings"]["condition"] == condition for result in results)


def _with_maps(results):
    """A pair of label and result for each label: maps are not averaged over seeds."""
    first = {}
    for result in results:
        if "total" in result.get("sensitivity", ()):
            first.setdefault(label(result["settings"]), result)
    return list(first.items())
