"""Spectra of simulated recordings with noise, by moments, by cvPCA and by PCA.

The simulated signal has the variances of its law along the units themselves. No figure
depends on the axes, so a rotation of the signal would only take time.
"""

import functools
import itertools

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
    moments, moment_seconds, moment_growth = clocked(
        lambda: kp.moment_spectrum(first, second, verbose=0)
    )
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
        "moments": [moments.exponent, moments.exponent_interval],
        "cvPCA": exponents(crossed),
        "PCA": exponents(plain),
        "negative": crossed.negative,
        "seconds": seconds,
        "growth": growth,
        "moment_seconds": moment_seconds,
        "moment_growth": moment_growth,
        "PCA_seconds": plain_seconds,
        "PCA_growth": plain_growth,
    }


# Arguments of each law, and of its fit.
LAWS = (
    *(([alpha], None) for alpha in (0.8, 1.0, 1.2)),
    *(([0.5, 1.2, 20], breaks) for breaks in (20, "search")),
)
NOISES = ("any", "along")


def law_cases(args):
    """As many recordings of each law and noise as there are seeds."""
    for noise, law, seed in itertools.product(NOISES, LAWS, args.seeds):
        settings = {"stimuli": args.stimuli, "units": args.units, "noise": noise}
        settings |= dict(zip(("law", "breaks"), law, strict=True), seed=seed)
        yield settings, lambda settings: of_a_law(**settings)


@functools.cache
def rotation(units):
    """A random orthogonal matrix."""
    square = np.random.default_rng(0).standard_normal((units, units), "float32")
    return np.linalg.qr(square)[0]


def of_a_law(stimuli, units, noise, law, breaks, seed):
    """The exponent by each estimator; of a broken law, that beyond the break.

    The noise has the variances of the signal, along the same axes, or along random
    ones. cvPCA and PCA are fitted from n = 11 to at most half the stimuli, of a broken
    law from its break.
    """
    *exponents, at = law if len(law) == 3 else [*law, 11]
    target = kp.BrokenPowerLaw(*law) if len(exponents) == 2 else kp.PowerLaw(*law)
    rng = np.random.default_rng(seed)
    deviations = np.sqrt(target.levels(np.arange(1, units + 1)))

    def draw():
        return (rng.standard_normal((stimuli, units)) * deviations).astype("float32")

    signal, noises = draw(), [draw(), draw()]
    if noise == "any":
        noises = [each @ rotation(units) for each in noises]
    repeats = [signal + each for each in noises]

    def moments():
        found = kp.moment_spectrum(*repeats, breaks=breaks, seed=seed, verbose=0)
        return found, found.exponent

    (found, exponent), seconds, growth = clocked(moments)
    fit_range = (at, min(500, stimuli // 2))
    crossed = kp.cross_validated_spectrum(*repeats, fit_range=fit_range, splits=3)
    plain = kp.Spectrum.from_samples(repeats[0], fit_range=fit_range)
    return {
        "exponent": exponent,
        "interval": found.exponent_interval,
        "target": str(found.target),
        "chi_squared": found.chi_squared,
        "break_gain": found.break_gain,
        "needs_break": found.needs_break,
        "cvPCA": crossed.exponent,
        "PCA": plain.exponent,
        "seconds": seconds,
        "growth": growth,
    }


def law_table(results):
    """Bias and root mean square error of each; what the intervals cover."""
    yield (
        *("stimuli", "noise", "law", "break", "recordings", "moments", "95 % covers"),
        *("a break is needed", "cvPCA", "PCA", "CPU seconds"),
    )

    def kind(result):
        columns = ("stimuli", "noise", "law", "breaks")
        return [str(result["settings"][column]) for column in columns]

    for cells, group in itertools.groupby(sorted(results, key=kind), kind):
        group = list(group)
        truth = group[0]["settings"]["law"][:2][-1]

        def errors(name, group=group, truth=truth):
            off = np.array([result[name] for result in group]) - truth
            return f"{off.mean():+.3f} / {np.sqrt(np.mean(off**2)):.3f}"

        covered = sum(
            low <= truth <= high for low, high in (each["interval"] for each in group)
        )
        yield (
            *(*cells, len(group)),
            *(errors("exponent"), covered, sum(each["needs_break"] for each in group)),
            *(errors("cvPCA"), errors("PCA")),
            f"{np.median([each['seconds'][1] for each in group]):.2g}",
        )


def table(results):
    """Whatever a kind of measurement leaves."""
    keys = list(results[0])[list(results[0]).index("machine") + 1 :]
    yield "settings", *keys
    for result in results:
        yield result["settings"], *(result[key] for key in keys)
