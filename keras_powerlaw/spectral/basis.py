"""The eigenbasis of a regularized layer: derived state that a refresh renews."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from keras_powerlaw.support.keras_internals import retrace, strategy_of


class Eigenbasis:
    """Eigenvectors of a layer's covariance, absent until the first refresh.

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

    def renew(self, eigenvectors: NDArray[np.floating]) -> None:
        """Stores the needed eigenvectors, given all of them.

        Args:
            eigenvectors: Array of shape `(units, units)`, one eigenvector per column,
                sorted by eigenvalue, largest first.
        """
        self.assign(eigenvectors[:, self._first - 1 :])

    def assign(self, needed: NDArray[np.floating]) -> None:
        """Stores the needed eigenvectors, in the form that `to_float32()` returns."""
        if self.variable is None:
            self.variable = keras.Variable(
                "zeros",
                shape=needed.shape,
                dtype=self._dtype or product_dtype(len(needed)),
                trainable=False,
                autocast=False,
                name="basis",
            )
            if keras.backend.backend() != "tensorflow":
                # An attribute of the layer is tracked; JAX's training step treats
                # untracked variables as constants. TensorFlow does not need this, and
                # without it the basis stays out of exported graphs.
                self._layer.tracked_basis = self.variable
        self.variable.assign(needed)

    def to_float32(self) -> NDArray[np.float32]:
        array: NDArray[np.float32] = ops.convert_to_numpy(
            ops.cast(self.variable, "float32")
        )
        return array


@contextlib.contextmanager
def renewing(model: keras.Model, bases: Sequence[Eigenbasis]) -> Iterator[None]:
    """Allows bases of `model` to get their first eigenvectors within this context."""
    first_time = any(basis.variable is None for basis in bases)
    strategy = strategy_of(model)
    # Under `tf.distribute`, a basis is created on every replica, like the weights.
    with strategy.scope() if strategy is not None else contextlib.nullcontext():
        yield
    if first_time and model.compiled:
        retrace(model)  # functions traced without a basis do not contain the penalty


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
        and "cpu" in str(ops.zeros(()).device).lower()
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
