"""The window: the latest samples of a layer's activations in training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from keras_powerlaw.arguments import Tensor
from keras_powerlaw.backends import (
    discard_state,
    index_of_replica,
    parts_of_replicas,
    state_variable,
    write_rows,
)

# docs/theory.md, "The refresh", says what more and fewer do to the eigenvectors.
SAMPLES_PER_UNIT = 2
FEWEST_SAMPLES = 1000
# The samples of one batch fill at most this share of the window: they are not
# independent where a layer's positions are samples.
SHARE_OF_A_BATCH = 1 / 4


class ActivationWindow:
    """The latest samples of a layer's activations in training, in float32.

    Training steps write them, the oldest are overwritten first. Each replica of a
    `tf.distribute` strategy keeps those of its share of the batches.

    Args:
        layer: The Keras layer whose state the window is.
        replicas: The number of replicas.
    """

    def __init__(self, layer: keras.layers.Layer, replicas: int) -> None:
        self._layer = layer
        self._replicas = replicas
        self.needed = 0  # the number of samples that are enough for a basis
        self._state: dict[str, keras.Variable] = {}

    def open(self, units: int) -> None:
        """Creates the variables, for activations of `units` units."""
        self.needed = SAMPLES_PER_UNIT * units
        kept = -(-max(self.needed, FEWEST_SAMPLES) // self._replicas)
        self._most = max(1, int(kept * SHARE_OF_A_BATCH))
        self._capacity = kept + self._most  # batches are written in one piece
        self._spacing = _spacing(self._most)
        shapes = {
            "window": ((self._capacity, units), "float32"),
            # Like the optimizer's iterations: TensorFlow has no int32 on a GPU.
            "next_row": ((), "int"),
            "filled": ((), "int"),
        }
        self._state = {
            name: state_variable(
                self._layer, name, shape, dtype, synchronization="on_read"
            )
            for name, (shape, dtype) in shapes.items()
        }

    @property
    def is_open(self) -> bool:
        """Whether there are variables to write to."""
        return bool(self._state)

    @property
    def is_filled(self) -> bool:
        """Whether there are enough samples for a basis."""
        return self.is_open and self.count >= self.needed

    def write(self, samples: Tensor) -> None:
        """Adds a batch of samples, `(batch, units)`, or an even choice among many."""
        window, next_row, filled = (
            parts_of_replicas(variable)[index_of_replica()]
            for variable in self._state.values()
        )
        samples = self._evenly_chosen(samples)
        # What does not fit at the end goes to the beginning.
        start = ops.convert_to_tensor(next_row)
        count = ops.cast(ops.shape(samples)[0], start.dtype)
        start = ops.where(start + count > self._capacity, 0, start)
        write_rows(window, samples, start)
        next_row.assign(start + count)
        filled.assign(ops.maximum(ops.convert_to_tensor(filled), start + count))

    @property
    def count(self) -> int:
        """The number of samples in the window."""
        if not self.is_open:
            return 0
        return sum(map(int, parts_of_replicas(self._state["filled"])))

    def samples(self) -> Tensor:
        """All samples in the window, `(count, units)`, where the activations are."""
        parts = zip(
            parts_of_replicas(self._state["window"]),
            parts_of_replicas(self._state["filled"]),
            strict=True,
        )
        samples = [
            ops.convert_to_tensor(window)[: int(filled)] for window, filled in parts
        ]
        return samples[0] if len(samples) == 1 else ops.concatenate(samples)

    def close(self) -> None:
        """Removes the variables."""
        for name in self._state:
            discard_state(self._layer, name)
        self._state = {}

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """The state of the window, for a backup."""
        return {
            f"{name}_{index}": np.array(ops.convert_to_numpy(part))
            for name, variable in self._state.items()
            for index, part in enumerate(parts_of_replicas(variable))
        }

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Takes over a state that `to_arrays()` returned."""
        for name, variable in self._state.items():
            for index, part in enumerate(parts_of_replicas(variable)):
                part.assign(arrays[f"{name}_{index}"])

    def _evenly_chosen(self, samples: Tensor) -> Tensor:
        count = ops.shape(samples)[0]
        if isinstance(count, int):
            if count <= self._most:
                return samples
            chosen, spread = self._most, count / self._most
        else:  # a tensor: TensorFlow knows it only in the step
            chosen = ops.minimum(count, self._most)
            spread = ops.cast(count / chosen, "float32")
        places = ops.convert_to_tensor(self._spacing)[:chosen] * spread
        places = ops.minimum(ops.cast(places, "int32"), count - 1)
        return ops.take(samples, places, axis=0)


def _spacing(count: int) -> NDArray[np.float32]:
    """One point in each of `count` intervals of length 1, not all at the same place.

    Equally spaced samples could all belong to the same column of the feature maps.
    """
    places = np.random.default_rng(0).uniform(0.05, 0.95, count)
    spacing: NDArray[np.float32] = (np.arange(count) + places).astype("float32")
    return spacing
