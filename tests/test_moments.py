"""Moments of recordings and layers: closed forms, simulations, published fits."""

import itertools
from pathlib import Path

import numpy as np
import pytest

import keras_powerlaw as kp

BROKEN = kp.BrokenPowerLaw(0.5, 1.2, 20)


def repeats(stimuli, units, law=None, noise=1.0, seed=0):
    """Two recordings of a signal along random axes, in white noise."""
    law = law or kp.PowerLaw(1.0)
    rng = np.random.default_rng(seed)
    variances = law.levels(np.arange(1, units + 1))
    axes = np.linalg.qr(rng.normal(size=(units, units)))[0]
    signal = 3 + (rng.normal(size=(stimuli, units)) * np.sqrt(variances)) @ axes
    scale = np.sqrt(noise * variances.mean())
    return [signal + scale * rng.normal(size=signal.shape) for _ in range(2)]


def exact(law, level=0.01, units=2000, count=6):
    """The moments of a law, and a covariance like that of recordings."""
    k = np.arange(1, count + 1)
    moments = np.mean(
        (level * law.levels(np.arange(1, units + 1))) ** k[:, None], axis=1
    )
    errors = 0.01 * np.minimum.outer(k, k) * moments * moments[:, None] / 10
    return moments, errors, units


def test_moments_have_no_bias_however_few_the_stimuli():
    units, law = 20, kp.PowerLaw(1.0)
    found = []
    for seed in range(150):
        some = repeats(60, units, law, seed=seed)
        found.append(kp.moment_spectrum(*some, seed=seed).moments[:3])
    k = np.arange(1, 4)[:, None]
    true = np.mean(law.levels(np.arange(1, units + 1)) ** k, axis=1)
    errors = np.std(found, axis=0) / np.sqrt(len(found))
    assert np.all(np.abs(np.mean(found, axis=0) - true) < 3 * errors)
    assert np.all(errors < 0.15 * true)


def layer(samples, units, law=None, seed=0):
    """Activations without noise, along random axes."""
    return repeats(samples, units, law, noise=0.0, seed=seed)[0]


def test_moments_of_one_repeat_are_the_sums_over_ordered_cycles():
    samples = layer(24, 5)
    found = kp.moment_spectrum(samples, seed=3).moments
    rng, expected = np.random.default_rng(3), []
    for _ in range(10):  # pairings and orders
        order = rng.permutation(np.arange(24))
        rows = (samples[order[:12]] - samples[order[12:]]) / np.sqrt(2)
        products = rows @ rows.T
        expected.append(
            [
                np.mean(
                    [
                        np.prod(products[list(cycle), [*cycle[1:], cycle[0]]])
                        for cycle in itertools.combinations(range(12), k)
                    ]
                )
                for k in range(1, 7)
            ]
        )
    np.testing.assert_allclose(found, np.mean(expected, axis=0) / 5, rtol=1e-6)


def test_moments_of_one_repeat_have_no_bias_where_pca_has():
    units, law = 20, kp.PowerLaw(1.0)
    k, found, plain = np.arange(1, 4)[:, None], [], []
    for seed in range(150):
        samples = layer(60, units, law, seed=seed)
        found.append(kp.moment_spectrum(samples, seed=seed).moments[:3])
        eigenvalues = kp.Spectrum.from_samples(samples).eigenvalues
        plain.append(np.mean(eigenvalues**k, axis=1))
    true = np.mean(law.levels(np.arange(1, units + 1)) ** k, axis=1)
    errors = np.std(found, axis=0) / np.sqrt(len(found))
    assert np.all(np.abs(np.mean(found, axis=0) - true) < 3 * errors)
    assert np.all((np.mean(plain, axis=0) - true)[1:] > 3 * errors[1:])


def test_finds_the_exponent_of_a_layer_from_as_many_samples_as_units():
    exponents, covered = [], 0
    for seed in range(10):
        samples = layer(200, 200, seed=seed)
        spectrum = kp.moment_spectrum(samples, seed=seed)
        low, high = spectrum.exponent_interval
        exponents.append(spectrum.exponent)
        covered += low < 1 < high
    assert abs(np.mean(exponents) - 1) < 0.03 and covered >= 8
    assert kp.Spectrum.from_samples(samples).exponent > 1.5


