"""The network of section 4.1, with its penalty computed in several ways."""

import functools

import keras
import numpy as np
from keras import ops

import keras_powerlaw as kp
from research.data import load
from research.networks import compile_classifier

PENALTY = {"alpha": 1.0, "tau": 10, "beta": 5.0, "form": "paper"}
# Without the penalty, the package's, its definition, and the paper's own algorithm.
FORMS = ("plain", "regularized", "exact", "literal")


@functools.cache
def mnist(data):
    """MNIST, or noise in its shape where only time and memory matter.

    Args:
        data: What `load` takes, or `"random"`.
    """
    if data != "random":
        return load("mnist", data)
    rng = np.random.default_rng(0)
    x = rng.random((60_000, 28, 28, 1), dtype="float32")
    return (x, rng.integers(10, size=len(x))), (x[:1000], np.zeros(1000, "int64"))


def shallow(form, width, penalty=PENALTY, learning_rate=1e-3):
    """Builds and compiles the network.

    Args:
        form: One of `FORMS`.
        width: Units of the hidden layer.
        penalty: Settings of the penalty.
        learning_rate: Adam's, a number or a schedule.
    """
    regularizer = None
    if form in ("regularized", "exact"):
        regularizer = kp.SpectralActivityRegularizer(**penalty, exact=form == "exact")
    normalization = keras.layers.BatchNormalization(
        momentum=0.9, epsilon=1e-5, activity_regularizer=regularizer, name="hidden"
    )
    model = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            keras.layers.Flatten(),
            keras.layers.Dense(width, activation="tanh"),
            normalization,
            *([Literal(**penalty)] if form == "literal" else []),
            keras.layers.Dense(10),
        ]
    )
    compile_classifier(model, learning_rate)
    return model


class Literal(keras.layers.Layer):
    """Passes its input on, and adds the penalty written naively from the paper.

    Its basis is the identity until it is given another one.
    """

    def __init__(self, alpha, tau, beta, form="paper"):
        super().__init__(name="literal")
        self.alpha, self.tau, self.beta = alpha, tau, beta

    def build(self, shape):
        options = {"initializer": "identity", "trainable": False}
        self.basis = self.add_weight((shape[-1], shape[-1]), **options)

    def call(self, x, training=False):
        if training:
            loss = literal_penalty(x, self.basis, self.alpha, self.tau, self.beta)
            self.add_loss(loss)
        return x


def literal_penalty(activity, basis, alpha, tau, beta):
    """Eq. (2) of the diagonal of eq. (5), term by term.

    Σ of the batch is formed, then VᵀΣV, of which only the diagonal is used, and a loop
    over n = τ … N adds up the terms.

    Args:
        activity: Tensor of shape `(batch, N)`.
        basis: The eigenvectors V as columns, shape `(N, N)`.
        alpha: Exponent α.
        tau: First eigenvalue τ.
        beta: Strength β.

    Returns:
        A scalar.
    """
    batch, width = ops.cast(ops.shape(activity)[0], "float32"), activity.shape[1]
    centred = activity - ops.mean(activity, axis=0)
    sigma = ops.matmul(ops.transpose(centred), centred) / (batch - 1)
    rotated = ops.matmul(ops.matmul(ops.transpose(basis), sigma), basis)
    eigenvalues = ops.diagonal(rotated)
    anchor = ops.stop_gradient(eigenvalues[tau - 1])

    def add_term(n, total):
        gamma = anchor * (ops.cast(n, "float32") / tau) ** -alpha
        excess = eigenvalues[n - 1] / gamma - 1
        # relu is max(0, ·) with one gradient on every backend at n = τ, where λ = γ.
        return total + ops.square(excess) + ops.relu(excess)

    total = ops.fori_loop(tau, width + 1, add_term, ops.zeros((), "float32"))
    return beta / width * total
