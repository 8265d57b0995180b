"""The tables of the closed forms and simulations, each a generator of rows."""

import numpy as np

from keras_powerlaw import Spectrum
from keras_powerlaw.penalty import spectral_penalty
from keras_powerlaw.spectrum import fit_power_law

from .bases import sample_eigenvectors
from .closed_forms import Ratio, anchors, equilibrium, expected_penalty
from .descent import ANCHORS, descend, eq2_force, log_ratio_force, nearest_force


def batch_table():
    """What noise does to a spectrum that is on target, and where descent ends."""
    yield "B", "std of λ̂ₙ/λₙ", "squares", "hinge", "equilibrium", "steady anchor"
    for batch in (32, 64, 128, 500, 1000, 3000):
        own, steady = Ratio(batch), Ratio(batch, steady=True)
        square, hinge = expected_penalty(own)
        yield (
            *(batch, f"{np.sqrt(2 / (batch - 1)):.3f}"),
            *(f"{square:.4f}", f"{hinge:.4f}"),
            *(f"{equilibrium(own):.3f}", f"{equilibrium(steady):.3f}"),
        )


def anchors_table(width=1000):
    """How far off, and how noisy, other anchors than λ̂_τ would be."""
    yield "anchor", "exponent", "over λ_τ", "std, B = 64", 500, 3000
    n = np.arange(1, width + 1)
    for name in anchors(1 / n, 64):
        for exponent in (1.0, 1.6):
            means, spreads = zip(
                *(anchors(n**-exponent, b)[name] for b in (64, 500, 3000)), strict=True
            )
            yield name, exponent, *(f"{value:.3f}" for value in (means[-1], *spreads))


def descent_table():
    """Where gradient descent ends, by penalty, anchor and batch."""
    yield "penalty", "anchor", "B", "λ_τ over its start", "tail over λ_τ"
    forces = {
        "eq. (2)": eq2_force,
        "log ratio": log_ratio_force,
        "nearest": nearest_force,
    }
    for name, force in forces.items():
        for anchor in ANCHORS:
            for batch in (64, 500, 3000):
                scale, ratio = descend(batch, anchor, force)
                yield name, anchor, batch, f"{scale:.3g}", f"{ratio:.3f}"


def refresh_table(ratios=(0.5, 1, 1.5, 2, 3, 5, 10)):
    """What is measured on the M examples, and what the penalty then sees.

    Exponents from n = 11, of the sample eigenvalues and of the true variances along
    the sample eigenvectors; the last one's variance over λ_N; eq. (2) at β = 1 of these
    variances, without noise.
    """
    yield (
        *("true", "N", "M/N", "sample: to 500", "to N", "along: to 500", "to N"),
        *("n = N", "penalty"),
    )
    for exponent, widths in ((1.0, (500, 1000, 2000)), (1.6, (1000,))):
        for width in widths:
            true = np.arange(1, width + 1) ** -exponent
            for ratio in ratios:
                rng = np.random.default_rng(0)
                values, along = sample_eigenvectors(true, int(ratio * width), rng)
                rank = Spectrum(values).rank
                exponents = [
                    fit_power_law(of, 11, end)[0]
                    for of, ends in (
                        (values, (min(500, rank), rank)),
                        (along, (500, width)),
                    )
                    for end in ends
                ]
                penalty = spectral_penalty(along[9:], exponent, form="paper")
                yield (
                    *(exponent, width, ratio),
                    *(f"{value:.2f}" for value in exponents),
                    *(f"{along[-1] / true[-1]:.2f}", f"{float(penalty):.3f}"),
                )
