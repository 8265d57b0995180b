"""The network of section 4.1 with its penalty computed in several ways."""

import functools

import keras

import keras_powerlaw as kp
from benchmarks.literal import LiteralRegularizer
from examples.experiments.networks import compile_classifier
from keras_powerlaw.spectral.basis import Eigenbasis

PENALTY = {"alpha": 1.0, "tau": 10, "beta": 5.0, "form": "paper"}


class Float32Regularizer(kp.SpectralActivityRegularizer):
    """`SpectralActivityRegularizer` with products in float32 on every machine."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.eigenbasis = Eigenbasis(self, first=self.tau, dtype="float32")


# What computes the penalty: called with its settings.
FORMS = {
    "plain": lambda **settings: None,
    "regularized": kp.SpectralActivityRegularizer,
    "float32": Float32Regularizer,
    "exact": functools.partial(kp.SpectralActivityRegularizer, exact=True),
    "literal": LiteralRegularizer,
    "literal-unrolled": functools.partial(LiteralRegularizer, unrolled=True),
}
# "literal-unrolled" is not among them: its program takes long to compile.
DEFAULT_FORMS = ("plain", "regularized", "exact", "literal")
# These are compiled by XLA on TensorFlow too, as everything is on JAX.
XLA = "-xla"
FORMS |= {form + XLA: FORMS[form] for form in ("plain", "regularized", "float32")}


def shallow(form, width, penalty=PENALTY, learning_rate=1e-3):
    """Builds and compiles the network.

    Args:
        form: A key of `FORMS`.
        width: Units of the hidden layer.
        penalty: Settings of the penalty.
        learning_rate: Adam's, a number or a schedule.
    """
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
    compile_classifier(model, learning_rate, xla=form.endswith(XLA))
    return model
