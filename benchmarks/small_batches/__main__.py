"""Prints the tables of "Small batches" in docs/theory.md.

batch    closed forms for Gaussian activations
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

import keras_powerlaw as kp
from benchmarks.networks import PENALTY, mnist, shallow
from research.printed import print_rows

from .bases import sample_eigenvectors
from .closed_forms import Ratio, anchors, equilibrium, expected_penalty
from .descent import ANCHORS, descend, eq2_force, log_ratio_force, nearest_force

SHOWN = (11, 20, 40, 80, 150, 200)


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
            n = np.arange(1, width + 1)
            true = n**-exponent
            for ratio in ratios:
                rng = np.random.default_rng(0)
                values, along = sample_eigenvectors(true, int(ratio * width), rng)
                rank = kp.Spectrum(values).rank
                exponents = [
                    kp.Spectrum(of, fit_range=(11, end)).exponent
                    for of, ends in (
                        (values, (min(500, rank), rank)),
                        (np.sort(along)[::-1], (500, width)),
                    )
                    for end in ends
                ]
                excess = along[9:] / along[9] * (n[9:] / 10) ** exponent - 1
                penalty = np.sum(excess**2 + np.maximum(excess, 0)) / width
                yield (
                    *(exponent, width, ratio),
                    *(f"{value:.2f}" for value in exponents),
                    *(f"{along[-1] / true[-1]:.2f}", f"{penalty:.3f}"),
                )


def network_table(width=200, images=30_000):
    """λₙ/γₙ beyond τ, of the spectrum over all images after training."""
    yield "B", "steps", "exponent", f"n = {SHOWN[0]}", *SHOWN[1:]
    (x, y), _ = mnist(None)
    x, y, tau = x[:images], y[:images], PENALTY["tau"]
    for batch, steps in ((64, 3000), (500, 3000), (3000, 1500)):
        keras.utils.set_random_seed(0)
        rate = keras.optimizers.schedules.CosineDecay(1e-3, steps)
        model = shallow("regularized", width, learning_rate=rate)
        refresh = kp.EigenbasisRefresh(x, every_steps=25, max_samples=20 * width)
        epochs = steps * batch // images
        model.fit(x, y, batch, epochs, verbose=0, callbacks=[refresh])
        spectrum = kp.measure_spectrum(
            model, x, "hidden", fit_range=(tau + 1, width), verbose=0
        )
        n = np.arange(1, width + 1)
        ratios = spectrum.eigenvalues / spectrum.eigenvalues[tau - 1] * n / tau
        shown = (f"{ratios[k - 1]:.2f}" for k in SHOWN)
        yield batch, steps, f"{spectrum.exponent:.2f}", *shown


TABLES = {
    "batch": batch_table,
    "anchors": anchors_table,
    "descent": descent_table,
    "refresh": refresh_table,
    "network": network_table,
}


def main(argv=None):
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.small_batches",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    for name in parser.parse_args(argv).tables:
        print(f"\n{name}\n")
        print_rows(TABLES[name]())


if __name__ == "__main__":
    main()
