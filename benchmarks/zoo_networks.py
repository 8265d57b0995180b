"""The networks of the zoo: ordinary ones, each with a place for the penalty.

A builder takes the regularizer, or None, and returns the network. The regularized layer
is called "hidden"; where its units are rectified later, that layer is "rectified".
"""

import dataclasses
from collections.abc import Callable

import keras
import numpy as np
from keras import layers

from research import data
from research.networks import hidden_blocks


@dataclasses.dataclass(frozen=True)
class Network:
    """How to build a network, and what to train it on.

    Attributes:
        build: From the regularizer, or None, to an uncompiled network.
        data: Name of the data set, a key of `DATA`.
        batch: Batch size.
        epochs: Epochs of training.
        rate: Adam's learning rate, which falls to zero along a cosine.
        images: Train on so many, or on all.
        tau: First eigenvalue τ of the power law.
        reduction: What the units are.
    """

    build: Callable
    data: str = "fashion_mnist"
    batch: int = 128
    epochs: int = 3
    rate: float = 1e-3
    images: int | None = 20_000
    tau: int = 10
    reduction: str = "flatten"


def shallow(width, activation, normalized=True):
    """The network of section 4.1, with other activations, or without batch norm."""

    def build(regularizer):
        penalty = {"activity_regularizer": regularizer, "name": "hidden"}
        if not normalized:
            return [layers.Flatten(), layers.Dense(width, activation, **penalty)]
        dense = layers.Dense(width, activation)
        return [layers.Flatten(), dense, layers.BatchNormalization(**penalty)]

    return build


def deep(architecture):
    """One of section 4.2, the penalty on all of its three hidden layers."""

    def build(regularizer):
        built = []
        for index, block in enumerate(hidden_blocks(architecture, 1000, (28, 28, 1))):
            penalty = regularizer and regularizer.from_config(regularizer.get_config())
            name = "hidden" if index == 2 else None
            built += [*block, layers.Identity(activity_regularizer=penalty, name=name)]
        return built

    return build


def convolutions():
    return [
        *(layers.Conv2D(16, 3, activation="relu"), layers.MaxPooling2D()),
        *(layers.Conv2D(32, 3, activation="relu"), layers.MaxPooling2D()),
        layers.Flatten(),
    ]


def cnn(place):
    """Two convolutions and a dense layer of 128 units, the penalty at one of places."""

    def build(regularizer):
        penalty = {"activity_regularizer": regularizer, "name": "hidden"}
        rectified = layers.ReLU(name="rectified")
        top = {
            "relu": lambda: [layers.Dense(128, "relu", **penalty)],
            "gelu": lambda: [layers.Dense(128, "gelu", **penalty)],
            "before relu": lambda: [layers.Dense(128, **penalty), rectified],
            "norm, relu": lambda: [
                *(layers.Dense(128), layers.BatchNormalization(**penalty), rectified)
            ],
            "relu, norm": lambda: [
                layers.Dense(128, "relu", name="rectified"),
                layers.BatchNormalization(**penalty),
            ],
        }
        return [*convolutions(), *top[place]()]

    return build


def blocks(place):
    """Batch-normalized ReLU blocks on 32×32×3, the penalty on one of them or above."""

    def build(regularizer):
        penalty = {"activity_regularizer": regularizer, "name": "hidden"}

        def block(channels, **penalty):
            return [
                layers.Conv2D(channels, 3, padding="same", use_bias=False),
                *(layers.BatchNormalization(**penalty), layers.ReLU()),
                layers.MaxPooling2D(),
            ]

        return [
            *(*block(16), *block(32, **(penalty if place == "block" else {}))),
            layers.GlobalAveragePooling2D(),
            layers.Dense(128, "tanh", **(penalty if place == "dense" else {})),
        ]

    return build


class SelfAttention(layers.Layer):
    """Attention over a sequence, added to it."""

    def __init__(self):
        super().__init__()
        self.attention = layers.MultiHeadAttention(4, 16)

    def build(self, shape):
        self.attention.build(shape, shape)

    def call(self, x):
        return x + self.attention(x, x)


def transformer(regularizer):
    """A block on the rows of an image, the penalty on its layer normalization."""
    return [
        *(layers.Reshape((28, 28)), layers.Dense(64), SelfAttention()),
        layers.LayerNormalization(activity_regularizer=regularizer, name="hidden"),
        *(layers.Dense(128, "gelu"), layers.GlobalAveragePooling1D()),
    ]


def resnet(regularizer):
    """The first stages of ResNet50, the penalty on its rectified residual sum."""
    network = keras.applications.ResNet50(
        include_top=False, weights=None, input_shape=(32, 32, 3)
    )
    stages = keras.Model(
        network.inputs, network.get_layer("conv2_block3_out").output, name="stages"
    )
    for layer in stages.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.momentum = 0.9  # with 0.99, its averages lag behind so few steps
    return [
        stages,
        layers.Identity(activity_regularizer=regularizer, name="hidden"),
        layers.GlobalAveragePooling2D(),
    ]


