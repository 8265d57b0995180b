"""A sample of a data set that is read once, and used for several measurements."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_powerlaw.support.batches import (
    input_batches,
    is_nested_arrays,
    select_inputs,
)
from keras_powerlaw.support.memory import available_bytes

# The training needs memory as well.
SHARE_OF_MEMORY = 0.25


class EpochSample:
    """The same examples of a data set for all refreshes within an epoch.

    Nothing of arrays is kept: they are as quick to read anew. Nor is a sample of more
    than a quarter of the available memory, which is read at every refresh.

    A file written by `tf.data.Dataset.cache(filename)` is spoiled when a second
    iterator opens it before it is complete, and at the start of an epoch, `fit()` may
    already have an iterator open. Of such a data set, the sample that was read before
    training is kept to its end, whatever its size.
    """

    def __init__(self) -> None:
        self._sample: Any = None
        self._is_due = True

    def begin_epoch(self) -> None:
        """Lets the next `draw()` read anew."""
        self._is_due = True

    def draw(
        self, model: keras.Model, x: Any, max_samples: int | None, seed: int
    ) -> Any:
        """What to measure on: a kept sample of `x`, or `x` itself.

        Args:
            model: The model whose inputs are read.
            x: As in `input_batches()`.
            max_samples: As in `input_batches()`; with None, nothing is kept.
            seed: As in `input_batches()`.
        """
        if max_samples is None or is_nested_arrays(select_inputs(model, x)):
            return x
        once = _may_cache_to_file(x)
        if self._sample is None or (self._is_due and not once):
            self._sample = None  # frees its memory before the next one is read
            limit = None if once else available_bytes()
            batches, _ = input_batches(model, x, 1, max_samples, seed)
            kept = _keep(batches, None if limit is None else SHARE_OF_MEMORY * limit)
            self._sample = x if kept is None else kept
            self._is_due = False
        return self._sample


@dataclasses.dataclass(frozen=True)
class _Batches:
    """An iterable of batches, each of which holds inputs alone."""

    batches: list[tuple[Any]]

    def __iter__(self) -> Iterator[tuple[Any]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def _keep(batches: Iterable[Any], most_bytes: float | None) -> _Batches | None:
    """The batches, or None if they take more memory than `most_bytes`."""
    kept, size = [], 0
    for batch in batches:
        kept.append((batch,))
        size += sum(map(_bytes, keras.tree.flatten(batch)))
        if most_bytes is not None and size > most_bytes:
            return None
    return _Batches(kept)


def _bytes(array: Any) -> int:
    return int(np.asarray(ops.convert_to_numpy(array)).nbytes)


def _may_cache_to_file(data_set: Any) -> bool:
    """Whether a data set is, or is made from, a `tf.data.Dataset.cache(filename)`."""
    if not hasattr(data_set, "cardinality"):  # not a tf.data.Dataset
        return False
    # No public function tells what a tf.data.Dataset is made from.
    filename = getattr(data_set, "_filename", None)
    if filename is not None and filename != b"":
        return True
    inputs = getattr(data_set, "_inputs", None)
    return inputs is None or any(map(_may_cache_to_file, inputs()))
