"""The network of a run, as its settings describe it.

`training.perform` trains it.
"""

import keras
from keras import layers

import keras_powerlaw as kp

from .conditions import SPECTRAL, TAPER
from .settings import steps_of


def build_model(settings, input_shape, images=None):
    """Builds and compiles the network of a run.

    Args:
        settings: Those of `settings.select`; of them, architecture, condition, width,
            learning rate and, with a spectral penalty, α, τ and β.
        input_shape: Height, width and channels of an image.
        images: The number of training images, for a learning rate that falls.

    Returns:
        The model and the names of its hidden layers. The layer called `hidden2` is the
        activity that the third layer sees: after activation, pooling, normalization and
        whitening.
    """
    blocks = hidden_blocks(settings["architecture"], settings["width"], input_shape)
    if settings["condition"].startswith("whitened"):
        blocks[1].append(kp.WhiteningLayer())
    if settings["condition"] == "constructed":
        blocks[-1].append(kp.WhiteningLayer(target=settings["alpha"]))
    hidden = [f"hidden{index + 1}" for index in range(len(blocks))]
    model = keras.Sequential([keras.Input(input_shape)])
    for name, block in zip(hidden, blocks, strict=True):
        for layer in (*block, layers.Identity(name=name)):
            model.add(layer)
    model.add(layers.Dense(10, name="logits"))
    model = penalized(model, hidden, settings)
    compile_classifier(model, learning_rate(settings, images))
    return model, hidden


def hidden_blocks(architecture, width, input_shape):
    """The layers that make up each hidden layer."""

    def dense():
        return layers.Dense(width, activation="tanh")

    if architecture == "mlp":
        return [[layers.Flatten(), dense()], [dense()], [dense()]]
    if architecture == "cnn":
        # 8×8 pixels are too few for the paper's convolutions without padding.
        convolution = {
            "activation": "tanh",
            "padding": "valid" if min(input_shape[:2]) > 8 else "same",
        }
        return [
            [layers.Conv2D(16, 3, **convolution), layers.MaxPooling2D()],
            [layers.Conv2D(32, 3, **convolution), layers.MaxPooling2D()],
            [layers.Flatten(), dense()],
        ]
    block = [layers.Flatten(), dense()]
    if architecture == "shallow":
        block.append(layers.BatchNormalization(momentum=0.9, epsilon=1e-5))
    return [block]


def penalized(model, hidden, settings):
    """The model with the penalty that its condition asks for."""
    condition = settings["condition"]
    if condition in SPECTRAL:
        everywhere = condition in ("all", "tapered")
        alpha = settings["alpha"]
        if condition == "tapered":
            alpha = [alpha + more for more in TAPER]
        return kp.add_spectral_regularizer(
            model,
            hidden if everywhere else hidden[-1:],
            alpha,
            settings["tau"],
            settings["beta"],
            form=settings.get("form", "paper"),
        )
    if condition == "jacobian":
        return kp.add_jacobian_regularizer(model, beta=0.01)
    if condition == "output-jacobian":
        # The authors' code takes 0.01 times half of the squared norm.
        return kp.add_jacobian_regularizer(model, beta=0.005, projections=1)
    return model


def learning_rate(settings, images):
    """What Adam is given: a number or, with `decay`, one that falls along a cosine."""
    if not settings.get("decay"):
        return settings["learning_rate"]
    steps = steps_of(settings, images)
    return keras.optimizers.schedules.CosineDecay(settings["learning_rate"], steps)


def compile_classifier(model, learning_rate):
    """Compiles a model that returns logits, for Adam and integer labels.

    With XLA only on JAX, which has nothing else: on TensorFlow, it makes the penalty no
    faster on a CPU.

    Args:
        model: A Keras model.
        learning_rate: Adam's, a number or a schedule.
    """
    model.compile(
        keras.optimizers.Adam(learning_rate),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=keras.backend.backend() == "jax",
    )
