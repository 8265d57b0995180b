"""Trained networks for benchmarks: trained once, then read from a cache."""

import functools
from unittest import mock

import keras

import keras_powerlaw as kp
from benchmarks.literal import LiteralRegularizer
from examples.experiments.networks import build_model

SHALLOW = {"architecture": "shallow", "width": 2000, "learning_rate": 1e-3}
NETWORKS = {
    "plain": {**SHALLOW, "condition": "vanilla"},
    "regularized": {
        **SHALLOW,
        "condition": "last",
        **{"alpha": 1.0, "tau": 10, "beta": 5.0},
    },
    "cnn": {
        **{"architecture": "cnn", "width": 1000, "learning_rate": 1e-3},
        "condition": "vanilla",
    },
}
NAMES = tuple(NETWORKS)


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
    model, _ = build_model(NETWORKS[name], x.shape[1:])
    path = cache / f"{name}-{epochs}epochs.weights.h5"
    if path.exists():
        model.load_weights(path)
        return model
    refresh = kp.EigenbasisRefresh(x, every_epochs=1, max_samples=None)
    model.fit(
        x,
        y,
        batch_size=500 if name == "cnn" else 3000,
        epochs=epochs,
        callbacks=[refresh] if name == "regularized" else [],
        verbose=0,
    )
    cache.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"unfinished-{path.name}")
    model.save_weights(unfinished)
    unfinished.rename(path)  # a file that is there is whole
    return model


# The same shallow network, with the penalty computed in several ways.
PENALTY = {"alpha": 1.0, "tau": 10, "beta": 5.0}


class Float32Regularizer(kp.SpectralActivityRegularizer):
    """`SpectralActivityRegularizer` with products in float32 on every machine."""

    def restore_basis(self, needed):
        with mock.patch(
            "keras_powerlaw.spectral.regularizers.product_dtype",
            lambda units: "float32",
        ):
            super().restore_basis(needed)


# What computes the penalty: called with its settings.
FORMS = {
    "plain": lambda **settings: None,
    "regularized": kp.SpectralActivityRegularizer,
    "float32": Float32Regularizer,
    "exact": functools.partial(kp.SpectralActivityRegularizer, exact=True),
    "literal": LiteralRegularizer,
    "literal-unrolled": functools.partial(LiteralRegularizer, unrolled=True),
}
# The same, compiled by XLA on TensorFlow too, as JAX always does it.
XLA = "-xla"
FORMS |= {form + XLA: FORMS[form] for form in ("plain", "regularized", "float32")}


def shallow(form, width, penalty=PENALTY, learning_rate=1e-3):
    """A network like the first two, with one of the `FORMS`; compiled, not trained."""
    model = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            keras.layers.Flatten(),
            keras.layers.Dense(width, activation="tanh"),
            keras.layers.BatchNormalization(
                momentum=0.9,
                epsilon=1e-5,
                activity_regularizer=FORMS[form](**penalty),
                name="hidden",
            ),
            keras.layers.Dense(10),
        ]
    )
    model.compile(
        keras.optimizers.Adam(learning_rate),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=form.endswith(XLA) or keras.backend.backend() == "jax",
    )
    return model
