"""Tables in Markdown, and that of the results, one row for each network."""

import numpy as np
from scipy import stats

from .conditions import TAPER, label
from .matching import penalty_of
from .presets import CHOSEN_AT
from .results import accuracies, grouped, ratio_to_target, worst_cases
from .settings import steps_of


def print_rows(rows):
    """Prints a Markdown table as its rows arrive; the first is the header."""
    for index, row in enumerate(rows):
        cells = [str(cell) for cell in row]
        line = "|".join(f" {cell} " if cell else " " for cell in cells)
        print(f"|{line}|", flush=True)
        if index == 0:
            print("|" + "---|" * len(cells), flush=True)


# What a penalty is called in tables and figures.
PENALTIES = {
    "vanilla": "none",
    "last-paper": "eq. (2)",
    "last-log": '"log"',
    "last-nearest": '"nearest"',
    "jacobian": "Jacobian, eq. (11)",
}

# Columns of accuracies, which some results have each.
ACCURACIES = {
    "clean": lambda group: accuracies(group, None),
    "FGSM 0.05": lambda group: accuracies(group, 0.05, "fgsm"),
    "FGSM 0.1": lambda group: accuracies(group, 0.1, "fgsm"),
    "PGD 0.05": lambda group: accuracies(group, 0.05),
    "PGD 0.1": lambda group: accuracies(group, 0.1),
    "noise": lambda group: accuracies(
        group, max(group[0]["settings"]["epsilons"]), "noise"
    ),
}


def spread(values):
    """Mean and standard deviation over the seeds; the latter zero for a single one."""
    return np.mean(values), np.std(values, ddof=1) if len(values) > 1 else 0.0


def over_seeds(values, digits):
    """Mean ± standard deviation, the latter if there is more than one value."""
    mean, deviation = (f"{value:.{digits}f}" for value in spread(values))
    return f"{mean} ± {deviation}" if len(values) > 1 else mean


def result_rows(results):
    """Mean ± standard deviation over the seeds of each network, the header first."""
    yield (
        *("", "", "seeds", "exponents of the hidden layers", "λ/γ"),
        "dimension of the last",
        *ACCURACIES,
    )
    groups = grouped(results, lambda each: (each["architecture"], label(each)))
    for (architecture, name), group in groups.items():
        exponents = [
            over_seeds([r["spectra"][layer]["exponent"] for r in group], 2)
            for layer in group[0]["spectra"]
        ]
        dimensions = [list(r["spectra"].values())[-1]["dimension_90"] for r in group]
        ratios = [
            over_seeds([_ratio(r, layer) for r in group], 2)
            for layer in group[0]["spectra"]
        ]
        yield (
            *(architecture, name, len(group), ", ".join(exponents), ", ".join(ratios)),
            over_seeds(dimensions, 0),
            *_percentage_cells(group),
        )


def width_rows(results):
    """What the width, the batch and the steps do, the header first."""
    keys = ("width", "batch_size", "condition")
    yield (
        *("units", "batch", "steps", "", "seeds", "exponent", "λ/γ"),
        *ACCURACIES,
    )
    groups = grouped(results, lambda each: tuple(each[key] for key in keys))
    for (width, batch, _), group in groups.items():
        yield (
            *(width, batch),
            steps_of(group[0]["settings"], group[0]["trained_images"]),
            *(label(group[0]["settings"]), len(group)),
            *_spectrum_cells(group),
            *_percentage_cells(group),
        )


def exponent_rows(results):
    """Accuracies against the exponent, the header first."""
    yield (
        *("", "target α", "seeds", "exponent", "λ/γ"),
        *ACCURACIES,
    )
    groups = grouped(results, lambda each: (each["dataset"], each["alpha"]))
    for (dataset, alpha), group in groups.items():
        target = "none" if alpha is None else f"{alpha:g}"
        yield (
            *(dataset, target, len(group)),
            *_spectrum_cells(group),
            *_percentage_cells(group),
        )


def matched_rows(results):
    """The best training of each penalty, the header first."""
    yield (
        *("", "", "penalty", "batch", "epochs", "rate", "seeds", "exponent"),
        *("λ/γ", *ACCURACIES),
        *("worst case 0.05", f"PGD {CHOSEN_AT:g} over none"),
    )
    keys = ("dataset", "architecture")
    groups = grouped(
        results, lambda each: (*(each[key] for key in keys), penalty_of(each))
    )
    for (dataset, architecture, penalty), group in groups.items():
        settings = group[0]["settings"]
        beta = "" if settings["beta"] is None else f", β = {settings['beta']:g}"
        yield (
            *(dataset, architecture, f"{PENALTIES[penalty]}{beta}"),
            *(settings[key] for key in ("batch_size", "epochs", "learning_rate")),
            len(group),
            *_spectrum_cells(group),
            *_percentage_cells(group),
            over_seeds(worst_cases(group), 1),
            _difference(group, groups[dataset, architecture, "vanilla"]),
        )


def _ratio(result, layer):
    """λ/γ of a layer, 1/n for a network without a target."""
    settings = result["settings"]
    alpha = settings["alpha"] or 1.0
    if settings["condition"] == "tapered":
        alpha += TAPER[list(result["spectra"]).index(layer)]
    return ratio_to_target(result["spectra"][layer], alpha)


def _spectrum_cells(group):
    """Exponent of the last hidden layer, and its eigenvalues over the target's."""
    *_, last = group[0]["spectra"]
    return (
        over_seeds([result["spectra"][last]["exponent"] for result in group], 2),
        over_seeds([_ratio(result, last) for result in group], 2),
    )


def _percentage_cells(group):
    return [over_seeds(column(group), 1) for column in ACCURACIES.values()]


def _difference(group, plain):
    """That of the mean accuracies by which trainings were chosen, on test images.

    With its 95 % interval by Welch's t. Empty for a single seed, or the plain network.
    """
    if group is plain or min(len(group), len(plain)) < 2:
        return ""
    values, others = (accuracies(each, CHOSEN_AT) for each in (group, plain))
    interval = stats.ttest_ind(values, others, equal_var=False).confidence_interval()
    mean = np.mean(values) - np.mean(others)
    return f"{mean:+.1f} ({interval.low:+.1f} to {interval.high:+.1f})"
