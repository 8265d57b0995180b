"""What a batch of B examples, and a basis from M examples, do to the penalty.

Prints the tables of "Small batches" in docs/theory.md:

    batch    closed forms for Gaussian activations, which tests/test_small_batches.py
             checks against the package's functions on simulated batches
    anchors  closed forms, likewise Gaussian
    descent  simulation: gradient descent on the eigenvalues themselves (a minute)
    refresh  simulation: bases from few examples (some minutes)
    network  trains one layer of 200 units on MNIST at three batch sizes (some minutes)

    python -m benchmarks.small_batches
    python -m benchmarks.small_batches --tables batch anchors
"""

import argparse

import keras
import numpy as np
from scipy import optimize, special, stats

import keras_powerlaw as kp
from keras_powerlaw import Spectrum
from keras_powerlaw.spectral import spectra

BATCHES = (32, 64, 128, 500, 1000, 3000)


class Ratio:
    """The law of (λ̂ₙ/λₙ) / (anchor/its expectation) over Gaussian batches.

    With d = B − 1: F(d, d) if the anchor is the batch's own λ̂_τ, χ²(d)/d if it is
    free of noise.
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


def batch_table():
    print("| B | std of λ̂ₙ/λₙ | squares | hinge | equilibrium | steady anchor |")
    print("|---|---|---|---|---|---|")
    for batch in BATCHES:
        own, steady = Ratio(batch), Ratio(batch, steady=True)
        square, hinge = expected_penalty(own)
        print(
            f"| {batch} | {np.sqrt(2 / (batch - 1)):.3f} | {square:.4f} | {hinge:.4f} "
            f"| {equilibrium(own):.3f} | {equilibrium(steady):.3f} |"
        )


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


def anchors_table(width=1000):
    n = np.arange(1, width + 1)
    print("| anchor | exponent | over λ_τ | std, B = 64 | 500 | 3000 |")
    print("|---|---|---|---|---|---|")
    for name in anchors(1 / n, 64):
        for exponent in (1.0, 1.6):
            means, spreads = zip(
                *(anchors(n**-exponent, b)[name] for b in (64, 500, 3000)), strict=True
            )
            figures = " | ".join(f"{value:.3f}" for value in (means[-1], *spreads))
            print(f"| {name} | {exponent} | {figures} |")


# --- gradient descent on log λₙ, each batch's estimates drawn from their law ----------


def eq2_force(r):
    return 2 * r * (r - 1) + r * (r > 1)


def log_ratio_force(r):
    return 2 * np.log(r)


ANCHORS = {
    "own": lambda estimates, decay, size, refreshed: estimates[0],
    "sum": lambda estimates, decay, size, refreshed: (
        estimates[:size].sum() / decay[:size].sum()
    ),
    "geometric": lambda estimates, decay, size, refreshed: np.exp(
        np.mean(np.log((estimates / decay)[:size]))
    ),
    "refresh": lambda estimates, decay, size, refreshed: (
        refreshed[0] * estimates.sum() / refreshed.sum()
    ),
}


def descend(batch, anchor, force, *, width=200, tau=10, last=40, steps=4000, rate=0.01):
    """Starts on the target n^−1; the anchor is a constant for the gradient.

    Args:
        batch: B.
        anchor: `"own"`, `"sum"`, `"geometric"` or `"refresh"` (the true λ_τ of every
            20 steps, times the growth of the tail's sum since).
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


def descent_table():
    print("| penalty | anchor | B | λ_τ over its start | tail over λ_τ |")
    print("|---|---|---|---|---|")
    for name, force in {"eq. (2)": eq2_force, "log ratio": log_ratio_force}.items():
        for anchor in ANCHORS:
            for batch in (64, 500, 3000):
                scale, ratio = descend(batch, anchor, force)
                print(
                    f"| {name} | {anchor} | {batch} | {scale:.3g} | {ratio:.3f} |",
                    flush=True,
                )


# --- a basis from M examples ----------------------------------------------------------


def sample_eigenvectors(variances, examples, rng, block=1000):
    """Sample eigenvalues, and the true variances along the sample eigenvectors."""
    running = spectra.StreamingCovariance()
    for start in range(0, examples, block):
        count = min(block, examples - start)
        running.update(rng.normal(size=(count, len(variances))) * np.sqrt(variances))
    eigenvalues, vectors = spectra.eigendecomposition(running.covariance())
    return eigenvalues, variances @ vectors**2


def refresh_table(ratios=(0.5, 1, 1.5, 2, 3, 5, 10)):
    """What is measured on the M examples, and what the penalty then sees.

    Exponents from n = 11, of the sample eigenvalues and of the true variances along
    the sample eigenvectors; the last one's variance over λ_N; eq. (2) at β = 1 of these
    variances, without noise.
    """
    print("| true | N | M/N | sample: to 500 | to N | along: to 500 | to N ", end="")
    print("| n = N | penalty |")
    print("|---|---|---|---|---|---|---|---|---|")
    for exponent, widths in ((1.0, (500, 1000, 2000)), (1.6, (1000,))):
        for width in widths:
            true = np.arange(1, width + 1) ** -exponent
            for ratio in ratios:
                rng = np.random.default_rng(0)
                values, along = sample_eigenvectors(true, int(ratio * width), rng)
                rank = Spectrum(values).rank
                exponents = [
                    spectra.fit_power_law(of, 11, end)[0]
                    for of, ends in (
                        (values, (min(500, rank), rank)),
                        (along, (500, width)),
                    )
                    for end in ends
                ]
                penalty = spectra.power_law_penalty(along[9:], exponent)
                print(
                    f"| {exponent} | {width} | {ratio} | "
                    + " | ".join(f"{value:.2f}" for value in exponents)
                    + f" | {along[-1] / true[-1]:.2f} | {float(penalty):.3f} |",
                    flush=True,
                )


# --- a network ------------------------------------------------------------------------


def network_table(width=200, tau=10, images=30000):
    """λₙ/γₙ of the spectrum over all images after training, behind τ."""
    from examples.experiments import data

    (x, y), _ = data.load("mnist")
    x, y = x[:images], y[:images]
    print("| B | steps | exponent | n = 11 | 20 | 40 | 80 | 150 | 200 |")
    print("|---|---|---|---|---|---|---|---|---|")
    for batch, steps in ((64, 3000), (500, 3000), (3000, 1500)):
        keras.utils.set_random_seed(0)
        model = keras.Sequential(
            [
                keras.Input(x.shape[1:]),
                keras.layers.Flatten(),
                keras.layers.Dense(width, activation="tanh"),
                keras.layers.BatchNormalization(
                    activity_regularizer=kp.SpectralActivityRegularizer(
                        tau=tau, beta=5.0
                    ),
                    name="hidden",
                ),
                keras.layers.Dense(10),
            ]
        )
        model.compile(
            keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(1e-3, steps)),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )
        refresh = kp.EigenbasisRefresh(x, every_steps=25, max_samples=20 * width)
        epochs = steps * batch // images
        model.fit(x, y, batch, epochs, verbose=0, callbacks=[refresh])
        spectrum = kp.measure_spectrum(
            model, x, "hidden", fit_range=(tau + 1, width), verbose=0
        )
        n = np.arange(1, width + 1)
        ratios = spectrum.eigenvalues / spectrum.eigenvalues[tau - 1] * n / tau
        shown = " | ".join(f"{ratios[k - 1]:.2f}" for k in (11, 20, 40, 80, 150, 200))
        print(f"| {batch} | {steps} | {spectrum.exponent:.2f} | {shown} |", flush=True)


TABLES = {
    "batch": batch_table,
    "anchors": anchors_table,
    "descent": descent_table,
    "refresh": refresh_table,
    "network": network_table,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    for name in parser.parse_args().tables:
        print(f"\n{name}\n")
        TABLES[name]()


if __name__ == "__main__":
    main()
