"""Small models of every kind that users bring, for tests that all of them must pass.

`ZOO` maps a name to a function that builds the model. Every model classifies into
`CLASSES` classes, ends in logits in float32, and has a layer named `hidden`, whose
penalty can be added; `examples_for` makes inputs and labels that fit it.
"""

import functools

import keras
import numpy as np
import pytest
from backend import BACKEND, only
from keras import layers, ops
from models import feature_map, hidden, network

CLASSES = 4
WORDS = np.array(["one", "two", "three", "four", "five"])

ZOO = {}
STRINGS = {"text"}
# Layers that compute with TensorFlow, which no step compiled by JAX can call.
LOOKUPS = {"integer_lookup"}
# On JAX, where compiling a model takes seconds, only these are tried by default.
QUICK_ON_JAX = {
    *("dense", "batch_norm", "dropout_and_noise", "adapted_normalization"),
    *("shared_layer", "nested_sequential", "mixed_float16"),
}
# Hundreds of layers, and seconds for every step.
SLOW = {"EfficientNetB0", "MobileNetV2"}


def member(build):
    """Adds a model to the zoo, under the name of the function that builds it."""
    ZOO[build.__name__] = build
    return build


def zoo(*names):
    """Parameters for a test that takes a `name` of the zoo; all, if none is given."""
    strings = only("tensorflow", why="only TensorFlow has tensors of strings")
    lookups = only("tensorflow", "torch", why="no compiled step can call TensorFlow")

    def parameter(name):
        is_slow = name in SLOW or (BACKEND == "jax" and name not in QUICK_ON_JAX)
        marks = [(pytest.mark.slow, is_slow)]
        marks += [(strings, name in STRINGS), (lookups, name in LOOKUPS)]
        return pytest.param(name, marks=[mark for mark, applies in marks if applies])

    return pytest.mark.parametrize("name", [parameter(name) for name in names or ZOO])


def build(name, seed=0):
    """The model, with the same weights for the same seed."""
    keras.utils.set_random_seed(seed)
    return ZOO[name]()


def inputs_of(model):
    """The model's symbolic inputs, in the structure in which it takes them."""
    return model.inputs[0] if isinstance(model, keras.Sequential) else model.input


def can_be_attacked(model):
    """Whether the model has one input, of real numbers."""
    inputs = model.inputs
    return len(inputs) == 1 and keras.backend.is_float_dtype(inputs[0].dtype)


def examples_for(model, count, seed=0):
    """Inputs and integer labels that the model can be trained on.

    Returns:
        `(x, y)`; `x` has the structure of the model's inputs.
    """
    rng = np.random.default_rng(seed)

    def values(tensor):
        shape = (count, *(8 if size is None else size for size in tensor.shape[1:]))
        if tensor.dtype == "string":
            return keras.ops.convert_to_tensor(rng.choice(WORDS, size=shape))
        if keras.backend.is_float_dtype(tensor.dtype):
            return rng.random(size=shape).astype("float32")
        return rng.integers(1, len(WORDS), size=shape).astype(tensor.dtype)

    x = keras.tree.map_structure(values, inputs_of(model))
    return x, rng.integers(CLASSES, size=count)


def logits(x):
    return layers.Dense(CLASSES, dtype="float32", name="logits")(x)


# Sequential


@member
def dense():
    return network(hidden(16), layers.ReLU())


@member
def batch_norm():
    return network(hidden(16, name="first"), layers.BatchNormalization(name="hidden"))


@member
def dropout_and_noise():
    return network(layers.GaussianNoise(0.1), hidden(16), layers.Dropout(0.5))


@member
def convolutional():
    pool = layers.MaxPooling2D(name="hidden")
    return network(feature_map(4), pool, layers.Flatten(), shape=(8, 8, 1))


@member
def depthwise_and_transposed():
    return network(
        layers.SeparableConv2D(4, 3),
        layers.DepthwiseConv2D(3),
        layers.Conv2DTranspose(6, 2, name="hidden"),
        layers.GlobalAveragePooling2D(),
        shape=(8, 8, 2),
    )


@member
def weight_penalties():
    return network(
        layers.Dense(
            16,
            kernel_regularizer="l2",
            kernel_constraint="max_norm",
            kernel_initializer=keras.initializers.Orthogonal(seed=1),
            name="hidden",
        ),
        layers.ActivityRegularization(l2=1e-3),
        layers.PReLU(),
    )


@member
def another_activity_regularizer():
    penalized = hidden(9, keras.regularizers.L2(1e-3), name="penalized")
    return network(penalized, hidden(16))


# Normalization and preprocessing


@member
def adapted_normalization():
    normalization = layers.Normalization()
    normalization.adapt(np.random.default_rng(0).normal(2, 0.5, size=(50, 12)))
    return network(normalization, hidden(16))


@member
def augmentation():
    return network(
        layers.Rescaling(1 / 255),
        layers.RandomFlip(seed=1),
        layers.RandomTranslation(0.1, 0.1),
        layers.Flatten(),
        hidden(16),
        shape=(6, 6, 3),
    )


