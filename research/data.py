"""The data sets, as arrays with pixels in [0, 1]."""

import importlib.util

import keras
import numpy as np

DATASETS = ("mnist", "fashion_mnist", "digits")


def load(name, path=None):
    """Training and test images, float32 `(images, height, width, 1)`, and labels.

    Args:
        name: `"mnist"` or `"fashion_mnist"`, or `"digits"`: scikit-learn's 1,797 digits
            of 8×8 pixels, which need no download; every fifth is a test image.
        path: An `.npz` file like Keras's `mnist.npz`, or the folder of
            tensorflow-datasets. Without it, tensorflow-datasets looks in its own folder
            (the environment variable `TFDS_DATA_DIR`, or `~/tensorflow_datasets`) if it
            and TensorFlow are installed; if not, `keras.datasets` downloads the file.

    Returns:
        `(x_train, y_train), (x_test, y_test)`.
    """
    if name == "digits":
        from sklearn.datasets import load_digits

        data = load_digits()
        x = (data.images[..., np.newaxis] / 16).astype("float32")
        test = np.arange(len(x)) % 5 == 4
        return (x[~test], data.target[~test]), (x[test], data.target[test])

    if path and str(path).endswith(".npz"):
        with np.load(path) as file:
            splits = [(file[f"x_{s}"], file[f"y_{s}"]) for s in ("train", "test")]
    elif path or all(
        map(importlib.util.find_spec, ("tensorflow", "tensorflow_datasets"))
    ):
        import tensorflow_datasets as tfds

        loaded = tfds.load(name, split=["train", "test"], data_dir=path, batch_size=-1)
        splits = [(split["image"], split["label"]) for split in tfds.as_numpy(loaded)]
    else:
        splits = getattr(keras.datasets, name).load_data()
    train, test = (
        ((x.reshape(-1, 28, 28, 1) / 255).astype("float32"), y.astype("int64"))
        for x, y in splits
    )
    return train, test


class Reshuffled(keras.utils.PyDataset):
    """Batches of images and labels, in a new order in every epoch.

    Of arrays, `fit(shuffle=True)` repeats the first epoch's batches in all of them, on
    TensorFlow after `keras.utils.set_random_seed()`. A network whose layers see batches
    as a whole, as whitening does, learns these batches by heart.
    """

    def __init__(self, x, y, batch_size, seed):
        super().__init__()
        self._x, self._y, self._batch_size = x, y, batch_size
        self._rng = np.random.default_rng(seed)
        self.on_epoch_end()

    def on_epoch_end(self):
        self._order = self._rng.permutation(len(self._x))

    def __len__(self):
        return -(-len(self._x) // self._batch_size)

    def __getitem__(self, index):
        start = index * self._batch_size
        chosen = self._order[start : start + self._batch_size]
        return self._x[chosen], self._y[chosen]


def keep_out(images_and_labels, count):
    """Two parts: without `count` images, chosen at random, and these.

    The choice is the same in every run.
    """
    x, y = images_and_labels
    shuffled = np.random.default_rng(1).permutation(len(x))
    kept, trained = shuffled[:count], np.sort(shuffled[count:])
    return (x[trained], y[trained]), (x[kept], y[kept])


def choose(images_and_labels, count):
    """A random choice, the same in every run.

    The first images of MNIST's test set are harder than the others, so they would not
    stand for all of them.

    Returns:
        `count` images and their labels, or all if there are fewer.
    """
    x, y = images_and_labels
    chosen = np.random.default_rng(0).permutation(len(x))[:count]
    return x[chosen], y[chosen]