@pytest.mark.parametrize("breaks", [None, 20, "search"])
def test_of_three_directions_alone_no_law_fits(breaks):
    samples = layer(60, 200)
    samples[:, 3:] = 1e-3 * samples[:, :1]
    spectrum = kp.moment_spectrum(samples, breaks=breaks)
    assert np.isfinite(spectrum.exponent) and spectrum.break_gain >= 0


@pytest.mark.parametrize("function", ["moment_spectrum", "participation_ratio"])
def test_dead_units_of_a_layer_do_not_count(function):
    of = getattr(kp, function)
    alive = layer(60, 30)
    with_dead = np.insert(alive, [0, 7, 7, 30], 2.5, axis=1)
    expected, found = of(alive), of(with_dead)
    if function == "moment_spectrum":
        assert found.units == expected.units == 30
        expected, found = expected.moments, found.moments
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("breaks", [None, 20, "search"])
def test_recovers_a_law_from_its_moments(breaks):
    law = kp.PowerLaw(0.9) if breaks is None else BROKEN
    spectrum = kp.MomentSpectrum(*exact(law), breaks)
    fields = list(vars(law))
    expected = [getattr(law, field) for field in fields]
    found = [getattr(spectrum.target, field) for field in fields]
    np.testing.assert_allclose(found, expected, rtol=1e-3)
    np.testing.assert_allclose(spectrum.level, 0.01, rtol=1e-3)
    assert spectrum.exponent == found[min(1, len(found) - 1)]
    assert spectrum.chi_squared < 1e-3 < 0.99 < spectrum.p_value
    assert spectrum.needs_break == (breaks is not None)
    for field, (low, high) in spectrum.intervals.items():
        assert low < getattr(law, field) < high
    n = np.arange(1, 2001)
    np.testing.assert_allclose(spectrum.levels(n), 0.01 * law.levels(n), rtol=2e-3)
    assert spectrum.levels(np.array([2001]))[0] == 0
    cumulative = np.cumsum(law.levels(n))
    np.testing.assert_allclose(
        spectrum.dimension_90, np.sum(cumulative < 0.9 * cumulative[-1]) + 1, atol=3
    )


def test_the_interval_is_as_wide_as_the_errors_of_moments_make_the_exponent():
    moments, covariance, units = exact(BROKEN)
    rng = np.random.default_rng(0)
    fits = [
        kp.MomentSpectrum(each, covariance, units, 20)
        for each in rng.multivariate_normal(moments, covariance / 4, size=300)
    ]
    low, high = kp.MomentSpectrum(moments, covariance / 4, units, 20).exponent_interval
    deviation = np.std([fit.exponent for fit in fits])
    np.testing.assert_allclose((high - low) / 2 / 1.96, deviation, rtol=0.15)
    # χ² is that of six moments less three parameters; a straight line is rejected.
    freedom = fits[0].degrees_of_freedom
    assert freedom == 3
    straight = kp.MomentSpectrum(moments, covariance / 4, units)
    assert straight.p_value < 1e-3 and straight.degrees_of_freedom == 4


@pytest.mark.parametrize("law", [kp.PowerLaw(0.8), kp.PowerLaw(1.2), BROKEN])
def test_finds_the_exponent_behind_noise_that_biases_cvpca(law):
    first, second = repeats(300, 600, law, seed=1)
    straight = isinstance(law, kp.PowerLaw)
    true, fit_range = (law.alpha, (11, 150)) if straight else (law.beyond, (20, 150))
    spectrum = kp.moment_spectrum(first, second, breaks=None if straight else 20)
    low, high = spectrum.exponent_interval
    assert low < true < high and high - low < 0.3
    crossed = kp.cross_validated_spectrum(first, second, fit_range=fit_range)
    assert abs(spectrum.exponent - true) < 0.5 * abs(crossed.exponent - true)
    assert spectrum.needs_break != straight


