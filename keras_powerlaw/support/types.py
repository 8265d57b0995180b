"""Type aliases."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

# A tensor of the current Keras backend.
Tensor: TypeAlias = Any

# How activations with positions become samples of units; see `support/units.py`.
Reduction: TypeAlias = Literal["flatten", "channels", "mean"]

# What the penalty sums over the eigenvalues; see `spectral/penalty.py`.
Form: TypeAlias = Literal["nearest", "paper", "log"]

# "auto" shows progress only when the work is slow.
Verbose: TypeAlias = Literal["auto", 0, 1]

# Called with the fraction of the work that is done, from 0 to 1.
ReportProgress: TypeAlias = Callable[[float], None]
