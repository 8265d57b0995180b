"""Times spectra of many layers, of recordings with noise, and of wide layers.

Every finished measurement leaves a JSON file in the output folder and is not repeated,
so the script can be stopped and started again.

    python -m benchmarks.recordings
    python -m benchmarks.recordings --measure wide --sizes 50000x20000x1000

    layers       all layers of a MobileNetV2 in one pass, and in a pass for each
    repeats      cvPCA and PCA of two simulated repeats: exponents, time, memory
    wide         leading eigenvalues of wide samples, against all of them
    definitions  the figures of a spectrum beside α-ReQ's and RankMe's

The simulated signal has the variances n^(−α) along the units themselves. No figure
depends on the axes, and the noise is white, so a rotation would only take time.
"""

import argparse
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from keras import layers
from sklearn.datasets import load_digits

import keras_powerlaw as kp
from benchmarks.clock import Clock
from benchmarks.machine import forget_peak, memory
from benchmarks.measuring import measured, print_table


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
    options = {"reduction": "channels", "batch_size": 32, "verbose": 0}
    kp.measure_spectrum(model, x[:32], "Conv1", **options)
    spectra, together, growth = clocked(
        lambda: kp.measure_spectrum(model, x, layers.Layer, **options)
    )
    alone, apart, _ = clocked(
        lambda: {
            name: kp.measure_spectrum(model, x, name, **options) for name in spectra
        }
    )
    return {
        "layers": len(spectra),
        "together": together,
        "apart": apart,
        "growth": growth,
        "equal": all(
            np.array_equal(spectra[name].eigenvalues, alone[name].eigenvalues)
            for name in spectra
        ),
    }


def two_repeats(stimuli, units, alpha, noise):
    """Exponents of a simulated recording, and what they cost."""
    signal = samples(stimuli, units, alpha, seed=0)
    scale = np.float32(
        np.sqrt(noise * np.sum(np.arange(1, units + 1) ** -alpha) / units)
    )
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


def wide(units, rows, components, full):
    """Time and memory of leading eigenvalues, and their largest relative error."""
    data = samples(rows, units, 1.0, seed=0)
    leading, seconds, growth = clocked(
        lambda: kp.Spectrum.from_samples(data, components=components)
    )
    result = {"seconds": seconds, "growth": growth, "data": round(data.nbytes / 2**20)}
    if full:
        spectrum, result["full_seconds"], result["full_growth"] = clocked(
            lambda: kp.Spectrum.from_samples(data)
        )
        ratios = leading.eigenvalues / spectrum.eigenvalues[:components]
        result["error"] = float(np.max(np.abs(ratios - 1)))
    return result


def alpha_req(activations, first, last):
    """α of Agrawal et al. (2022): the unweighted slope of log λₙ on log n."""
    found = np.linalg.eigvalsh(np.cov(activations, rowvar=False))[::-1]
    n = np.arange(first, last + 1)
    return float(-np.polyfit(np.log(n), np.log(found[first - 1 : last]), 1)[0])


def rank_me(activations, epsilon=1e-7):
    """Garrido et al. (2023), eq. (1): of the singular values, the mean left in."""
    singular = np.linalg.svd(activations, compute_uv=False)
    shares = singular / singular.sum() + epsilon
    return float(np.exp(-np.sum(shares * np.log(shares))))


def definitions(width, epochs):
    """The same activations under the package's and two others' definitions."""
    keras.utils.set_random_seed(0)
    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype("float32")
    found = {}
    for activation in ("tanh", "relu"):
        hidden = layers.Dense(width, activation=activation, name="hidden")
        model = keras.Sequential([keras.Input((64,)), hidden, layers.Dense(10)])
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile("adam", loss)
        model.fit(x, y, batch_size=100, epochs=epochs, verbose=0)
        activations = keras.ops.convert_to_numpy(hidden(x)).astype("float64")
        spectrum = kp.measure_spectrum(
            model, x, "hidden", fit_range=(11, width // 2), verbose=0
        )
        found[activation] = {
            "exponent": spectrum.exponent,
            "alpha_req": alpha_req(activations, 11, width // 2),
            "alpha_req_all": alpha_req(activations, 1, spectrum.rank),
            "effective_rank": spectrum.effective_rank,
            "rank_me": rank_me(activations),
            "rank_me_centered": rank_me(activations - activations.mean(axis=0)),
            "curvature": spectrum.curvature,
            "follows_power_law": spectrum.follows_power_law,
        }
    return found


def rows_of(results):
    """A table of whatever a kind of measurement leaves."""
    keys = [key for key in results[0] if key not in ("machine", "finished")]
    return [keys, *([str(result.get(key, "–")) for key in keys] for result in results)]


def sizes(text):
    return tuple(map(int, text.split("x")))


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add, kinds = parser.add_argument, ("layers", "repeats", "wide", "definitions")
    add("--output", type=pathlib.Path, default=pathlib.Path("docs/benchmarks"))
    add("--measure", nargs="+", choices=kinds, default=kinds)
    add("--images", type=int, default=64, help="for layers")
    add("--stimuli", type=int, default=2800)
    add("--units", type=int, default=10_000)
    add("--noise", type=float, nargs="+", default=[1.0], help="over the signal")
    shape = {"type": sizes, "nargs": "+", "metavar": "UNITSxSAMPLESxCOMPONENTS"}
    add("--sizes", **shape, default=[(10_000, 4000, 200)])
    add("--full", type=int, default=5000, help="most samples for all eigenvalues")
    add("--epochs", type=int, default=20, help="for definitions")
    args = parser.parse_args(argv)
    args.output.mkdir(parents=True, exist_ok=True)

    def keep(name, run, **settings):
        measured(args.output, name, settings, lambda: run(**settings))

    if "layers" in args.measure:
        keep(f"layers-{args.images}", many_layers, images=args.images)
    if "repeats" in args.measure:
        for noise in args.noise:
            shape = {"stimuli": args.stimuli, "units": args.units}
            name = f"repeats-{args.stimuli}x{args.units}-{noise:g}"
            keep(name, two_repeats, **shape, alpha=1.0, noise=noise)
    if "wide" in args.measure:
        for units, rows, components in args.sizes:
            shape = {"units": units, "rows": rows, "components": components}
            name = f"wide-{units}x{rows}x{components}"
            keep(name, wide, **shape, full=rows <= args.full)
    if "definitions" in args.measure:
        keep("definitions-200", definitions, width=200, epochs=args.epochs)
    for kind in args.measure:
        print_table(kind, args.output, rows_of)


if __name__ == "__main__":
    main()
