"""What a batch of B examples, and a basis from M examples, do to the penalty.

The mathematics behind "Small batches" in docs/theory.md; `python -m
benchmarks.small_batches` prints the page's tables, and the tests compare the closed
forms with the package's functions on simulated batches.

    closed_forms  expectations for Gaussian activations
    descent       gradient descent on the eigenvalues themselves, simulated
    bases         bases from few examples, simulated
"""
