"""Tables of accuracies, as text and in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray


def text_table(
    epsilons: NDArray[np.float64], columns: Mapping[str, list[str]]
) -> list[str]:
    """Lines of a table: header, row of the clean images, one row per epsilon."""
    labels = ["   epsilon", "     clean", *(f"{epsilon:>10g}" for epsilon in epsilons)]
    for name, cells in columns.items():
        width = max(8, *(len(cell) + 3 for cell in (name, *cells)))
        labels = [
            label + f"{cell:>{width}}"
            for label, cell in zip(labels, (name, *cells), strict=True)
        ]
    return labels


def markdown_table(
    epsilons: NDArray[np.float64], columns: Mapping[str, Sequence[str]]
) -> str:
    """The same table in Markdown."""
    rows = [["ε", *columns], ["---"] * (len(columns) + 1)]
    labels = ["clean", *(f"{epsilon:g}" for epsilon in epsilons)]
    rows += [list(row) for row in zip(labels, *columns.values(), strict=True)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
