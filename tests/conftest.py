"""Environment and data that the tests share."""

import os
import sys
from pathlib import Path

# Read when Keras, TensorFlow, JAX and Matplotlib are first imported.
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("MPLBACKEND", "Agg")
# Tests run side by side, where threads of BLAS wait for each other.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# Two devices, for the tests of distributed training. On JAX, most of the time goes into
# compiling small programs that run once: there, their machine code is not optimized.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_force_host_platform_device_count=2"
    + " --xla_backend_optimization_level=0" * (os.environ["KERAS_BACKEND"] == "jax"),
)
# And many tests compile the same ones. No two processes write the same files.
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(
    Path(__file__).parents[1]
    / ".pytest_cache"
    / "jax"
    / os.environ.get("PYTEST_XDIST_WORKER", "alone")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import keras
import numpy as np
import pytest
from models import compiled, hidden, network

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf

    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0],
        [tf.config.LogicalDeviceConfiguration() for _ in range(2)],
    )


def pytest_terminal_summary(terminalreporter):
    passed, skipped = (
        len(terminalreporter.stats.get(outcome, []))
        for outcome in ("passed", "skipped")
    )
    terminalreporter.write_line(
        f"Keras {keras.__version__} on {keras.backend.backend()}: "
        f"{passed} passed, {skipped} skipped"
    )


@pytest.fixture(autouse=True)
def reproducible():
    """Every test starts with the same seeds, fresh layer names and no figure."""
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


@pytest.fixture(scope="session")
def strategy():
    """Returns a context that spreads the models made in it over two devices.

    One for all tests: TensorFlow confuses the collective operations of two.
    """
    devices = ["cpu:0", "cpu:1"]
    if keras.backend.backend() == "tensorflow":
        return tf.distribute.MirroredStrategy(devices).scope
    return keras.distribution.DataParallel(devices=devices).scope


@pytest.fixture(scope="session")
def digits():
    """scikit-learn's handwritten digits.

    Returns:
        `(x_train, y_train), (x_test, y_test)`: 1437 and 360 images as float32 of
        shape `(M, 8, 8, 1)` in [0, 1], and labels 0 to 9 as int64 of shape `(M,)`.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype("float32").reshape(-1, 8, 8, 1)
    x_train, x_test, y_train, y_test = train_test_split(
        images, labels, test_size=360, stratify=labels, random_state=0
    )
    return (x_train, y_train), (x_test, y_test)


@pytest.fixture(scope="module")
def trained(digits):
    """An ordinary network on the digits, which returns logits; one for each file."""
    (x, y), _ = digits
    keras.utils.set_random_seed(0)
    model = network(keras.layers.Flatten(), hidden(64), shape=(8, 8, 1), classes=10)
    compiled(model, keras.optimizers.Adam(0.01))
    model.fit(x, y, batch_size=64, epochs=8, verbose=0)
    return model


@pytest.fixture(scope="session")
def mnist():
    """Real MNIST, or a skip where it has not been prepared.

    Returns:
        `(x_train, y_train), (x_test, y_test)`: 60000 and 10000 images as float32 of
        shape `(M, 28, 28, 1)` in [0, 1], and labels 0 to 9 as int64 of shape `(M,)`.
    """
    data_dir = os.environ.get("TFDS_DATA_DIR")
    if not data_dir:
        pytest.skip("needs real MNIST: TFDS_DATA_DIR is not set")
    if not os.path.isdir(os.path.join(data_dir, "mnist")):
        pytest.skip(f"needs real MNIST: TFDS_DATA_DIR={data_dir} has no mnist")

    import tensorflow_datasets as tfds

    splits = tfds.load(
        "mnist",
        split=["train", "test"],
        data_dir=data_dir,
        download=False,
        batch_size=-1,
        as_supervised=True,
    )
    return tuple(
        (np.asarray(images, "float32") / 255, np.asarray(labels))
        for images, labels in splits
    )
