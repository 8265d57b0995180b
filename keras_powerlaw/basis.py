"""What a regularized layer keeps: its eigenbasis, and the samples for the next one.

Both are derived state: in no file, absent until training begins or the first refresh.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from keras_powerlaw.arguments import Tensor
from keras_powerlaw.backends import (
    discard_state,
    index_of_replica,
    is_on_host,
    of_first_process,
    parts_of_replicas,
    state_variable,
    write_rows,
)
from keras_powerlaw.keras_internals import retrace, strategy_of
from keras_powerlaw.penalty import direction_groups

# A penalty under which a layer loses its directions yields by this factor, …
YIELDING = 0.1
# … and comes back by this one with every refresh that finds enough of them again.
RETURNING = 2.0

# docs/theory.md, "The refresh", says what more and fewer do to the eigenvectors.
SAMPLES_PER_UNIT = 2
FEWEST_SAMPLES = 1000
# The samples of one batch fill at most this share of the window: they are not
# independent where a layer's positions are samples.
SHARE_OF_A_BATCH = 1 / 4


class Eigenbasis:
    """Eigenvectors v_τ … v_N of a layer's covariance, and what goes with them.

    Args:
        layer: The Keras layer whose state they are.
        first: The 1-based index τ.
        always: The number of directions, v_τ first, that no step leaves out.

    Attributes:
        status: `"absent"`: there is nothing, and a training step without it is an
            error. `"waiting"`: there is room for the eigenvectors, zeros, along which
            there is no variance, and so no penalty. `"known"`: a refresh has found
            them.
        share: Variable: λ_τ / Σₙ λₙ over n ≥ τ, or None.
        strength: Variable: the factor to which the penalty has yielded, or None.
        yielded_to: Its value, which on JAX can't be read within `fit()`.
        window: The latest samples in training, or None if they are not kept.
        validation: Likewise, of the latest validation.
    """

    def __init__(self, layer: keras.layers.Layer, first: int, always: int = 0) -> None:
        self._layer = layer
        self._first = first
        self._always = always
        self.window: ActivationWindow | None = None
        self.validation: ActivationWindow | None = None
        self._forget_vectors()

    def _forget_vectors(self) -> None:
        self.status: Literal["absent", "waiting", "known"] = "absent"
        self._columns: Any = None
        self.share: Any = None
        self.strength: Any = None
        self._steps: Any = None
        self.yielded_to = 1.0

    @property
    def vectors(self) -> Tensor | None:
        """v_τ … v_N in columns, `(units, units − τ + 1)`, or None if absent."""
        if self.status == "absent" or len(self._groups) == 1:
            return self._columns
        return ops.take(self._columns, np.argsort(self._order), axis=1)

    def make_room(self, units: int) -> None:
        """Creates the variables, if they are absent."""
        if self.status != "absent":
            return
        shape = (units, units - self._first + 1)
        dtype = product_dtype(units)
        self._every_step, self._groups = direction_groups(shape[1], self._always)
        self._order = np.append(np.arange(self._every_step), self._groups)
        self._steps = state_variable(
            self._layer, "steps", (), "int", synchronization="on_read"
        )
        # The columns of every step come first, then group after group.
        self._columns = state_variable(self._layer, "basis", shape, dtype)
        self.share = state_variable(self._layer, "share", (), "float32")
        self.strength = state_variable(self._layer, "strength", (), "float32", "ones")
        self.status = "waiting"

    def renew(self, eigenvectors: Any, eigenvalues: Any) -> None:
        """Takes over what a refresh has found.

        Args:
            eigenvectors: Array or tensor of shape `(units, units)`, one eigenvector per
                column, sorted by eigenvalue, largest first.
            eigenvalues: Array of shape `(units,)`.
        """
        tail = eigenvalues[self._first - 1 :]
        share = float(tail[0] / max(float(np.sum(tail)), 1e-30))
        strength = min(1.0, RETURNING * self.yielded_to)
        self.assign(eigenvectors[:, self._first - 1 :], share, strength)

    def assign(self, vectors: Any, share: float, strength: float) -> None:
        """Stores v_τ … v_N, share and strength."""
        self.make_room(vectors.shape[0])
        for variable, value in (
            (self._columns, ops.take(vectors, self._order, axis=1)),
            (self.share, np.float32(share)),
            (self.strength, np.float32(strength)),
        ):
            variable.assign(of_first_process(value, variable))
        self.yielded_to = strength
        self.status = "known"

    def count_step(self) -> Tensor:
        """The number of training steps before this one, which is counted."""
        step = ops.convert_to_tensor(self._steps)
        self._steps.assign(step + 1)
        return step

    def directions(self, step: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """The directions that a training step uses.

        Args:
            step: The number of steps before it, or None for all directions.

        Returns:
            Directions in columns, the 0-based index n − τ of each, and how many
            directions each one stands for.
        """
        groups, size = self._groups.shape
        if step is None or groups == 1:
            return self._columns, self._order, ops.ones(len(self._order), "float32")
        every, turn = self._every_step, step % groups
        columns = ops.convert_to_tensor(self._columns)
        start = ops.stack([ops.zeros_like(turn), every + turn * size])
        group = ops.slice(columns, start, (columns.shape[0], size))
        directions = ops.concatenate([columns[:, :every], group], axis=1)
        indices = ops.take(ops.convert_to_tensor(self._groups), turn, axis=0)
        indices = ops.append(ops.arange(every, dtype=indices.dtype), indices)
        weights = np.repeat([1.0, groups], [every, size])
        return directions, indices, ops.convert_to_tensor(weights, "float32")

    def weaken(self) -> None:
        """Lets the penalty yield."""
        self.yielded_to *= YIELDING
        value = of_first_process(np.float32(self.yielded_to), self.strength)
        self.strength.assign(value)

    def keep_samples(self, units: int | None, replicas: int) -> None:
        """Makes training steps keep their latest activations.

        Args:
            units: Number of units, or None if the first training step finds it out.
            replicas: Number of replicas that train.
        """
        if self.window is None:
            self.window = ActivationWindow(self._layer, replicas)
        if units is not None:
            self._open(self.window, units)

    def keep_validation(self, units: int, replicas: int) -> None:
        """Makes calls in inference mode keep their latest activations, from none on."""
        if self.validation is None:
            self.validation = ActivationWindow(self._layer, replicas, "validation_")
            self._open(self.validation, units)
        self.validation.clear()

    def write(self, samples: Tensor, training: bool = True) -> None:
        """Keeps the samples of a step, if they are kept at all."""
        window = self.window if training else self.validation
        if window is not None:
            self._open(window, samples.shape[1])
            window.write(samples)

    def _open(self, window: ActivationWindow, units: int) -> None:
        self.make_room(units)  # now: a compiled step can't get it later
        window.open(units)

    def discard(self) -> None:
        """Forgets eigenvectors and samples, and keeps no more of these."""
        if self.window is not None:
            self.window.close()
            self.window = None
        if self.validation is not None:
            self.validation.close()
            self.validation = None
        for name in ("basis", "share", "strength", "steps"):
            discard_state(self._layer, name)
        self._forget_vectors()

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """All that is kept, for a backup."""
        arrays = {} if self.window is None else self.window.to_arrays()
        if self.status == "known":
            for name in ("vectors", "share", "strength"):
                value = ops.cast(getattr(self, name), "float32")
                arrays[name] = ops.convert_to_numpy(value)
        if self.status != "absent":
            steps = parts_of_replicas(self._steps)
            arrays["steps"] = np.array([int(part) for part in steps])
        return arrays

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Takes over what `to_arrays()` returned."""
        if "vectors" in arrays:
            share, strength = (float(arrays[name]) for name in ("share", "strength"))
            self.assign(arrays["vectors"], share, strength)
        if "steps" in arrays and self.status != "absent":
            parts = parts_of_replicas(self._steps)
            for part, steps in zip(parts, arrays["steps"], strict=True):
                part.assign(steps)
        if self.window is not None:
            self.window.restore(arrays)


