"""Names of types that the signatures use."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    import keras

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
