"""Closed forms for the penalty of small batches of Gaussian activations."""

import numpy as np
from scipy import optimize, special, stats


class Ratio:
    """The law of F = (λ̂ₙ/λₙ) / (anchor/its expectation) over Gaussian batches.

    With d = B − 1, it is F(d, d) if the anchor is the batch's own λ̂_τ, and χ²(d)/d if
    the anchor is free of noise (`steady`).
    """

    def __init__(self, batch, steady=False):
        d = batch - 1
        if steady:
            self.law = stats.chi2(d, scale=1 / d)
            self.mean, self.mean_square = 1.0, 1 + 2 / d
            # E[F; F > x] = E[F] P(F* > x), where F* has the density weighted by F.
            self._weighted = stats.chi2(d + 2, scale=1 / d)
        else:
            self.law = stats.f(d, d)
            self.mean = d / (d - 2)
            self.mean_square = d * (d + 2) / ((d - 2) * (d - 4))
            self._weighted = stats.betaprime(d / 2 + 1, d / 2 - 1)

    def mean_above(self, x):
        """E[F; F > x]"""
        return self.mean * self._weighted.sf(x)


def expected_penalty(ratio):
    """E[(F − 1)²] and E[max(0, F − 1)]: one direction that is on target."""
    square = ratio.mean_square - 2 * ratio.mean + 1
    return square, ratio.mean_above(1) - ratio.law.sf(1)


def expected_force(ratio, rho):
    """E ∂/∂log λₙ of (r − 1)² + max(0, r − 1), where r = rho F."""
    smooth = 2 * rho**2 * ratio.mean_square - 2 * rho * ratio.mean
    return smooth + rho * ratio.mean_above(1 / rho)


def equilibrium(ratio):
    """The λₙ/γₙ at which the expected gradient of eq. (2) is zero."""
    return optimize.brentq(lambda rho: expected_force(ratio, rho), 0.01, 2.0)


def anchors(variances, batch, tau=10, last=40, alpha=1.0):
    """Expectation over λ_τ, and relative standard deviation, of candidate anchors.

    Args:
        variances: λ₁ … λ_N.
        batch: B.
        tau: τ.
        last: m, the end of the band τ … m.
        alpha: α of the target.

    Returns:
        A dictionary, from the anchor's name to both.
    """
    d = batch - 1
    tail, band = variances[tau - 1 :], variances[tau - 1 : last]
    decay = (np.arange(tau, last + 1) / tau) ** -alpha

    def spread(values):  # relative standard deviation of a sum of estimates
        return np.sqrt(2 / d * np.sum(values**2)) / np.sum(values)

    def moment(k):  # E c^k of c ~ χ²(d)/d
        return (
            np.exp(special.gammaln(d / 2 + k) - special.gammaln(d / 2)) * (2 / d) ** k
        )

    size = len(band)
    mean = moment(1 / size) ** size  # of the product of all c^(1/size)
    square = moment(2 / size) ** size
    return {
        "the batch's own": (1.0, np.sqrt(2 / d)),
        "band, ratio of sums": (band.sum() / decay.sum() / band[0], spread(band)),
        "band, geometric mean": (
            np.exp(np.mean(np.log(band / decay))) * mean / band[0],
            np.sqrt(square / mean**2 - 1),
        ),
        "last refresh's": (1.0, spread(tail)),
    }