def templates(images=5000, test=2000):
    """Ten fixed patterns of 32×32×3, shifted, in noise: an easy task."""
    rng = np.random.default_rng(0)
    patterns = rng.normal(size=(10, 8, 8, 3)).repeat(4, axis=1).repeat(4, axis=2)

    def draw(count):
        y = rng.integers(10, size=count)
        shifts = rng.integers(-3, 4, size=(count, 2))
        x = np.stack(
            [
                np.roll(patterns[label], shift, (0, 1))
                for label, shift in zip(y, shifts, strict=True)
            ]
        )
        x = 0.5 + 0.15 * x + 0.15 * rng.normal(size=x.shape)
        return np.clip(x, 0, 1).astype("float32"), y

    return draw(images), draw(test)


def load(name, folder):
    """Training and test data, from the folder's `.npz` files if there is one."""
    if name == "templates":
        return templates()
    path = f"{folder}/{name}.npz" if folder and name != "digits" else None
    return data.load(name, path)


def recurrent(kind):
    """One recurrent layer over the rows of an image."""

    def build(regularizer):
        penalty = {"activity_regularizer": regularizer, "name": "hidden"}
        layer = {"GRU": layers.GRU, "LSTM": layers.LSTM}[kind]
        return [layers.Reshape((28, 28)), layer(96, **penalty)]

    return build


def behind_dropout(regularizer):
    """A dense layer behind dropout, batch-normalized before it."""
    return [
        *(layers.Flatten(), layers.Dense(300), layers.BatchNormalization()),
        *(layers.Activation("elu"), layers.Dropout(0.3)),
        layers.Dense(200, "elu", activity_regularizer=regularizer, name="hidden"),
    ]


def two_layers(regularizer):
    """Two dense layers with ReLU, the penalty on both."""
    first = regularizer and regularizer.from_config(regularizer.get_config())
    return [
        *(layers.Flatten(), layers.Dense(256, "relu", activity_regularizer=first)),
        layers.Dense(128, "relu", activity_regularizer=regularizer, name="hidden"),
    ]


_CHANNELS = {"reduction": "channels"}
_NETWORKS = {
    **{
        f"MNIST, {activation}{', norm' if norm else ''}": Network(
            shallow(2000, activation, norm), "mnist", epochs=1, images=None
        )
        for activation, norm in (
            *(("tanh", True), ("relu", True), ("gelu", True)),
            *(("tanh", False), ("relu", False)),
        )
    },
    "MNIST, tanh, norm, batch 1000": Network(
        shallow(500, "tanh"), "mnist", batch=1000, epochs=5, images=None, rate=7e-3
    ),
    **{
        f"MNIST, {architecture}": Network(deep(architecture), "mnist", epochs=1)
        for architecture in ("cnn", "mlp")
    },
    **{
        f"Fashion, {place}": Network(cnn(place))
        for place in ("relu", "gelu", "before relu", "norm, relu", "relu, norm")
    },
    "Fashion, relu, batch 32": Network(cnn("relu"), batch=32),
    "Fashion, tanh, norm": Network(
        shallow(1000, "tanh"), epochs=4, rate=7e-3, images=None
    ),
    "Fashion, GRU": Network(recurrent("GRU")),
    "Fashion, LSTM": Network(recurrent("LSTM")),
    "Fashion, dropout": Network(behind_dropout),
    "Fashion, two layers": Network(two_layers),
    "templates, block": Network(
        blocks("block"), "templates", batch=32, images=None, tau=3, **_CHANNELS
    ),
    "templates, dense": Network(blocks("dense"), "templates", batch=32, images=None),
    "templates, ResNet50": Network(
        resnet, "templates", batch=32, images=None, **_CHANNELS
    ),
    "transformer": Network(transformer, tau=3, **_CHANNELS),
    "digits": Network(
        shallow(200, "tanh"), "digits", batch=100, epochs=30, rate=3e-3, images=None
    ),
}
# What the penalty leaves far from its target has had one epoch, or learns its task yet.
_LONGER = [
    *((name, 6) for name, network in _NETWORKS.items() if network.epochs == 1),
    *(("MNIST, tanh, norm", 18), ("templates, dense", 6)),
]
NETWORKS = _NETWORKS | {
    f"{name}, {epochs} epochs": dataclasses.replace(_NETWORKS[name], epochs=epochs)
    for name, epochs in _LONGER
}


def compiled(network, regularizer, shape, steps):
    """Builds and compiles one of `NETWORKS`."""
    model = keras.Sequential(
        [keras.Input(shape), *network.build(regularizer), layers.Dense(10)]
    )
    model.compile(
        keras.optimizers.Adam(
            keras.optimizers.schedules.CosineDecay(network.rate, steps)
        ),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model
