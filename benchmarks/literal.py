"""The spectral penalty written naively from the paper's equations, to be timed."""

from keras import ops

import keras_powerlaw as kp
from keras_powerlaw.spectral.basis import Eigenbasis


def literal_penalty(activity, basis, alpha, tau, beta, unrolled=False):
    """Eq. (2) of the diagonal of eq. (5), term by term.

    Σ of the batch is formed, then VᵀΣV, of which only the diagonal is used, and a loop
    over n = τ … N adds up the terms.

    Args:
        activity: Tensor of shape `(batch, N)`.
        basis: The eigenvectors V as columns, shape `(N, N)`.
        alpha: Exponent α.
        tau: First eigenvalue τ.
        beta: Strength β.
        unrolled: Write every term into the program, instead of a loop: `tf.while_loop`
            on TensorFlow, `lax.fori_loop` on JAX. On PyTorch it makes no difference:
            the loop is always Python's.

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

    total = ops.zeros((), "float32")
    if unrolled:
        for n in range(tau, width + 1):
            total = add_term(n, total)
    else:
        total = ops.fori_loop(tau, width + 1, add_term, total)
    return beta / width * total


class LiteralRegularizer(kp.SpectralActivityRegularizer):
    """`SpectralActivityRegularizer` with the penalty computed by `literal_penalty`."""

    def __init__(self, alpha=1.0, tau=10, beta=1.0, *, form="paper", unrolled=False):
        super().__init__(alpha, tau, beta, form=form)
        self.unrolled = unrolled
        self.eigenbasis = Eigenbasis(self, first=1)  # all eigenvectors

    def penalty(self, activity):
        activity = ops.reshape(activity, (-1, self.basis.shape[0]))
        return literal_penalty(
            activity, self.basis, self.alpha, self.tau, self.beta, self.unrolled
        )
