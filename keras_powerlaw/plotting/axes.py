"""Helpers for all figures: axes, and the mean curve of several runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from keras_powerlaw.arguments import installation_command, invalid_value

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D


def as_list(value: Any) -> list[Any]:
    """Wraps a single run in a list; returns several runs as a list."""
    return list(value) if isinstance(value, list | tuple) else [value]


def validate_kind(argument: str, values: Any, kind: type, expected: str) -> None:
    """Raises a `ValueError` unless all `values` are of a kind."""
    for value in values:
        if not isinstance(value, kind):
            raise invalid_value(argument, expected, f"{value} (of type {type(value)})")


def validate_axes(argument: str, axes: Any) -> None:
    from matplotlib.axes import Axes

    validate_kind(argument, axes, Axes, "Matplotlib's `Axes`")


def plot_mean(
    ax: Axes,
    x: NDArray[Any],
    runs: NDArray[np.float64],
    transform: Callable[[NDArray[np.float64]], NDArray[np.float64]] = np.asarray,
    **line: Any,
) -> Line2D:
    """Plots the mean of several runs, with a band of ±1 sample standard deviation.

    Args:
        ax: The axes.
        x: Array of shape `(points,)`.
        runs: Array of shape `(runs, points)`.
        transform: Applied to the mean and the band before they are drawn.
        **line: Line properties of the mean.
    """
    mean = runs.mean(axis=0)
    (curve,) = ax.plot(x, transform(mean), **line)
    if len(runs) > 1:
        std = runs.std(axis=0, ddof=1)
        ax.fill_between(
            x,
            transform(mean - std),
            transform(mean + std),
            color=curve.get_color(),
            alpha=0.25,
            linewidth=0,
        )
    return curve


def new_axes(count: int = 1) -> NDArray[Any]:
    """A row of axes in a figure of their own, so that nothing else is drawn over."""
    size = (6.4, 4.8) if count == 1 else (2.4 * count, 2.8)
    figure = pyplot().figure(figsize=size, layout="constrained")
    axes: NDArray[Any] = figure.subplots(1, count, squeeze=False)[0]
    return axes


def pyplot() -> Any:
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            "Plotting needs Matplotlib. "
            f"Install it with: {installation_command('plots')}"
        ) from error
    return plt
