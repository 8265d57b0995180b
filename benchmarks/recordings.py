"""Spectra of many layers, and of recordings with noise.

The simulated signal has the variances n^(−α) along the units themselves. No figure
depends on the axes, and the noise is white, so a rotation would only take time.
"""

import keras
import numpy as np
from keras import layers

import keras_powerlaw as kp
from benchmarks.measuring import Clock, forget_peak, memory


def layer_cases(args):
    yield {"images": args.images or 64}, lambda settings: many_layers(**settings)


def repeat_cases(args):
    shape = {"stimuli": args.stimuli, "units": args.units}
    for noise in args.noise:  # over the signal
        settings = {**shape, "alpha": 1.0, "noise": noise}
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


def many_layers(images):
    """Seconds for all layers of a network, in one pass and one by one."""
    keras.utils.set_random_seed(0)
    model = keras.applications.MobileNetV2((96, 96, 3), weights=None)
    x = np.random.default_rng(0).random((images, 96, 96, 3), "float32")

    def measure(layer, x=x):
        options = {"reduction": "channels", "batch_size": 32, "verbose": 0}
        return kp.measure_spectrum(model, x, layer, **options)

    measure("Conv1", x[:32])
    spectra, together, growth = clocked(lambda: measure(layers.Layer))
    alone, apart, _ = clocked(lambda: {name: measure(name) for name in spectra})
    equal = all(
        np.array_equal(spectra[name].eigenvalues, alone[name].eigenvalues)
        for name in spectra
    )
    found = {"layers": len(spectra), "together": together, "apart": apart}
    return {**found, "growth": growth, "equal": equal}


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
