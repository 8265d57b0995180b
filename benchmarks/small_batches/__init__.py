"""What a batch of B examples, and a basis from M examples, do to the penalty.

The mathematics behind "Small batches" in docs/theory.md; `python -m
benchmarks.small_batches` prints the page's tables, and the tests compare the closed
forms with the package's functions on simulated batches.

    closed_forms  expectations for Gaussian activations
    descent       gradient descent on the eigenvalues themselves, simulated
    bases         bases from few examples, simulated
    network       a network that is trained at three batch sizes
    tables        the tables
"""

from .bases import sample_eigenvectors
from .closed_forms import (
    Ratio,
    anchors,
    equilibrium,
    expected_force,
    expected_penalty,
)
from .descent import descend, eq2_force, log_ratio_force

__all__ = [
    "Ratio",
    "anchors",
    "descend",
    "eq2_force",
    "equilibrium",
    "expected_force",
    "expected_penalty",
    "log_ratio_force",
    "sample_eigenvectors",
]
