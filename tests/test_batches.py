"""Data in the forms that `fit()` takes, as batches."""

import numpy as np
import pytest
from backend import to_numpy
from keras import ops

from keras_powerlaw.support.batches import input_batches


class OnDisk:
    """An array larger than the memory: single rows can be read, but not all of it."""

    def __init__(self, array):
        self.array = array
        self.shape, self.dtype, self.ndim = array.shape, array.dtype, array.ndim
        self.rows_read = 0

    def __len__(self):
        return len(self.array)

    def __getitem__(self, rows):
        found = self.array[rows]
        self.rows_read += len(found)
        return found

    def __array__(self, *_, **__):
        raise MemoryError


@pytest.fixture
def x():
    return np.arange(3000, dtype="float32").reshape(1000, 3)


@pytest.mark.parametrize("max_samples, read", [(None, 1000), (120, 120)])
def test_only_the_rows_of_the_sample_are_read(x, max_samples, read):
    on_disk = OnDisk(x)
    batches, count = input_batches(on_disk, 32, max_samples, seed=0)
    rows = np.concatenate(list(batches))
    assert len(rows) == on_disk.rows_read == read
    assert count == -(-read // 32)
    assert len(np.unique(rows[:, 0])) == read


def test_a_sample_is_the_same_of_an_array_and_a_tensor(x):
    samples = []
    for form in (x, ops.convert_to_tensor(x)):
        batches, _ = input_batches(form, 32, 100, seed=3)
        samples.append(np.concatenate([to_numpy(batch) for batch in batches]))
    np.testing.assert_array_equal(*samples)


def test_arrays_of_several_inputs_are_sampled_alike(x):
    batches, _ = input_batches({"one": x, "two": -x}, 32, 50, seed=0)
    for batch in batches:
        np.testing.assert_array_equal(batch["one"], -batch["two"])