@member
def normalizations():
    return network(
        layers.LayerNormalization(),
        layers.UnitNormalization(),
        hidden(16),
        layers.GroupNormalization(4),
        layers.RMSNormalization(),
    )


@member
def integer_lookup():
    inputs = keras.Input((3,), dtype="int32")
    codes = layers.IntegerLookup(output_mode="multi_hot")
    codes.adapt(np.array([1, 1, 1, 3, 3, 4]))
    return keras.Model(inputs, logits(hidden(16)(codes(inputs))))


@member
def text():
    inputs = keras.Input((), dtype="string")
    tokens = layers.TextVectorization(max_tokens=10, output_sequence_length=4)
    tokens.adapt(["one two two", "three two"])
    x = layers.Flatten()(layers.Embedding(10, 5)(tokens(inputs)))
    return keras.Model(inputs, logits(hidden(16)(x)))


# Functional


@member
def residual():
    inputs = keras.Input((12,))
    first = layers.Dense(16, activation="relu")(inputs)
    added = layers.Add(name="hidden")([first, layers.Dense(16)(first)])
    return keras.Model(inputs, logits(added))


@member
def named_inputs():
    one, two = keras.Input((12,), name="one"), keras.Input((6,), name="two")
    merged = layers.Multiply()([hidden(16)(one), layers.Dense(16)(two)])
    return keras.Model({"one": one, "two": two}, logits(merged))


@member
def shared_layer():
    one, two = keras.Input((12,)), keras.Input((12,))
    shared = hidden(16)
    return keras.Model(
        [one, two], logits(layers.Subtract()([shared(one), shared(two)]))
    )


@member
def operations():
    """Arithmetic on tensors, which Keras makes operations of, not layers."""
    inputs = keras.Input((12,))
    x = hidden(16)(ops.tanh(inputs) * 2 + 1)
    return keras.Model(inputs, logits(x[:, :8] - ops.mean(x, axis=-1, keepdims=True)))


# Models in models


@member
def nested_sequential():
    base = keras.Sequential(
        [keras.Input((12,)), layers.Dense(20, "relu"), hidden(16)], name="base"
    )
    return network(base, layers.Dropout(0.2))


@member
def nested_twice():
    inner = keras.Sequential([keras.Input((12,)), hidden(16)], name="inner")
    outer = keras.Sequential([keras.Input((12,)), inner, layers.BatchNormalization()])
    return network(outer)


@member
def siamese():
    """One model, called on both inputs."""
    base = keras.Sequential([keras.Input((12,)), hidden(16)], name="base")
    one, two = keras.Input((12,)), keras.Input((12,))
    return keras.Model([one, two], logits(layers.Concatenate()([base(one), base(two)])))


@member
def frozen_base():
    base = keras.Sequential([keras.Input((12,)), layers.Dense(20), hidden(16)])
    base.trainable = False
    return network(base, layers.Dense(16, "relu"))


# Recurrent, attention, wrappers


@member
def lstm():
    return network(layers.LSTM(8), hidden(16), shape=(5, 3))


@member
def masked_sequence():
    inputs = keras.Input((6,), dtype="int32")
    x = layers.Embedding(5, 8, mask_zero=True)(inputs)
    x = layers.Bidirectional(layers.GRU(6, dropout=0.2))(x)
    return keras.Model(inputs, logits(hidden(16)(x)))


@member
def time_distributed():
    steps = layers.TimeDistributed(layers.Dense(5), name="hidden")
    return network(steps, layers.GlobalAveragePooling1D(), shape=(5, 3))


@member
def transformer():
    inputs = keras.Input((6, 8))
    attended = layers.MultiHeadAttention(2, 4, dropout=0.1)(inputs, inputs)
    x = layers.LayerNormalization()(layers.Add()([inputs, attended]))
    x = layers.GlobalAveragePooling1D()(layers.Dense(8, "gelu", name="hidden")(x))
    return keras.Model(inputs, logits(x))


@member
def spectral_normalization():
    inner = layers.SpectralNormalization(layers.Dense(10, activation="tanh"))
    return network(inner, hidden(16))


# Mixed precision


@member
def mixed_float16():
    return network(
        layers.Dense(16, activation="relu", dtype="mixed_float16"),
        layers.BatchNormalization(dtype="mixed_float16"),
        layers.Dense(16, name="hidden", dtype="mixed_float16"),
    )


# keras.applications


def application(name, **settings):
    """With weights that are drawn, not downloaded, and a classifier of its own."""
    features = getattr(keras.applications, name)(
        weights=None, include_top=False, input_shape=(32, 32, 3), **settings
    )
    x = layers.GlobalAveragePooling2D()(features.output)
    return keras.Model(features.inputs, logits(hidden(16)(x)))


ZOO["MobileNetV2"] = functools.partial(application, "MobileNetV2", alpha=0.35)
ZOO["EfficientNetB0"] = functools.partial(application, "EfficientNetB0")
