"""The eigenbasis of a regularized layer: derived state, which a refresh renews."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from keras_powerlaw.support.keras_internals import retrace


class Eigenbasis:
    """Eigenvectors of a layer's covariance, absent until the first refresh.

    Args:
        layer: The Keras layer that uses them.
        first: 1-based index of the first eigenvector that is needed.
        dtype: The dtype to keep them in. Defaults to `product_dtype(units)`.
    """

    def __init__(
        self, layer: keras.layers.Layer, first: int, dtype: str | None = None
    ) -> None:
        self._layer = layer
        self._first = first
        self._dtype = dtype
        self.variable: keras.Variable | None = None

    def renew(self, eigenvectors: NDArray[np.floating]) -> None:
        """Takes what is needed of all eigenvectors.

        Args:
            eigenvectors: Array of shape `(units, units)`, one eigenvector per column,
                sorted by eigenvalue, largest first.
        """
        self.assign(eigenvectors[:, self._first - 1 :])

    def assign(self, needed: NDArray[np.floating]) -> None:
        """Takes the needed eigenvectors, as `to_float32()` returns them."""
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
                # As an attribute of the layer it is tracked: to JAX's training step,
                # other variables are constants. TensorFlow does without, and so keeps
                # it out of exported graphs.
                self._layer.tracked_basis = self.variable
        self.variable.assign(needed)

    def to_float32(self) -> NDArray[np.float32]:
        array: NDArray[np.float32] = ops.convert_to_numpy(
            ops.cast(self.variable, "float32")
        )
        return array


@contextlib.contextmanager
def renewing(model: keras.Model, bases: Sequence[Eigenbasis]) -> Iterator[None]:
    """Within this context, bases of `model` can be given their first eigenvectors."""
    first_time = any(basis.variable is None for basis in bases)
    strategy = getattr(model, "distribute_strategy", None)
    # Under `tf.distribute`, on every replica, as the model's other variables are.
    with strategy.scope() if strategy is not None else contextlib.nullcontext():
        yield
    if first_time and model.compiled:
        retrace(model)  # functions traced before have left the penalty out


def product_dtype(units: int) -> str:
    """The dtype of a basis of `units` units, and of the products with it.

    The 8 significant bits of bfloat16 change a variance by 1e-3 of itself and 2e-5 of
    the units' mean variance, where the sampling error in a batch of B examples is
    √(2/B) of itself. It is taken where it was measured to be twice as fast as float32:
    on processors with instructions for it, for products large enough to matter.
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
