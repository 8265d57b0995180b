"""Trained networks for benchmarks: trained once, then read from a cache."""

import pathlib
import sys

import keras

sys.path.append(str(pathlib.Path(__file__).parents[1] / "examples"))

import shallow_mlp

import keras_powerlaw as kp

NAMES = ("plain", "regularized", "cnn")


def trained(name, data, cache, epochs):
    """One of `NAMES`, from the folder `cache` or trained and saved there.

    Args:
        name: `"plain"` and `"regularized"` (α = 1, τ = 10, β = 5): the hidden layer of
            2,000 tanh units with batch normalization of `examples/shallow_mlp.py`, in
            batches of 3,000. `"cnn"`: the paper's convolutional network, plain, in
            batches of 500.
        data: `(x_train, y_train), (x_test, y_test)`.
        cache: Folder of the weights.
        epochs: Epochs of training, Adam at 1e-3.
    """
    (x, y), _ = data
    keras.utils.set_random_seed(0)
    callbacks = []
    if name == "cnn":
        model, batch_size = paper_cnn(x.shape[1:]), 500
    else:
        regularizer, batch_size = None, 3000
        if name == "regularized":
            regularizer = kp.SpectralActivityRegularizer(alpha=1.0, tau=10, beta=5.0)
            callbacks = [kp.EigenbasisRefresh(x)]
        model = shallow_mlp.build_model(x.shape[1:], 2000, True, regularizer)
    path = cache / f"{name}-{epochs}epochs.weights.h5"
    if path.exists():
        model.load_weights(path)
        return model
    model.compile(
        keras.optimizers.Adam(1e-3),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=False,
    )
    model.fit(
        x, y, batch_size=batch_size, epochs=epochs, callbacks=callbacks, verbose=0
    )
    cache.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"unfinished-{path.name}")
    model.save_weights(unfinished)
    unfinished.rename(path)  # a file that is there is whole
    return model


def paper_cnn(input_shape):
    """Section 4.2: hidden layers of 2704, 800 and 1000 units on MNIST."""
    return keras.Sequential(
        [
            keras.Input(input_shape),
            keras.layers.Conv2D(16, 3, activation="tanh"),
            keras.layers.MaxPooling2D(),
            keras.layers.Conv2D(32, 3, activation="tanh"),
            keras.layers.MaxPooling2D(),
            keras.layers.Flatten(),
            keras.layers.Dense(1000, activation="tanh"),
            keras.layers.Dense(10),
        ]
    )
