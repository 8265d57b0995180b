"""Tables in Markdown, and that of the results, one row for each network."""

import numpy as np

from .conditions import label
from .results import report_from_json


def print_rows(rows):
    """Prints a Markdown table as its rows arrive; the first is the header."""
    for index, row in enumerate(rows):
        cells = [str(cell) for cell in row]
        line = "|".join(f" {cell} " if cell else " " for cell in cells)
        print(f"|{line}|", flush=True)
        if index == 0:
            print("|" + "---|" * len(cells), flush=True)


def over_seeds(values, digits):
    """Mean ± standard deviation, the latter if there is more than one value."""
    mean = f"{np.mean(values):.{digits}f}"
    return f"{mean} ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else mean


def print_results(results):
    """Prints mean ± standard deviation over the seeds of each network."""
    print()
    print_rows(result_rows(results))


def result_rows(results):
    """The rows of `print_results`, the header first."""
    yield (
        *("", "", "seeds", "exponents of the hidden layers", "dimension of the last"),
        *("clean", "FGSM 0.05", "FGSM 0.1", "PGD 0.05", "PGD 0.1", "noise"),
    )
    grouped = {}
    for result in results:
        settings = result["settings"]
        grouped.setdefault((settings["architecture"], label(settings)), []).append(
            result
        )
    for (architecture, name), group in grouped.items():
        exponents = [
            over_seeds([r["spectra"][layer]["exponent"] for r in group], 2)
            for layer in group[0]["spectra"]
        ]
        dimensions = [list(r["spectra"].values())[-1]["dimension_90"] for r in group]
        percentages = zip(*[_percentages(result) for result in group], strict=True)
        yield (
            *(architecture, name, len(group), ", ".join(exponents)),
            over_seeds(dimensions, 0),
            *(over_seeds(values, 1) for values in percentages),
        )


def _percentages(result):
    """Accuracies in per cent, in the order of the columns."""
    report = report_from_json(result["robustness"])
    shown = [result["test_accuracy"]]
    for attack, epsilon in (
        *(("fgsm", 0.05), ("fgsm", 0.1), ("pgd", 0.05), ("pgd", 0.1)),
        ("noise", max(report.epsilons)),
    ):
        shown.append(report.accuracy[attack][list(report.epsilons).index(epsilon)])
    return [100 * accuracy for accuracy in shown]
