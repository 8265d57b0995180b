"""Random inputs and labels, the forms in which `fit()` takes them, and reports."""

import keras
import numpy as np
from backend import tensorflow

import keras_powerlaw as kp


def gaussian(count, shape=(12,), classes=4, seed=0):
    """Standard normal float32 inputs, and labels that have nothing to do with them."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, *shape)).astype("float32")
    return x, rng.integers(classes, size=count)


class Batches(keras.utils.PyDataset):
    """Batches of `size` examples of some arrays; `delivered` has their indices."""

    def __init__(self, *arrays, size):
        super().__init__()
        self.arrays, self.size = arrays, size
        self.delivered = []

    def __len__(self):
        return -(-len(self.arrays[0]) // self.size)

    def __getitem__(self, index):
        self.delivered.append(index)
        rows = slice(index * self.size, (index + 1) * self.size)
        return tuple(array[rows] for array in self.arrays)


class Again:
    """Batches that can be iterated again, of which no one knows the number."""

    def __init__(self, *batches):
        self.batches, self.opened = batches, 0

    def __iter__(self):
        self.opened += 1
        yield from self.batches


def tf_dataset(*arrays, size):
    """The same batches as a `tf.data.Dataset`."""
    batches = tensorflow().data.Dataset.from_tensor_slices(arrays)
    return batches.batch(size)


def report_with(clean, *, epsilons=(0.1, 0.2), images=20, **accuracies):
    """A robustness report with these accuracies: the first images withstand most."""
    index = np.arange(images)
    return kp.RobustnessReport(
        epsilons=np.array(epsilons),
        clean_correct=index < round(clean * images),
        correct={
            attack: np.array([index < round(share * images) for share in shares])
            for attack, shares in accuracies.items()
        },
    )
