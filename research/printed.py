"""Tables in Markdown: how they are printed, and those of the results.

A function of `..._rows` yields the header, then a row for each network: mean ± standard
deviation over its seeds.
"""

import numpy as np
from scipy import stats

from .conditions import PENALTIES, SHALLOW, TAPER, label, penalty_of
from .presets import CHOSEN_AT
from .settings import grouped, steps_of
from .table import accuracies, worst_cases


def print_rows(rows):
    """Prints a Markdown table as its rows arrive; the first is the header."""
    for index, row in enumerate(rows):
        cells = [str(cell) for cell in row]
        line = "|".join(f" {cell} " if cell else " " for cell in cells)
        print(f"|{line}|", flush=True)
        if index == 0:
            print("|" + "---|" * len(cells), flush=True)


# Columns of accuracies.
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


def network_rows(results):
    """The networks of the paper, of one hidden layer or of several."""
    shallow = results[0]["settings"]["architecture"] in SHALLOW
    yield (
        *("", "", "seeds"),
        "exponent" if shallow else "exponents of the hidden layers",
        *("λ/γ", "dimension at 90 %" + ("" if shallow else ", last layer")),
        *ACCURACIES,
    )
    groups = grouped(results, lambda each: (each["architecture"], label(each)))
    for (architecture, name), group in groups.items():
        *_, last = group[0]["layers"]
        yield (
            *(architecture, name, len(group)),
            *(_of_layers(group, key) for key in ("exponent", "ratio")),
            over_seeds(_of_layer(group, last, "dimension_90"), 0),
            *_percentage_cells(group),
        )


def taper_rows(results):
    """Exponents that fall with depth, beside 1/n in every layer: at the best β."""
    yield (
        *("α", "β", "exponents", "λ/γ, of its own target"),
        *ACCURACIES,
    )
    targets = {
        "vanilla": "none",
        "all": "1, 1, 1",
        "tapered": ", ".join(f"{1 + more:g}" for more in TAPER),
    }
    for condition, group in grouped(results, lambda s: s["condition"]).items():
        plain = condition == "vanilla"
        yield (
            targets[condition],
            "" if plain else f"{group[0]['settings']['beta']:g}",
            _of_layers(group, "exponent", spread=False),
            "" if plain else _of_layers(group, "ratio", spread=False),
            *_percentage_cells(group),
        )


def width_rows(results):
    """What the width, the batch and the steps do."""
    yield (
        *("units", "batch", "steps", "", "seeds", "exponent", "λ/γ"),
        *ACCURACIES,
    )
    keys = ("width", "batch_size", "condition")
    groups = grouped(results, lambda each: tuple(each[key] for key in keys))
    for (width, batch, _), group in groups.items():
        yield (
            *(width, batch),
            steps_of(group[0]["settings"], group[0]["trained_images"]),
            *(label(group[0]["settings"]), len(group)),
            *_spectrum_cells(group),
            *_percentage_cells(group),
        )


def exponent_rows(results, dataset):
    """Accuracies against the exponent."""
    yield (f"{dataset}, target α", "exponent", "λ/γ", *ACCURACIES)
    for alpha, group in grouped(results, lambda each: each["alpha"]).items():
        yield (
            "none" if alpha is None else f"{alpha:g}",
            *_spectrum_cells(group),
            *_percentage_cells(group),
        )


def matched_rows(results):
    """The best training of each penalty."""
    yield (
        *("penalty", "batch, epochs, rate", "seeds", "exponent", "λ/γ"),
        *ACCURACIES,
        *("worst case 0.05", f"PGD {CHOSEN_AT:g} over none"),
    )
    groups = grouped(results, penalty_of)
    for penalty, group in groups.items():
        settings = group[0]["settings"]
        beta = "" if settings["beta"] is None else f", β = {settings['beta']:g}"
        training = (settings[k] for k in ("batch_size", "epochs", "learning_rate"))
        yield (
            *(f"{PENALTIES[penalty]}{beta}", ", ".join(map(str, training))),
            *(len(group), *_spectrum_cells(group), *_percentage_cells(group)),
            over_seeds(worst_cases(group), 1),
            _difference(group, groups["vanilla"]),
        )


def control_rows(results, dataset):
    """The ways to a spectrum, in one training, and what might explain robustness."""
    yield (
        *(f"{dataset}: way", "target α", "seeds", "exponent", "clean"),
        *("PGD 0.05", "PGD 0.1", f"strong {CHOSEN_AT:g}, 200 images", "gradient"),
        *("of it in 50 components", "saturated"),
    )
    for (penalty, alpha), group in grouped(
        results, lambda each: (penalty_of(each), each["alpha"])
    ).items():
        explained = [result["explanation"] for result in group]
        exponent, _ = _spectrum_cells(group)
        yield (
            *(PENALTIES[penalty], "" if alpha is None else f"{alpha:g}"),
            *(len(group), exponent),
            *(over_seeds(accuracies(group, e), 1) for e in (None, 0.05, 0.1)),
            over_seeds(worst_cases(group), 1),
            *(
                over_seeds([each[key] for each in explained], digits)
                for key, digits in (("gradient", 1), ("leading", 2), ("saturated", 2))
            ),
        )


def _of_layer(group, layer, key):
    return [result["layers"][layer][key] for result in group]


def _of_layers(group, key, spread=True):
    """A cell with the value of each hidden layer."""
    cells = (over_seeds(_of_layer(group, name, key), 2) for name in group[0]["layers"])
    return ", ".join(cell if spread else cell.partition(" ±")[0] for cell in cells)


def _spectrum_cells(group):
    """Exponent of the last hidden layer, and its eigenvalues over the target's."""
    *_, last = group[0]["layers"]
    return (over_seeds(_of_layer(group, last, key), 2) for key in ("exponent", "ratio"))


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
