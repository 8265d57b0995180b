"""The eigenbasis of a regularized layer: derived state that a refresh renews."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from keras_powerlaw.backends import (
    discard_state,
    is_on_host,
    of_first_process,
    state_variable,
)
from keras_powerlaw.keras_internals import retrace, strategy_of

# A penalty under which a layer loses its directions yields by this factor, …
YIELDING = 0.1
# … and comes back by this one with every refresh that finds enough of them again.
RETURNING = 2.0


class Eigenbasis:
    """Eigenvectors of a layer's covariance, and what goes with them.

    That is `share`, the share of λ_τ in the spectrum, and `strength`, the factor to
    which the penalty has yielded, 1 if it has not.

    They are absent until the first refresh. `prepare()` makes room for them before
    they are known: zeros, along which there is no variance, and so no penalty.

    Args:
        layer: The Keras layer that uses them.
        first: 1-based index of the first eigenvector that is needed.
        dtype: Dtype in which they are stored. Defaults to `product_dtype(units)`.
    """

    def __init__(
        self, layer: keras.layers.Layer, first: int, dtype: str | None = None
    ) -> None:
        self._layer = layer
        self._first = first
        self._dtype = dtype
        self.variable: keras.Variable | None = None
        self.share: keras.Variable | None = None
        self.strength: keras.Variable | None = None
        # The value of `strength`, which on JAX can't be read within `fit()`.
        self.yielded_to = 1.0
        self.is_known = False

    def prepare(
        self, units: int
    ) -> tuple[keras.Variable, keras.Variable, keras.Variable]:
        """Returns basis, share and strength, created if there are none."""
        if self.variable is None or self.share is None or self.strength is None:
            shape = (units, units - self._first + 1)
            dtype = self._dtype or product_dtype(units)
            self.variable = state_variable(self._layer, "basis", shape, dtype)
            self.share = state_variable(self._layer, "share", (), "float32")
            self.strength = state_variable(
                self._layer, "strength", (), "float32", initializer="ones"
            )
        return self.variable, self.share, self.strength

    def renew(self, eigenvectors: Any, eigenvalues: Any = None) -> None:
        """Stores the needed eigenvectors, and λ_τ / Σₙ λₙ over n ≥ τ.

        Args:
            eigenvectors: Array or tensor of shape `(units, units)`, one eigenvector per
                column, sorted by eigenvalue, largest first.
            eigenvalues: Array of shape `(units,)`. Defaults to `None`: unknown.
        """
        share = (
            0.0
            if eigenvalues is None
            else share_of_first(eigenvalues[self._first - 1 :])
        )
        strength = min(1.0, RETURNING * self.yielded_to)
        self.assign(eigenvectors[:, self._first - 1 :], share, strength)

    def assign(self, needed: Any, share: float, strength: float) -> None:
        """Stores the needed eigenvectors, as of `to_float32()`, share and strength."""
        variables = self.prepare(needed.shape[0])
        values = (needed, np.float32(share), np.float32(strength))
        for variable, value in zip(variables, values, strict=True):
            variable.assign(of_first_process(value, variable))
        self.yielded_to = strength
        self.is_known = True

    def weaken(self) -> None:
        """Lets the penalty yield."""
        self.yielded_to *= YIELDING
        if self.strength is not None:
            value = of_first_process(np.float32(self.yielded_to), self.strength)
            self.strength.assign(value)

    def discard(self) -> None:
        """Removes the variables: the eigenbasis is absent again."""
        discard_state(self._layer, "basis")
        discard_state(self._layer, "share")
        discard_state(self._layer, "strength")
        self.variable = self.share = self.strength = None
        self.yielded_to = 1.0
        self.is_known = False

    def share_to_float(self) -> float:
        return float(ops.convert_to_numpy(ops.cast(self.share, "float32")))

    def to_float32(self) -> NDArray[np.float32]:
        array: NDArray[np.float32] = ops.convert_to_numpy(
            ops.cast(self.variable, "float32")
        )
        return array


def share_of_first(tail: Any) -> float:
    """λ_τ / Σₙ λₙ of the eigenvalues λ_τ … λ_N."""
    return float(tail[0] / max(float(np.sum(tail)), 1e-30))


@contextlib.contextmanager
def creating_state(model: keras.Model, is_new: bool) -> Iterator[None]:
    """Allows bases and windows of `model` to be created within this context.

    Args:
        model: The model.
        is_new: Whether any of them will be.
    """
    strategy = strategy_of(model)
    # Under `tf.distribute`, a basis is created on every replica, like the weights.
    with strategy.scope() if strategy is not None else contextlib.nullcontext():
        yield
    if is_new and model.compiled:
        retrace(model)  # functions traced without them would not use them


def renewing(
    model: keras.Model, bases: Sequence[Eigenbasis]
) -> contextlib.AbstractContextManager[None]:
    """Allows bases of `model` to get their first eigenvectors within this context."""
    return creating_state(model, any(basis.variable is None for basis in bases))


def product_dtype(units: int) -> str:
    """The dtype of a basis of `units` units, and of the products with it.

    Rounding to bfloat16 changes a variance by 1e-3 of itself and 2e-5 of the units'
    mean variance; its sampling error in a batch of B examples is √(2/B) of itself.
    bfloat16 is used where it was measured to be twice as fast as float32: on processors
    with instructions for it, for products large enough to matter.
    """
    if (
        units >= 512
        and keras.backend.backend() in ("tensorflow", "torch")
        and is_on_host(ops.zeros(()))
        and _processor_has_bfloat16()
    ):
        return "bfloat16"
    return "float32"


@functools.cache
def _processor_has_bfloat16() -> bool:
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:  # not Linux
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags
