"""Prints every table of docs/results.md, and draws its figures, from stored results.

    python -m research.results                            # the tables
    python -m research.results --draw docs/results        # and the figures
    python -m research.results --results results/matched  # those of your own runs
    python -m research.results --add results/matched      # puts them into the table

`table` says what is stored, `printed` and `figures` what is shown of it.
"""

import argparse
import pathlib

from . import comparisons, figures, table
from .conditions import CONDITIONS, DEEP, PENALTIES, SHALLOW, penalty_of
from .printed import (
    control_rows,
    exponent_rows,
    matched_rows,
    network_rows,
    print_rows,
    taper_rows,
    width_rows,
)
from .settings import grouped

STORED = pathlib.Path("docs/results")
DATASETS = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST", "digits": "digits"}


def paper_tables(results):
    """Yields titles and rows: of one hidden layer, of each deep network, tapered."""
    for architectures in (SHALLOW, *((deep,) for deep in DEEP)):
        found = [r for r in results if r["settings"]["architecture"] in architectures]
        if found:
            yield ", ".join(architectures), network_rows(found)
    for architecture in DEEP:
        found = figures.compared(results, architecture, figures.TAPERED)
        if figures.has(found, "tapered"):
            rows = taper_rows(figures.best(found))
            yield f"{architecture}, exponents that fall with depth", rows


def matched_tables(results):
    tested = [r for r in results if r["settings"]["variant"].endswith("-tested")]
    for architecture, found in grouped(tested, lambda s: s["architecture"]).items():
        yield architecture, matched_rows(found)


def exponent_tables(results):
    dataset = DATASETS[results[0]["settings"]["dataset"]]
    yield "exponents", exponent_rows(results, dataset)


def control_tables(results):
    dataset = DATASETS[results[0]["settings"]["dataset"]]
    yield "controls", control_rows(results, dataset)


def width_tables(results):
    yield "widths", width_rows(results)


# Of each experiment: its tables, its figures, and the settings by which both are
# ordered. Any other name is that of a preset with the paper's networks.
SHOWN = {
    "matched": (matched_tables, comparisons.matched, ()),
    "exponents": (exponent_tables, comparisons.exponents, ("alpha",)),
    "controls": (control_tables, comparisons.controls, ("alpha",)),
    "widths": (width_tables, comparisons.widths, ("width", "batch_size")),
}
PAPER = (paper_tables, figures.paper, ())


def in_order(results, keys):
    """Results as tables list them, in whatever order they were trained."""

    def place(result):
        settings = result["settings"]
        penalty = penalty_of(settings)
        return (
            (*SHALLOW, *DEEP).index(settings["architecture"]),
            [settings[key] or 0 for key in keys],
            list(CONDITIONS).index(settings["condition"]),
            list(PENALTIES).index(penalty) if penalty in PENALTIES else 0,
            *(settings["beta"] or 0, settings["seed"]),
        )

    return sorted(results, key=place)


def show(results, draw=None):
    """Prints the tables of results and, with a folder, draws their figures into it."""
    groups = {}
    for result in results:
        key = result["experiment"], result["settings"]["dataset"]
        groups.setdefault(key, []).append(result)
    for (experiment, dataset), found in groups.items():
        tables, drawn, keys = SHOWN.get(experiment, PAPER)
        found = in_order(found, keys)
        for title, rows in tables(found):
            print(f"\n{experiment}, {dataset}: {title}\n")
            print_rows(rows)
        for name, figure in drawn(found) if draw else ():
            path = draw / experiment / f"{dataset}-{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, dpi=120)


def add(results, folder):
    """Puts results into a folder's table, in place of those of the same names."""
    stored = {table.name_of(r): r for r in table.load(folder)}
    table.save([*(stored | {table.name_of(r): r for r in results}).values()], folder)


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    option = parser.add_argument
    option("--results", type=pathlib.Path, default=STORED)
    option("--draw", type=pathlib.Path, help="draw the figures into this folder")
    option("--add", type=pathlib.Path, help="add the runs of this folder to the table")
    args = parser.parse_args(argv)
    if args.add:
        add(table.load(args.add), args.results)
    results = table.load(args.results)
    if not results:
        raise SystemExit(f"--results must be a folder of results, got {args.results}.")
    show(results, args.draw)


if __name__ == "__main__":
    main()
