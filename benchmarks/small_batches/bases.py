"""A basis from few examples, simulated."""

import numpy as np
import scipy.linalg


def sample_eigenvectors(variances, examples, rng, block=1000):
    """Sample eigenvalues, and the true variances along the sample eigenvectors."""
    total, products = 0.0, 0.0
    for start in range(0, examples, block):
        count = min(block, examples - start)
        x = rng.normal(size=(count, len(variances))) * np.sqrt(variances)
        total, products = total + x.sum(axis=0), products + x.T @ x
    mean = total / examples
    sigma = products / examples - np.outer(mean, mean)
    eigenvalues, vectors = scipy.linalg.eigh(sigma, driver="evd")
    eigenvalues, vectors = np.maximum(eigenvalues[::-1], 0), vectors[:, ::-1]
    return eigenvalues, variances @ vectors**2
