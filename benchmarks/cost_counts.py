"""Operations, bytes and memory that the penalty takes, counted."""


def step_work(batch, width, inputs, *, tau=None, first=False):
    """Operations and bytes of a training step of dense layer, tanh, normalization.

    Args:
        batch: B.
        width: N.
        inputs: Width of the layer's input.
        tau: τ of its penalty, or `None` for a plain layer.
        first: Whether the layer is the network's first, with no gradient to hand on.
    """
    # Forward, gradient of the weights, gradient of the input.
    operations = (2 if first else 3) * 2 * batch * inputs * width
    # Adam reads weights, gradient and two moments, and writes three of these. About
    # twenty passes over the (B, N) activations.
    moved = 4 * (7 * inputs * width + 20 * batch * width)
    if tau is not None:
        directions = width - tau + 1
        operations += 4 * batch * width * directions
        # The basis twice. Mean, centring, product, squares and back: ten passes.
        moved += 4 * (2 * width * directions + 10 * batch * width)
    return operations, moved


def refresh_work(examples, width, inputs):
    """Operations of a refresh's forward pass, Gram matrix and eigendecomposition.

    9 N³ is the usual count for all eigenvectors by QR iteration. LAPACK's divide and
    conquer does with less, so that its calibrated rate is a nominal one.
    """
    return 2 * examples * inputs * width, examples * width**2, 9 * width**3


def refresh_bytes(width):
    """Peak on the host: Gram matrix, covariance, its copy, work space, eigenvectors.

    LAPACK's `syevd` asks for 1 + 6N + 2N² numbers of work space, and leaves the
    eigenvectors in the copy.
    """
    return 8 * (3 * width**2 + 1 + 6 * width + 2 * width**2)
