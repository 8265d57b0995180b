"""The words in which the tests describe their networks.

`network(hidden(20, regularizer), kp.WhiteningLayer())` is a classifier of the vectors
of `datasets.gaussian`. The layers that the tests look at are named: `hidden`, `map` and
`logits`.
"""

import keras
import numpy as np
from keras import layers


def network(*parts, shape=(12,), classes=4):
    """A classifier: the parts, and one logit for each class.

    The logits are float32 under every dtype policy, as Keras advises.
    """
    logits = layers.Dense(classes, dtype="float32", name="logits")
    return keras.Sequential([keras.Input(shape), *parts, logits])


def hidden(units, regularizer=None, name="hidden"):
    """A dense layer with tanh."""
    return layers.Dense(
        units, activation="tanh", activity_regularizer=regularizer, name=name
    )


def feature_map(filters, regularizer=None, name="map"):
    """A 3×3 convolution with tanh."""
    return layers.Conv2D(
        filters, 3, activation="tanh", activity_regularizer=regularizer, name=name
    )


def linear(weights, bias=0.0):
    """The model with logits `x @ weights + bias`."""
    inputs, classes = weights.shape
    model = network(shape=(inputs,), classes=classes)
    model.set_weights([weights, np.broadcast_to(bias, classes)])
    return model


class Subclassed(keras.Model):
    """A model whose parts, called one after another, Keras sees only when it runs."""

    def __init__(self, *parts):
        super().__init__()
        self.parts = list(parts)

    def call(self, x):
        for part in self.parts:
            x = part(x)
        return x


def compiled(model, optimizer="adam", **options):
    """The model, compiled for labels that are integers unless `options` say else."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, **{"loss": loss, **options})
    return model
