"""Small models of every kind that users bring, for tests that all of them must pass.

`ZOO` maps a name to a function that builds the model. Every model classifies into
`CLASSES` classes, ends in logits in float32, and has a layer named `hidden`, whose
penalty can be added; `examples_for` makes inputs and labels that fit it.
"""

import keras
import numpy as np
import pytest
from backend import BACKEND, only
from keras import layers, ops
from models import feature_map, hidden, network

CLASSES = 4
WORDS = np.array(["one", "two", "three", "four", "five"])

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


def functional(build, *shapes, dtype="float32"):
    """The model whose last layer but one is what `build` makes of the inputs."""
    inputs = [keras.Input(shape, dtype=dtype) for shape in shapes]
    logits = layers.Dense(CLASSES, dtype="float32", name="logits")(build(*inputs))
    return keras.Model(inputs if len(inputs) > 1 else inputs[0], logits)


def base(*parts):
    return keras.Sequential([keras.Input((12,)), *parts], name="base")


def adapted(layer, data):
    layer.adapt(data)
    return layer


def frozen(layer):
    layer.trainable = False
    return layer


def residual(x):
    x = layers.Dense(16, activation="relu")(x)
    return layers.Add(name="hidden")([x, layers.Dense(16)(x)])


def shared_layer(one, two):
    shared = hidden(16)
    return layers.Subtract()([shared(one), shared(two)])


def siamese(one, two):
    """One model, called on both inputs."""
    tower = base(hidden(16))
    return layers.Concatenate()([tower(one), tower(two)])


def operations(x):
    """Arithmetic on tensors, which Keras makes operations of, not layers."""
    x = hidden(16)(ops.tanh(x) * 2 + 1)
    return x[:, :8] - ops.mean(x, axis=-1, keepdims=True)


def text(x):
    tokens = layers.TextVectorization(max_tokens=10, output_sequence_length=4)
    adapted(tokens, ["one two two", "three two"])
    return hidden(16)(layers.Flatten()(layers.Embedding(10, 5)(tokens(x))))


def masked_sequence(x):
    x = layers.Embedding(5, 8, mask_zero=True)(x)
    return hidden(16)(layers.Bidirectional(layers.GRU(6, dropout=0.2))(x))


def transformer(x):
    attended = layers.MultiHeadAttention(2, 4, dropout=0.1)(x, x)
    x = layers.LayerNormalization()(layers.Add()([x, attended]))
    return layers.GlobalAveragePooling1D()(layers.Dense(8, "gelu", name="hidden")(x))


def named_inputs():
    one, two = keras.Input((12,), name="one"), keras.Input((6,), name="two")
    merged = layers.Multiply()([hidden(16)(one), layers.Dense(16)(two)])
    logits = layers.Dense(CLASSES, name="logits")(merged)
    return keras.Model({"one": one, "two": two}, logits)


def application(name, **settings):
    """With weights that are drawn, not downloaded, and a classifier of its own."""
    make = getattr(keras.applications, name)
    features = make(weights=None, include_top=False, pooling="avg", **settings)
    return functional(lambda x: hidden(16)(features(x)), (32, 32, 3))


def weight_penalties():
    settings = {"kernel_regularizer": "l2", "kernel_constraint": "max_norm"}
    return network(
        layers.Dense(16, name="hidden", **settings),
        layers.ActivityRegularization(l2=1e-3),
        layers.PReLU(),
    )


def augmentation():
    shifts = layers.RandomFlip(seed=1), layers.RandomTranslation(0.1, 0.1)
    parts = layers.Rescaling(1 / 255), *shifts, layers.Flatten(), hidden(16)
    return network(*parts, shape=(6, 6, 3))


def normalizations():
    before = layers.LayerNormalization(), layers.UnitNormalization()
    after = layers.GroupNormalization(4), layers.RMSNormalization()
    return network(*before, hidden(16), *after)


def convolutional():
    pool = layers.MaxPooling2D(name="hidden")
    return network(feature_map(4), pool, layers.Flatten(), shape=(8, 8, 1))


def depthwise_and_transposed():
    first = layers.SeparableConv2D(4, 3), layers.DepthwiseConv2D(3)
    last = layers.Conv2DTranspose(6, 2, name="hidden")
    return network(*first, last, layers.GlobalAveragePooling2D(), shape=(8, 8, 2))


def mixed_float16():
    return network(
        layers.Dense(16, activation="relu", dtype="mixed_float16"),
        layers.BatchNormalization(dtype="mixed_float16"),
        layers.Dense(16, name="hidden", dtype="mixed_float16"),
    )


ZOO = {
    "dense": lambda: network(hidden(16), layers.ReLU()),
    "batch_norm": lambda: network(
        hidden(16, name="first"), layers.BatchNormalization(name="hidden")
    ),
    "dropout_and_noise": lambda: network(
        layers.GaussianNoise(0.1), hidden(16), layers.Dropout(0.5)
    ),
    "convolutional": convolutional,
    "depthwise_and_transposed": depthwise_and_transposed,
    "weight_penalties": weight_penalties,
    "another_activity_regularizer": lambda: network(
        hidden(9, keras.regularizers.L2(1e-3), name="penalized"), hidden(16)
    ),
    # Preprocessing
    "adapted_normalization": lambda: network(
        adapted(layers.Normalization(), np.arange(24.0).reshape(2, 12)), hidden(16)
    ),
    "augmentation": augmentation,
    "normalizations": normalizations,
    "integer_lookup": lambda: functional(
        lambda x: hidden(16)(
            adapted(layers.IntegerLookup(output_mode="multi_hot"), np.arange(4))(x)
        ),
        (3,),
        dtype="int32",
    ),
    "text": lambda: functional(text, (), dtype="string"),
    # Graphs and models in models
    "residual": lambda: functional(residual, (12,)),
    "named_inputs": named_inputs,
    "shared_layer": lambda: functional(shared_layer, (12,), (12,)),
    "operations": lambda: functional(operations, (12,)),
    "nested_sequential": lambda: network(
        base(layers.Dense(20, "relu"), hidden(16)), layers.Dropout(0.2)
    ),
    "nested_twice": lambda: network(
        keras.Sequential(
            [keras.Input((12,)), base(hidden(16)), layers.BatchNormalization()]
        )
    ),
    "siamese": lambda: functional(siamese, (12,), (12,)),
    "frozen_base": lambda: network(
        frozen(base(layers.Dense(20), hidden(16))), layers.Dense(16, "relu")
    ),
    # Sequences and wrappers
    "lstm": lambda: network(layers.LSTM(8), hidden(16), shape=(5, 3)),
    "masked_sequence": lambda: functional(masked_sequence, (6,), dtype="int32"),
    "time_distributed": lambda: network(
        layers.TimeDistributed(layers.Dense(5), name="hidden"),
        layers.GlobalAveragePooling1D(),
        shape=(5, 3),
    ),
    "transformer": lambda: functional(transformer, (6, 8)),
    "spectral_normalization": lambda: network(
        layers.SpectralNormalization(layers.Dense(10, activation="tanh")), hidden(16)
    ),
    "mixed_float16": mixed_float16,
    "MobileNetV2": lambda: application("MobileNetV2", alpha=0.35),
    "EfficientNetB0": lambda: application("EfficientNetB0"),
}
