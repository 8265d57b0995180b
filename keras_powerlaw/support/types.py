"""Names for types that have none of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

# A tensor of whichever backend Keras runs on.
Tensor: TypeAlias = Any

# What the units of activations with positions are; see `support/units.py`.
Reduction: TypeAlias = Literal["flatten", "channels", "mean"]

# "auto" shows progress once the work turns out to be slow.
Verbose: TypeAlias = Literal["auto", 0, 1]

# Reports how far a piece of work has come, from 0 to 1.
ReportProgress: TypeAlias = Callable[[float], None]
