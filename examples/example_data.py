"""The data sets of the examples, as arrays with pixels in [0, 1]."""

import numpy as np

DATASETS = ("mnist", "fashion_mnist", "digits")


def load(name, data_dir=None):
    """Training and test images, float32 `(images, height, width, 1)`, and labels.

    Args:
        name: `"mnist"` or `"fashion_mnist"`, through tensorflow-datasets, or
            `"digits"`: scikit-learn's 1,797 digits of 8×8 pixels, which need no
            download; every fifth is a test image.
        data_dir: Folder of tensorflow-datasets. Defaults to its own default: the
            environment variable `TFDS_DATA_DIR`, or `~/tensorflow_datasets`.

    Returns:
        `(x_train, y_train), (x_test, y_test)`.
    """
    if name == "digits":
        from sklearn.datasets import load_digits

        data = load_digits()
        x = (data.images[..., np.newaxis] / 16).astype("float32")
        test = np.arange(len(x)) % 5 == 4
        return (x[~test], data.target[~test]), (x[test], data.target[test])

    import tensorflow_datasets as tfds

    splits = tfds.load(name, split=["train", "test"], data_dir=data_dir, batch_size=-1)
    train, test = (
        ((split["image"] / 255).astype("float32"), split["label"])
        for split in tfds.as_numpy(splits)
    )
    return train, test
