"""Spectra of simulated recordings with noise, by cvPCA and by PCA.

The simulated signal has the variances n^(−α) along the units themselves. No figure
depends on the axes, and the noise is white, so a rotation would only take time.
"""

import numpy as np

import keras_powerlaw as kp
from benchmarks.measuring import Clock, forget_peak, memory


def cases(args):
    settings = {"stimuli": args.stimuli, "units": args.units}
    settings |= {"alpha": 1.0, "noise": 1.0}  # over the signal
    yield settings, lambda settings: two_repeats(**settings)


def samples(rows, units, alpha, seed):
    """Float32 samples with the variances n^(−α)."""
    rng = np.random.default_rng(seed)
    found = rng.standard_normal((rows, units), "float32")
    found *= np.arange(1, units + 1, dtype="float32") ** (-alpha / 2)
    return found


def clocked(run):
    """What a function returns, its seconds, and the growth of the memory in MiB."""
    before = memory("VmRSS")
    forget_peak()
    clock = Clock()
    result = run()
    return result, clock.read(), round(memory("VmHWM") - before)


def two_repeats(stimuli, units, alpha, noise):
    """Exponents of a simulated recording, and what they cost."""
    signal = samples(stimuli, units, alpha, seed=0)
    variance = np.sum(np.arange(1, units + 1) ** -alpha) / units
    scale = np.float32(np.sqrt(noise * variance))
    first, second = (
        signal + scale * samples(stimuli, units, 0.0, seed=seed) for seed in (1, 2)
    )
    clean = kp.Spectrum.from_samples(signal)
    del signal
    crossed, seconds, growth = clocked(
        lambda: kp.cross_validated_spectrum(first, second)
    )
    plain, plain_seconds, plain_growth = clocked(
        lambda: kp.Spectrum.from_samples(first)
    )
    ranges = [(11, min(last, units, stimuli - 1)) for last in (100, 250, 500)]

    def exponents(spectrum):
        kind = type(spectrum)
        return [kind(spectrum.eigenvalues, each).exponent for each in ranges]

    return {
        "ranges": ranges,
        "noiseless": exponents(clean),
        "cvPCA": exponents(crossed),
        "PCA": exponents(plain),
        "negative": crossed.negative,
        "seconds": seconds,
        "growth": growth,
        "PCA_seconds": plain_seconds,
        "PCA_growth": plain_growth,
    }


def table(results):
    """Whatever a kind of measurement leaves."""
    keys = list(results[0])[list(results[0]).index("machine") + 1 :]
    yield "settings", *keys
    for result in results:
        yield result["settings"], *(result[key] for key in keys)
