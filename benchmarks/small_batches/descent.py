"""Gradient descent on log λₙ, where each batch's estimates are drawn from their law."""

import numpy as np


def eq2_force(r):
    return 2 * r * (r - 1) + r * (r > 1)


def log_ratio_force(r):
    return 2 * np.log(r)


def nearest_force(r):
    return 2 * r * (r - 1)


ANCHORS = {
    "own": lambda estimates, decay, size, refreshed: estimates[0],
    "sum": lambda estimates, decay, size, refreshed: (
        estimates[:size].sum() / decay[:size].sum()
    ),
    "geometric": lambda estimates, decay, size, refreshed: np.exp(
        np.mean(np.log((estimates / decay)[:size]))
    ),
    # The nearest power law, for `nearest_force`.
    "nearest": lambda estimates, decay, size, refreshed: (
        ((estimates / decay) ** 2).sum() / (estimates / decay).sum()
    ),
    "refresh": lambda estimates, decay, size, refreshed: (
        refreshed[0] * estimates.sum() / refreshed.sum()
    ),
}


def descend(batch, anchor, force, *, width=200, tau=10, last=40, steps=4000, rate=0.01):
    """Starts on the target n^−1; the anchor is a constant for the gradient.

    Args:
        batch: B.
        anchor: `"own"`, `"sum"`, `"geometric"`, `"nearest"` or `"refresh"` (the true
            λ_τ of every 20 steps, times the growth of the tail's sum since).
        force: The derivative of one direction's penalty for log λₙ.
        width: N.
        tau: τ.
        last: m, the end of the band τ … m.
        steps: Steps of descent.
        rate: Learning rate.

    Returns:
        Means over the second half of the steps: λ_τ over its start, and
        (λₙ/λ_τ)(n/τ) averaged over n > m.
    """
    rng = np.random.default_rng(0)
    decay = tau / np.arange(tau, width + 1)
    size, d = last - tau + 1, batch - 1
    log_variances = np.log(decay)
    scales, ratios = [], []
    for step in range(steps):
        variances = np.exp(log_variances)
        if step % 20 == 0:
            refreshed = variances
        estimates = variances * rng.chisquare(d, len(decay)) / d
        gamma = decay * ANCHORS[anchor](estimates, decay, size, refreshed)
        gradient = force(estimates / gamma)
        if anchor in ("own", "refresh"):
            gradient[0] = 0.0  # λ_τ itself is left alone
        log_variances = log_variances - rate * gradient
        if step >= steps // 2:
            scales.append(variances[0])
            ratios.append((variances / variances[0] / decay)[size:].mean())
    return np.mean(scales), np.mean(ratios)
