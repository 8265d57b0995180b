"""An epoch of an ordinary CNN, with the eigenbasis from the training or from the data.

Images of 32×32×3, batches of 32, ReLU, no batch normalization: a conv block regularized
by channels, and a dense layer of 128 units. Each form trains for one epoch in turn.
"""

import keras
import numpy as np
from keras import layers

import keras_powerlaw as kp
from benchmarks.measuring import medians, ratios, timed


def cases(args):
    settings = {"images": args.images or 5000, "batch": 32, "rounds": args.rounds}
    yield settings, lambda settings: epochs(**settings)


def cnn(regularized):
    """Builds and compiles the network."""

    def penalized(**settings):
        regularizer = kp.SpectralActivityRegularizer(**settings)
        return {"activity_regularizer": regularizer if regularized else None}

    convolution = {"padding": "same", "activation": "relu"}
    model = keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            layers.Conv2D(32, 3, **convolution),
            layers.Conv2D(
                *(32, 3), **convolution, **penalized(reduction="channels", tau=3)
            ),
            layers.MaxPooling2D(),
            layers.Conv2D(64, 3, **convolution),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(128, activation="relu", **penalized()),
            layers.Dense(10),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-3), loss)
    return model


def epochs(images, batch, rounds):
    rng = np.random.default_rng(0)
    x = rng.random((images, 32, 32, 3), dtype="float32")
    y = rng.integers(10, size=images)
    callbacks = {
        "plain": [],
        "training steps": [kp.EigenbasisRefresh()],
        "data": [kp.EigenbasisRefresh(x)],
    }
    models = {form: cnn(bool(each)) for form, each in callbacks.items()}
    times = {}
    for turn in range(-1, rounds):  # the first one compiles
        for form, model in models.items():
            fit = {"batch_size": batch, "verbose": 0, "callbacks": callbacks[form]}
            timed(
                times if turn >= 0 else {},
                *(form, lambda model=model, fit=fit: model.fit(x, y, **fit)),
            )
    return {"times": times}


def table(results):
    yield "images", "basis from", "time", "CPU", "over *plain*", "CPU"
    for result in results:
        times = result["times"]
        for form, turns in times.items():
            images = result["settings"]["images"]
            yield images, form, *medians(turns), *ratios(turns, times["plain"])
