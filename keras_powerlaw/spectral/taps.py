"""The activations of a layer without a regularizer, kept by the training steps."""

from __future__ import annotations

import functools
import types
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from keras_powerlaw.arguments import Reduction, Tensor
from keras_powerlaw.spectral.window import (
    FEWEST_SAMPLES,
    SAMPLES_PER_UNIT,
    ActivationWindow,
)
from keras_powerlaw.units import to_samples


class ActivationTap:
    """Keeps the latest activations of a built layer while it trains.

    A built layer takes no new state, and what its configuration knows would be saved
    with the model. So its `call()` is what is replaced, in this one object.

    Args:
        layer: The Keras layer.
        reduction: How its activations become samples of units.
    """

    def __init__(self, layer: keras.layers.Layer, reduction: Reduction) -> None:
        self._layer = layer
        self._recorder = _Recorder(reduction)

    def open(self) -> None:
        """Begins to record, in steps that are traced from now on."""
        call, recorder = self._layer.call, self._recorder

        @functools.wraps(call)
        def recorded(*args: Any, **kwargs: Any) -> Any:
            output = call(*args, **kwargs)
            recorder(output)
            return output

        # Bypasses Keras's tracking, which rejects changes to a built layer.
        vars(self._layer)["call"] = recorded

    def close(self) -> None:
        """Leaves the layer as it was; steps have to be traced anew."""
        vars(self._layer).pop("call", None)

    def samples(self) -> NDArray[np.float32] | None:
        """The latest samples, `(count, units)`, or None if they are too few."""
        window = self._recorder.window
        if not window.is_filled:
            return None
        samples: NDArray[np.float32] = np.array(ops.convert_to_numpy(window.samples()))
        return samples


class _Recorder(keras.layers.Layer):  # type: ignore[misc]
    """A layer for Keras to tell whether it trains; no model knows of it."""

    def __init__(self, reduction: Reduction) -> None:
        super().__init__(dtype="float32", autocast=False)
        self.supports_masking = True  # which it ignores
        self._reduction = reduction
        on_jax = keras.backend.backend() == "jax"
        # Its state belongs to no layer: this one is locked once it has been called.
        self.window = (
            _HostWindow() if on_jax else ActivationWindow(types.SimpleNamespace(), 1)
        )

    def call(self, activity: Tensor, training: bool | None = None) -> Tensor:
        if training:
            activity = ops.stop_gradient(activity)
            samples = ops.cast(to_samples(activity, self._reduction), "float32")
            if not self.window.is_open:
                self.window.open(samples.shape[1])
            self.window.write(samples)
        return ops.zeros(())


class _HostWindow:
    """An `ActivationWindow` in NumPy, for JAX, whose steps change no foreign state."""

    def __init__(self) -> None:
        self.is_open = False
        self._batches: list[NDArray[np.float32]] = []

    def open(self, units: int) -> None:
        self.needed = SAMPLES_PER_UNIT * units
        self._kept = max(self.needed, FEWEST_SAMPLES)
        self.is_open = True

    def write(self, samples: Tensor) -> None:
        import jax

        jax.debug.callback(self._append, samples)

    def _append(self, samples: Any) -> None:
        batch = np.array(samples)
        # As there: one batch is at most a quarter of what is kept.
        step = max(1, -(-4 * len(batch) // self._kept))
        self._batches.append(batch[::step])
        count = sum(map(len, self._batches))
        while count - len(self._batches[0]) >= self._kept:
            count -= len(self._batches.pop(0))

    @property
    def is_filled(self) -> bool:
        import jax

        jax.effects_barrier()
        return self.is_open and sum(map(len, self._batches)) >= self.needed

    def samples(self) -> NDArray[np.float32]:
        return np.concatenate(self._batches)