def published():
    """Of each recording: neurons, fits, moments and their covariance."""
    rows = np.loadtxt(Path(__file__).with_name("mouse_v1.csv"), delimiter=",")
    for row in rows:
        moments, deviations = row[5:15], row[15:25]
        correlations = np.eye(10)
        correlations[np.tril_indices(10, -1)] = row[25:]
        correlations += np.tril(correlations, -1).T
        covariance = correlations * np.outer(deviations, deviations)
        yield int(row[0]), row[1:5], moments, covariance


@pytest.mark.parametrize("recording", range(7))
def test_fits_of_mouse_v1_are_the_published_ones(recording):
    units, (alone, alpha, beyond, at), *estimated = list(published())[recording]
    straight = kp.MomentSpectrum(*estimated, units)
    broken = kp.MomentSpectrum(*estimated, units, at)
    assert abs(straight.exponent - alone) < 0.002
    assert abs(broken.target.alpha - alpha) < 0.01
    assert abs(broken.target.beyond - beyond) < 0.01
    assert straight.needs_break
    searched = kp.MomentSpectrum(*estimated, units, "search")
    assert searched.chi_squared <= broken.chi_squared
    assert abs(searched.target.at - at) < 2


def test_published_moments_are_fitted_with_the_covariance_of_their_bootstraps():
    units, (alone, *_), moments, covariance = next(published())
    values, vectors = np.linalg.eigh(covariance / np.outer(moments, moments))
    draws = np.random.default_rng(0).normal(size=(1200, 10)) * np.sqrt(np.abs(values))
    bootstraps = moments * (1.1 + draws @ vectors.T)  # not centered on the moments
    spectrum = kp.MomentSpectrum.from_moments(moments, bootstraps, units)
    assert abs(spectrum.exponent - alone) < 0.05
    widths = np.diff(spectrum.moment_intervals)[:, 0] / 2 / 1.96
    np.testing.assert_allclose(widths, np.sqrt(covariance.diagonal()), rtol=0.1)


def test_arrays_in_files_and_seeds_give_the_same(tmp_path, capsys):
    first, second = repeats(60, 40)
    files = []
    for name, values in (("a", first), ("b", second)):
        np.save(tmp_path / f"{name}.npy", values)
        files.append(np.load(tmp_path / f"{name}.npy", mmap_mode="r"))
    spectra = [
        kp.moment_spectrum(*files, seed=3, verbose=1),
        kp.moment_spectrum(first, second, seed=3),
        kp.moment_spectrum(1e6 * first, 1e6 * second, seed=3),
        kp.moment_spectrum(first, second, seed=4),
    ]
    exponents = [spectrum.exponent for spectrum in spectra]
    assert exponents[0] == exponents[1] != exponents[3]
    np.testing.assert_allclose(exponents[2], exponents[0], rtol=1e-6)
    np.testing.assert_allclose(spectra[2].level, 1e12 * spectra[0].level, rtol=1e-5)
    assert "Estimating the moments" in capsys.readouterr().out


def of_constants(first, second):
    first, second = first.copy(), second.copy()
    first[:, 3] = second[:, 3] = 0.0
    return first, second