class ActivationWindow:
    """The latest samples of a layer's activations in training, in float32.

    Training steps write them, the oldest are overwritten first. Each replica of a
    `tf.distribute` strategy keeps those of its share of the batches.

    Args:
        layer: The Keras layer whose state the window is.
        replicas: The number of replicas.
        prefix: Of the names of its variables.
    """

    def __init__(
        self, layer: keras.layers.Layer, replicas: int, prefix: str = ""
    ) -> None:
        self._layer = layer
        self._prefix = prefix
        self._replicas = replicas
        self.needed = 0  # the number of samples that are enough for a basis
        self._state: dict[str, keras.Variable] = {}

    def open(self, units: int) -> None:
        """Creates the variables, for `units` units, if there are none."""
        if self._state:
            return
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
                *(self._layer, self._prefix + name, shape, dtype),
                synchronization="on_read",
            )
            for name, (shape, dtype) in shapes.items()
        }

    @property
    def is_filled(self) -> bool:
        """Whether there are enough samples for a basis."""
        return bool(self._state) and self.count >= self.needed

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
        if not self._state:
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

    def clear(self) -> None:
        """Forgets the samples."""
        for name in set(self._state) - {"window"}:
            for part in parts_of_replicas(self._state[name]):
                part.assign(0)

    def close(self) -> None:
        """Removes the variables."""
        for name in self._state:
            discard_state(self._layer, self._prefix + name)
        self._state = {}

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        return {
            name: np.array(ops.convert_to_numpy(part))
            for name, part in self._parts().items()
        }

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        for name, part in self._parts().items():
            part.assign(arrays[name])

    def _parts(self) -> dict[str, Any]:
        """What each replica holds, by name."""
        return {
            f"{name}_{index}": part
            for name, variable in self._state.items()
            for index, part in enumerate(parts_of_replicas(variable))
        }

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


@contextlib.contextmanager
def creating_state(model: keras.Model, is_new: bool = True) -> Iterator[None]:
    """Allows bases and windows of `model` to be created or removed in this context.

    Args:
        model: The model.
        is_new: Whether any of them will be. Defaults to `True`.
    """
    strategy = strategy_of(model)
    # Under `tf.distribute`, a basis is created on every replica, like the weights.
    with strategy.scope() if strategy is not None else contextlib.nullcontext():
        yield
    if is_new:
        retrace(model)  # functions traced without them would not use them


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
