"""A basis from few examples, simulated."""

import numpy as np

from keras_powerlaw.spectral.covariance import (
    StreamingCovariance,
    eigendecomposition,
)


def sample_eigenvectors(variances, examples, rng, block=1000):
    """Sample eigenvalues, and the true variances along the sample eigenvectors."""
    running = StreamingCovariance()
    for start in range(0, examples, block):
        count = min(block, examples - start)
        running.update(rng.normal(size=(count, len(variances))) * np.sqrt(variances))
    eigenvalues, vectors = eigendecomposition(running.covariance())
    return eigenvalues, variances @ vectors**2