def unrelated(first, second):
    return first, np.random.default_rng(9).permutation(second)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a, b: (a, a.copy()), "argument `second`. Expected another repeat than"),
        (lambda a, b: (a, b[:-1]), "argument `second`. Expected responses of the same"),
        (lambda a, b: (a[:23], b[:23]), "argument `first`. Expected at least 24 stimu"),
        (lambda a, b: (a * np.nan, b), "argument `first`. Expected finite numbers"),
        (of_constants, "1 units that are constant in both repeats"),
        (unrelated, "The repeats share no signal that can be told from noise"),
        (
            lambda a, b: (a, -b),
            "The repeats share no signal that can be told from nois",
        ),
    ],
)
def test_what_are_no_two_repeats_is_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        kp.moment_spectrum(*change(*repeats(60, 30)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a[:23], "Expected at least 24 stimuli"),
        (lambda a: 0 * a, "Expected responses that differ between stimuli"),
        (lambda a: a * np.inf, "Expected finite numbers"),
        (lambda a: a[0], "Expected an array of real numbers"),
    ],
)
def test_what_is_no_repeat_is_refused_by_name(change, message):
    with pytest.raises(ValueError, match=f"argument `first`. {message}"):
        kp.moment_spectrum(change(layer(60, 30) + 1))


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("breaks", {"breaks": 0}),
        ("breaks", {"breaks": "two"}),
        ("bootstraps", {"bootstraps": np.ones((9, 5))}),
        ("bootstraps", {"bootstraps": np.ones((6, 6))}),
        ("covariance", {"bootstraps": np.ones((9, 6))}),
        ("moments", {"moments": [1.0, 1.0, -1.0, 1.0, 1.0, 1.0]}),
        ("moments", {"breaks": 5, "moments": [1.0] * 4, "bootstraps": np.eye(9, 4)}),
        ("units", {"units": 2}),
    ],
)
def test_other_moments_are_refused_by_name(name, changed):
    bootstraps = np.random.default_rng(0).normal(size=(9, 6))
    given = {"moments": [1.0] * 6, "bootstraps": bootstraps, "units": 10} | changed
    with pytest.raises(ValueError, match=f"argument `{name}`. Expected"):
        kp.MomentSpectrum.from_moments(**given)


def by_definition(a, b, sampled_units):
    """Sums over distinct stimuli and, of sampled units, over distinct units."""
    numerator = denominator = 0.0
    for i, j, k, m in itertools.permutations(range(len(a)), 4):
        own = (a[i] - a[k]) * b[i], (a[j] - a[m]) * b[j]
        crossed = np.outer(a[i] - a[k], b[i]) * np.outer(a[j] - a[m], b[j]).T
        each = np.stack([np.outer(*own), crossed])
        if sampled_units:
            each[:, range(a.shape[1]), range(a.shape[1])] = 0.0
        numerator, denominator = np.sum(each, axis=(1, 2)) + (numerator, denominator)
    return numerator / denominator


@pytest.mark.parametrize("sampled_units", [True, False])
@pytest.mark.parametrize("again", [True, False])
def test_participation_ratio_is_that_of_distinct_stimuli_and_units(
    sampled_units, again
):
    rng = np.random.default_rng(0)
    a = rng.normal(size=(7, 3)) @ rng.normal(size=(3, 5)) + 2
    b = a + 0.2 * rng.normal(size=a.shape) if again else None
    found = kp.participation_ratio(a, b, sampled_units=sampled_units)
    expected = by_definition(a, a if b is None else b, sampled_units)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_participation_ratio_is_that_of_the_package_dimensionality():
    # Of one repeat: of two, its figures change with a constant added to both.
    dimensionality = pytest.importorskip("dimensionality", reason="is not installed")
    first, _ = repeats(80, 120, kp.PowerLaw(0.7), noise=0.2)
    found = dimensionality.participation_ratio(first, return_all=True)
    np.testing.assert_allclose(kp.participation_ratio(first), found["both"], rtol=1e-7)
    of_all = kp.participation_ratio(first, sampled_units=False)
    np.testing.assert_allclose(of_all, found["row"], rtol=1e-7)


def test_participation_ratio_is_without_noise_and_without_bias():
    law, found = kp.PowerLaw(0.8), []
    variances = law.levels(np.arange(1, 201))
    for seed in range(20):
        some = repeats(100, 200, law, noise=1.0, seed=seed)
        found.append(kp.participation_ratio(*some, sampled_units=False))
    plain = kp.Spectrum.from_samples(some[0]).participation_ratio
    true = variances.sum() ** 2 / np.sum(variances**2)
    assert abs(np.mean(found) / true - 1) < 0.1 < 0.15 < abs(plain / true - 1)


@pytest.mark.parametrize("shape", [(3, 5), (5, 1)])
def test_participation_ratio_needs_four_stimuli_and_two_units(shape):
    with pytest.raises(ValueError, match="argument `first`. Expected at least"):
        kp.participation_ratio(np.random.default_rng(0).normal(size=shape))
