"""Arguments: their types, their validation, and the error for an invalid value.

Each `validate_…` function returns the value in the form that the package stores, or
raises a `ValueError`.
"""

from __future__ import annotations

import math
import os
import pathlib
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

import numpy as np

if TYPE_CHECKING:
    import keras

# `syevd` needs a work space of 1 + 6N + 2N² numbers, addressed with 32 bits.
MOST_UNITS = 32_766

Tensor: TypeAlias = Any
"""A tensor of the current Keras backend."""

Reduction: TypeAlias = Literal["flatten", "channels", "mean"]
"""How activations with positions become samples of units."""

Form: TypeAlias = Literal["nearest", "paper", "log"]
"""What the penalty sums over the eigenvalues."""

Verbose: TypeAlias = Literal["auto", 0, 1]
"""`"auto"` shows progress only when the work is slow."""

LayerChoice: TypeAlias = "keras.layers.Layer | str | type[keras.layers.Layer]"
"""A layer of a model, its name, or a class, for all layers of that class."""

ReportProgress: TypeAlias = Callable[[float], None]
"""Called with the fraction of the work that is done, from 0 to 1."""


def refuse_mask(argument: str, value: Any) -> None:
    """Raises a `ValueError` for a masked array, whose mask most functions ignore."""
    if np.ma.is_masked(value):
        raise invalid_value(
            argument,
            "an array without masked values: fill them, or leave their rows out",
            f"an array with {np.sum(value.mask)} masked values",
        )


def installation_command(extra: str) -> str:
    """The command that adds an extra of `setup.py` to the installed package.

    It works in any folder, after an installation from a clone too. The quotes are for
    zsh.
    """
    return f"pip install 'keras-powerlaw[{extra}]'"


def invalid_value(argument: str, expected: str, received: Any) -> ValueError:
    """The error for an argument that is not what was expected."""
    return ValueError(
        f"Invalid value for argument `{argument}`. Expected {expected}. "
        f"Received: {argument}={received}"
    )


def is_integer(value: Any) -> bool:
    """Whether `value` is a Python or NumPy integer, but not a boolean."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether `value` is a Python or NumPy real number, but not a boolean."""
    return isinstance(value, Real) and not isinstance(value, bool)


def is_finite_number(value: Any) -> bool:
    return is_number(value) and math.isfinite(value)


def validate_integer(argument: str, value: Any, minimum: int) -> int:
    if not is_integer(value) or value < minimum:
        raise invalid_value(argument, f"an integer of at least {minimum}", repr(value))
    return int(value)


def validate_optional_integer(argument: str, value: Any, minimum: int) -> int | None:
    if value is None:
        return None
    if not is_integer(value) or value < minimum:
        raise invalid_value(
            argument, f"None or an integer of at least {minimum}", repr(value)
        )
    return int(value)


def validate_intervals(
    every_epochs: Any, every_steps: Any
) -> tuple[int | None, int | None]:
    """Accepts at most one of the two."""
    epochs = validate_optional_integer("every_epochs", every_epochs, minimum=1)
    steps = validate_optional_integer("every_steps", every_steps, minimum=1)
    if epochs is not None and steps is not None:
        raise ValueError(
            "Give `every_epochs` or `every_steps`, not both. Received: "
            f"every_epochs={epochs}, every_steps={steps}"
        )
    return epochs, steps


def validate_number(argument: str, value: Any) -> float:
    """Accepts finite numbers of at least 0."""
    if not is_finite_number(value) or value < 0:
        raise invalid_value(argument, "a finite number of at least 0", repr(value))
    return float(value)


def validate_boolean(argument: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise invalid_value(argument, "a boolean", repr(value))
    return value


def validate_choice(argument: str, value: Any, choices: Sequence[str]) -> str:
    if not isinstance(value, str) or value not in choices:
        *others, last = map(repr, choices)
        raise invalid_value(argument, f"{', '.join(others)} or {last}", repr(value))
    return value


def validate_optional_path(argument: str, value: Any) -> pathlib.Path | None:
    if value is None:
        return None
    if not isinstance(value, str | os.PathLike):
        raise invalid_value(argument, "None or a path", repr(value))
    return pathlib.Path(value)


def require_memory(widths: Sequence[tuple[str, int]]) -> None:
    """Raises a `ValueError` if square matrices of these widths do not fit into memory.

    Sums, eigenvectors and basis exist for all of them at once, LAPACK's work space for
    one at a time.

    Args:
        widths: The name of each, of a layer for example, and its width.
    """
    installed = installed_memory()
    squares = [width**2 for _, width in widths]
    needed = 20 * sum(squares) + 20 * max(squares, default=0)
    widest = max((width for _, width in widths), default=0)
    if installed is not None and needed > installed:
        expected = f"at most {installed / 2**30:,.1f} GiB, the memory that is installed"
        received = f"about {needed / 2**30:,.1f} GiB"
    elif widest > MOST_UNITS:
        expected = f"at most {MOST_UNITS:,} units, the limit of LAPACK"
        received = f"{widest:,} units"
    else:
        return
    names = ", ".join(f"'{name}' ({width:,} units)" for name, width in widths)
    raise ValueError(
        f"Too wide for covariances and eigenvectors: {names}. Expected {expected}. "
        f"Received: {received}. Where the activity has positions (images, sequences), "
        'pass `reduction="channels"` or `reduction="mean"`, which make its channels '
        "the units; else choose a narrower layer, or fewer samples."
    )


def installed_memory() -> int | None:
    """In bytes, or None where the system does not tell."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def validate_verbose(verbose: Any) -> Verbose:
    # True and False pass as 1 and 0, as they do in `fit()`.
    if not isinstance(verbose, str | Integral) or verbose not in ("auto", 0, 1):
        raise invalid_value("verbose", '"auto", 0 or 1', repr(verbose))
    return cast(Verbose, verbose)
