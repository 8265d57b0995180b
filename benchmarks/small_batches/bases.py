"""A basis from few examples, simulated."""

import numpy as np

from keras_powerlaw.spectrum import Covariance


def sample_eigenvectors(variances, examples, rng, block=1000):
    """Sample eigenvalues, and the true variances along the sample eigenvectors."""
    running = Covariance()
    for start in range(0, examples, block):
        count = min(block, examples - start)
        running.update(rng.normal(size=(count, len(variances))) * np.sqrt(variances))
    eigenvalues, vectors = running.eigenvectors()
    return eigenvalues, variances @ vectors**2
