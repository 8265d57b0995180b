"""Spectra, their fits, and the covariance of samples, against NumPy in float64."""

import dataclasses

import keras
import numpy as np
import pytest
import reference
from keras import layers
from models import network
from threadpoolctl import ThreadpoolController, threadpool_limits

import keras_powerlaw as kp
from keras_powerlaw import Spectrum, arguments
from keras_powerlaw.spectrum import (
    Covariance,
    Degenerate,
    fit_curvature,
    fit_power_law,
)
from keras_powerlaw.targets import PowerLaw

N = np.arange(1, 501)
# More samples than units, as many, fewer.
SHAPES = [(90, 30), (40, 40), (30, 90)]


def samples_like(shape, alpha=1.0, dtype="float64"):
    scales = np.arange(1, shape[1] + 1) ** (-alpha / 2)
    return (5 + np.random.default_rng(0).normal(size=shape) * scales).astype(dtype)


def eigenvalues_of(data):
    return np.maximum(reference.eigenvalues(data.astype("float64")), 0)


def covariance_of(data, parts=3, **options):
    running = Covariance(**options)
    for batch in np.array_split(data, parts):
        running.update(batch)
    return running


class TestExponent:
    @pytest.mark.parametrize("alpha", [0.5, 1.0, 1.5, 2.0])
    def test_of_an_exact_power_law(self, alpha):
        spectrum = Spectrum(5.0 * np.arange(1.0, 1001) ** -alpha)
        assert spectrum.fit_range == (11, 500)
        np.testing.assert_allclose(spectrum.exponent, alpha, rtol=1e-10)
        np.testing.assert_allclose(spectrum.exponent_interval, alpha, rtol=1e-8)
        np.testing.assert_allclose(spectrum.curvature, 0, atol=1e-10)
        assert spectrum.follows_power_law

    def test_weighs_by_one_over_n(self):
        n = np.arange(1, 101)
        eigenvalues = np.sort(np.random.default_rng(8).gamma(1.0, size=100))[::-1]
        design = np.stack([np.log(n), np.ones(100)], axis=1)
        weighted = design.T / n
        slope = np.linalg.solve(weighted @ design, weighted @ np.log(eigenvalues))[0]
        spectrum = Spectrum(eigenvalues, fit_range=(1, 100))
        np.testing.assert_allclose(spectrum.exponent, -slope, rtol=1e-10)

    @pytest.mark.parametrize(("fit", "true"), [(fit_power_law, 1), (fit_curvature, 0)])
    def test_interval_covers_under_independent_noise(self, fit, true):
        rng, covered = np.random.default_rng(9), 0
        for _ in range(200):
            _, (low, high) = fit(np.exp(0.1 * rng.normal(size=500)) / N, 11, 500)
            covered += low <= true <= high
        assert 0.85 <= covered / 200 <= 0.99

    def test_interval_is_wide_where_the_spectrum_bends(self):
        low, high = Spectrum(np.exp(-0.3 * np.log(N) ** 2)).exponent_interval
        assert high - low > 0.5
        assert np.ptp(Spectrum(N**-1.5).exponent_interval) < 1e-6

    def test_of_too_few_eigenvalues_is_nan(self):
        assert np.isnan(Spectrum([3.0, 2.0, 1.0]).exponent)
        assert np.isnan(Spectrum(np.zeros(30)).exponent)
        spectrum = Spectrum(1.0 / N[:13])
        assert np.isfinite(spectrum.exponent) and np.isnan(spectrum.curvature)
        assert not spectrum.follows_power_law


class TestCurvature:
    def test_is_the_change_of_the_local_exponent(self):
        # log λ = −c log² n has the local exponent 2c log n.
        spectrum = Spectrum(np.exp(-0.3 * np.log(N) ** 2))
        np.testing.assert_allclose(spectrum.curvature, 0.6 * np.log(500 / 11))
        np.testing.assert_allclose(spectrum.curvature_interval, spectrum.curvature)

    @pytest.mark.parametrize(
        "bent",
        [
            np.exp(-N / 300),
            np.exp(-0.15 * np.log(N) ** 2),
            N**-0.7 / (1 + N / 50),
            N**-2.0 + 2e-4,
        ],
        ids=["exponential", "log-normal", "two power laws", "with a floor"],
    )
    def test_tells_what_is_no_power_law_whatever_its_exponent(self, bent):
        spectrum = Spectrum(bent)
        assert not spectrum.follows_power_law
        # Its sign is that of the bend.
        assert (spectrum.curvature > 0) == (bent[499] < bent[499 // 2] ** 2 / bent[124])


class TestDistance:
    @pytest.mark.parametrize("alpha", [0.5, 1.0])
    def test_of_another_power_law_in_closed_form(self, alpha):
        spectrum = Spectrum(7.0 * N**-1.5)
        distance = spectrum.distance(alpha, (10, 500))
        logs = (1.5 - alpha) * np.log(N[9:] / 10)
        np.testing.assert_allclose(distance.median, np.median(logs))
        np.testing.assert_allclose(distance.maximum, logs[-1])
        assert distance == spectrum.distance(PowerLaw(alpha), (10, 500))

    def test_range_is_that_of_the_exponent_by_default(self):
        spectrum = Spectrum(1 / N**2.0, fit_range=(20, 80))
        np.testing.assert_allclose(spectrum.distance().maximum, np.log(80 / 20))

    def test_from_a_spectrum_of_another_scale_and_length(self):
        other = Spectrum(50.0 * N[:100] ** -0.8)
        distance = Spectrum(N**-1.0).distance(other)
        np.testing.assert_allclose(distance.maximum, 0.2 * np.log(100 / 11))
        np.testing.assert_allclose(other.distance(other), 0, atol=1e-12)

    def test_where_there_is_nothing_to_compare_is_nan(self):
        assert np.isnan(Spectrum(np.zeros(30)).distance().median)
        assert np.isnan(Spectrum(1.0 / N).distance(Spectrum(np.zeros(30))).median)


class TestSpectrum:
    def test_dimensions_in_closed_form(self):
        flat = Spectrum(np.full(40, 2.0))
        assert flat.dimension_90 == 36
        np.testing.assert_allclose(flat.participation_ratio, 40)
        # Σλ = 10, of which the first two hold 9.
        steep = Spectrum([6.0, 3.0, 1.0])
        assert steep.dimension_90 == 2
        np.testing.assert_allclose(steep.participation_ratio, 100 / 46)

    def test_ranks_in_closed_form(self):
        flat = Spectrum(np.full(40, 2.0))
        np.testing.assert_allclose([flat.effective_rank, flat.stable_rank], 40)
        # Singular values 2, 1, 1: shares ½, ¼, ¼, of entropy 1.5 log 2.
        spectrum = Spectrum([4.0, 1.0, 1.0, 0.0])
        np.testing.assert_allclose(spectrum.effective_rank, 2**1.5)
        np.testing.assert_allclose(spectrum.stable_rank, 6 / 4)
        none = Spectrum(np.zeros(3))
        assert none.effective_rank == none.stable_rank == 0

    def test_of_leading_eigenvalues_knows_what_these_tell(self):
        spectrum = Spectrum([6.0, 3.0], variance=10.0)
        assert spectrum.dimension_90 == 2
        np.testing.assert_allclose(spectrum.stable_rank, 10 / 6)
        assert np.isnan(spectrum.participation_ratio)
        assert np.isnan(spectrum.effective_rank)
        assert np.isnan(Spectrum([6.0, 2.0], variance=10.0).dimension_90)

    @pytest.mark.parametrize("floor", [None, 0.0, 1e-20])
    def test_knows_the_rounding_of_float64_by_itself(self, floor):
        spectrum = Spectrum(np.r_[1.0 / N[:10], np.full(10, 1e-16)], floor=floor)
        assert spectrum.rank == 10
        np.testing.assert_allclose(spectrum.floor, 20 * 2.0**-52)

    def test_ends_at_the_floor(self):
        spectrum = Spectrum(1.0 / N[:100], floor=1 / 60)
        assert spectrum.rank == 59
        assert spectrum.fit_range == (11, 59)
        np.testing.assert_allclose(spectrum.exponent, 1.0, rtol=1e-10)

    def test_fits_nothing_below_the_floor(self):
        eigenvalues = np.r_[1.0 / N[:40], np.full(60, 1e-14)]
        spectrum = Spectrum(eigenvalues, fit_range=(5, 100), floor=1e-14)
        assert spectrum.fit_range == (5, 100)  # as it was asked for
        np.testing.assert_allclose(spectrum.exponent, 1.0, rtol=1e-10)
        assert np.isnan(dataclasses.replace(spectrum, floor=1 / 7).exponent)

    @pytest.mark.parametrize(
        ("argument", "bad"),
        [
            *(("eigenvalues", x) for x in ([], [1, 2], [1, -1], [np.nan], [[1.0]])),
            *(("fit_range", x) for x in ((0, 5), (5, 5), (1, 11), (1.5, 4), 7, "ab")),
            *(("floor", x) for x in (-1.0, np.nan, "0")),
        ],
    )
    def test_refuses_what_is_no_spectrum(self, argument, bad):
        given = {"eigenvalues": 1.0 / N[:10], argument: bad}
        with pytest.raises(ValueError, match=f"argument `{argument}`. Expected"):
            Spectrum(**given)


class TestFromSamples:
    @pytest.mark.parametrize("components", [None, 10, 500])
    @pytest.mark.parametrize("dtype", ["float64", "float32", "int64"])
    @pytest.mark.parametrize("shape", SHAPES)
    def test_equals_numpy_whatever_the_batches(self, shape, dtype, components):
        data = (10 * samples_like(shape)).astype(dtype)
        expected = eigenvalues_of(data)
        tolerance = 1e-12 * expected[0]
        batches = np.array_split(data, 4)
        for given in (data, iter(batches)):
            spectrum = Spectrum.from_samples(given, components=components)
            found = spectrum.eigenvalues
            np.testing.assert_allclose(found, expected[:components], atol=tolerance)
            np.testing.assert_allclose(spectrum.variance, expected.sum())
            assert spectrum.rank == min(shape[0] - 1, shape[1], components or 500)

    @pytest.mark.parametrize("alpha", [1.0, 3.0])
    def test_leading_eigenvalues_of_float32_samples_are_exact(self, alpha):
        data = samples_like((200, 320), alpha, "float32")
        centered = data - data.mean(axis=0, dtype="float64")
        expected = np.linalg.svd(centered, compute_uv=False) ** 2 / 199
        found = Spectrum.from_samples(data, components=150).eigenvalues
        np.testing.assert_allclose(found, expected[:150], rtol=1e-7)

    def test_reads_a_file_in_parts(self, tmp_path):
        data = samples_like((3000, 4))
        np.save(tmp_path / "recording.npy", data)
        mapped = np.load(tmp_path / "recording.npy", mmap_mode="r")
        np.testing.assert_allclose(
            Spectrum.from_samples(mapped).eigenvalues, eigenvalues_of(data)
        )

    def test_forms_no_square_of_the_units_of_a_wide_recording(self, monkeypatch):
        # Room for the Gram matrix of the samples, but not for a covariance.
        monkeypatch.setattr(arguments, "installed_memory", lambda: 2**20)
        assert Spectrum.from_samples(samples_like((20, 2000))).rank == 19
        with pytest.raises(ValueError, match=r"'samples' \(200 units\). .* 0.0 GiB"):
            Spectrum.from_samples(samples_like((200, 2000)))

    @pytest.mark.parametrize(
        ("bad", "message"),
        [
            (np.zeros((1, 3)), "at least two samples"),
            (np.zeros(3), "an array of real numbers of shape"),
            (np.full((4, 3), np.nan), "finite numbers"),
            (np.zeros((4, 3), complex), "real numbers"),
            ([np.zeros((4, 3)), np.zeros((4, 2))], "the same units, 3"),
            ([], "at least two samples"),
            (3, "an array or an iterable"),
        ],
    )
    def test_refuses_what_has_no_spectrum(self, bad, message):
        with pytest.raises(ValueError, match=f"argument `samples`.*{message}"):
            Spectrum.from_samples(bad)


@pytest.mark.parametrize("keeps_samples", [False, True])
@pytest.mark.parametrize(("dtype", "digits"), [("float64", 1e-10), ("float32", 1e-5)])
class TestCovariance:
    @pytest.mark.parametrize("shape", SHAPES)
    def test_equals_numpy_whatever_the_batches(
        self, shape, dtype, digits, keeps_samples
    ):
        data = samples_like(shape) + 100.0
        sigma = np.cov(data, rowvar=False)
        basis = reference.orthonormal(shape[1], np.random.default_rng(12))[:, 4:]
        atol = digits * np.linalg.norm(sigma, 2)
        options = {"dtype": dtype, "keeps_samples": keeps_samples}
        for parts in (1, 2, 7):
            running = covariance_of(data, parts, **options)
            assert (running.count, running.units) == shape
            for found, expected in (
                (running.mean() - 100, data.mean(axis=0) - 100),
                (running.variances(), sigma.diagonal()),
                (running.variances_along(basis), reference.variances(data, basis)),
                (running.total, np.trace(sigma)),
                (running.eigenvalues(), eigenvalues_of(data)),
                (running.eigenvalues(7), eigenvalues_of(data)[:7]),
                (running.matrix(), sigma),
            ):
                np.testing.assert_allclose(found, expected, atol=atol)

    def test_eigenvectors_are_sorted_and_reconstruct(
        self, dtype, digits, keeps_samples
    ):
        data = samples_like((30, 50))  # a singular covariance
        running = covariance_of(data, dtype=dtype, keeps_samples=keeps_samples)
        eigenvalues, vectors = running.eigenvectors()
        assert eigenvalues.dtype == vectors.dtype == dtype
        assert np.all(np.diff(eigenvalues) <= 0) and eigenvalues[-1] >= 0
        sigma = np.cov(data, rowvar=False)
        np.testing.assert_allclose(
            vectors * eigenvalues @ vectors.T, sigma, atol=digits
        )

    def test_what_overflows_has_no_spectrum(self, dtype, digits, keeps_samples):
        data = samples_like((90, 30))
        data[40, 3] = 1e30 if dtype == "float32" else np.nan
        running = covariance_of(data, 1, dtype=dtype, keeps_samples=keeps_samples)
        with pytest.raises(Degenerate, match="NaN or infinity"):
            running.eigenvectors()


@pytest.mark.parametrize("keeps_samples", [False, True])
@pytest.mark.parametrize(
    "load, allowed, expected", [(0.0, 2, 2), (0.0, 1, 1), (2.0, 2, 1)]
)
def test_eigenvalues_take_idle_cores_within_the_limit_of_the_user(
    monkeypatch, load, allowed, expected, keeps_samples
):
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.setattr("os.getloadavg", lambda: (load,) * 3, raising=False)
    data = samples_like((30, 50))
    running, seen = covariance_of(data, keeps_samples=keeps_samples), []

    def eigh(*args, **options):
        blas = ThreadpoolController().select(user_api="blas")
        seen.extend(each["num_threads"] for each in blas.info())
        return np.zeros(len(args[0]))

    monkeypatch.setattr("scipy.linalg.eigh", eigh)
    with threadpool_limits(allowed, user_api="blas"):
        running.eigenvalues()
    assert max(seen) == expected


def with_spectrum(variances, count, mean=0.0):
    """Data of exactly this spectrum, along directions at random, in float64."""
    rng, units = np.random.default_rng(0), len(variances)
    scores = rng.normal(size=(count, units))
    scores = np.linalg.qr(scores - scores.mean(axis=0))[0] * np.sqrt(count - 1)
    return scores * np.sqrt(variances) @ reference.orthonormal(units, rng).T + mean


def spectrum_of(data, **options):
    running = covariance_of(data, **options)
    return Spectrum(running.eigenvectors()[0], floor=running.floor())


class TestRounding:
    """What rounding adds to a covariance is neither rank nor spectrum."""

    @pytest.mark.parametrize("dtype", ["float16", "float32"])
    @pytest.mark.parametrize("mean", [0.0, 50.0])
    @pytest.mark.parametrize("count, units", [(4000, 50), (400, 300), (60, 400)])
    def test_a_low_rank_remains(self, count, units, mean, dtype):
        rng = np.random.default_rng(1)
        exact = 3 * rng.normal(size=(count, 7)) @ rng.normal(size=(7, units)) + mean
        rounded = exact.astype(dtype).astype("float32")
        spectrum = spectrum_of(rounded, computed_in=dtype)
        assert spectrum.eigenvalues[7] > spectrum.eigenvalues[0] * 1e-16
        assert spectrum.rank == 7
        assert spectrum_of(rounded, computed_in=dtype, dtype="float32").rank == 7

    @pytest.mark.parametrize(
        "exponent, units, mean", [(1.0, 500, 0.0), (1.0, 500, 20.0), (3.0, 1000, 1.0)]
    )
    def test_small_variances_remain(self, exponent, units, mean):
        true = np.arange(1.0, units + 1) ** -exponent  # n^(−3): nine decades
        data = with_spectrum(true, units + 500, mean)
        spectrum = spectrum_of(data.astype("float32"))
        assert spectrum.rank == units
        np.testing.assert_allclose(spectrum.eigenvalues, true, rtol=0.01)
        np.testing.assert_allclose(spectrum.exponent, exponent, rtol=1e-3)

    def test_small_variances_remain_in_bfloat16(self):
        data = keras.ops.cast(with_spectrum(1.0 / N, 2000, 0.2), "bfloat16")
        data = keras.ops.convert_to_numpy(keras.ops.cast(data, "float32"))
        spectrum = spectrum_of(data, computed_in="bfloat16")
        assert spectrum.rank == 500
        np.testing.assert_allclose(spectrum.exponent, 1.0, rtol=0.01)

    def test_float64_keeps_what_float32_cannot_resolve(self):
        true = np.logspace(0, -11, 20)  # and a mean a thousand standard deviations off
        data = with_spectrum(true, 400, mean=1000.0)
        spectrum = spectrum_of(data, parts=10)
        assert spectrum.rank == 20
        np.testing.assert_allclose(spectrum.eigenvalues[:18], true[:18], rtol=1e-2)
        assert spectrum_of(data.astype("float32")).rank < 15


def dense(units, bias=0.0, **options):
    constant = keras.initializers.Constant(bias)
    return layers.Dense(units, bias_initializer=constant, **options)


@pytest.mark.parametrize("policy", ["float32", "mixed_float16", "mixed_bfloat16"])
class TestRoundingOfNetworks:
    """A linear network has no more rank than its inputs, which are exact."""

    @pytest.fixture(autouse=True)
    def dtype_policy(self, policy):
        keras.config.set_dtype_policy(policy)
        yield
        keras.config.set_dtype_policy("float32")

    @pytest.mark.parametrize(
        ("parts", "shape", "rank"),
        [
            (lambda: [dense(500, 1.0)], (10,), 10),
            (lambda: [dense(100, 20.0, activation="relu")], (10,), 10),
            (lambda: [dense(300), layers.BatchNormalization()], (10,), 10),
            (lambda: [dense(300), dense(400), dense(100)], (10,), 10),
            (lambda: [dense(100)], (2000,), 10),
            (lambda: [layers.Conv2D(8, 3), layers.Conv2D(4, 3)], (8, 8, 1), 3),
        ],
        ids=["wide", "relu", "batch norm", "deep", "long sum", "convolution"],
    )
    def test_leaves_the_rank(self, parts, shape, rank):
        rng = np.random.default_rng(0)
        x = rng.integers(-8, 9, (2000, rank)) / 4
        if shape != (rank,):
            x = 4 * x[:500] @ rng.integers(-1, 2, (rank, np.prod(shape)))
        model = keras.Sequential([keras.Input(shape), *parts()])
        found = kp.measure_spectrum(model, x.reshape(-1, *shape), model.layers[-1])
        assert found.rank == rank
        assert np.isnan(found.exponent)


def test_refreshes_and_maps_end_with_the_rank():
    x = np.random.default_rng(0).integers(-8, 9, (2000, 10)) / 4

    def model(tau):
        offset = network(dense(100, 50.0, name="offset"), shape=(10,))
        return kp.add_spectral_regularizer(offset, "offset", tau=tau)

    with pytest.raises(ValueError, match="at most 10, the number of eigenvalues"):
        kp.sensitivity_maps(model(5), x, "offset", components=(1, 11))
    assert kp.refresh_eigenbasis(model(5), x)["offset"].fit_range == (6, 10)
    with pytest.raises(ValueError, match="by more than rounding errors"):
        kp.refresh_eigenbasis(model(15), x)


@pytest.mark.parametrize("scale", [1e-300, 1e300])
def test_figures_do_not_depend_on_the_scale(scale):
    eigenvalues = np.arange(1, 51.0) ** -1
    found, expected = kp.Spectrum(scale * eigenvalues), kp.Spectrum(eigenvalues)
    for name in ("exponent", "dimension_90", "participation_ratio", "rank"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), 1e-9)


def test_a_mask_is_not_ignored():
    samples = np.ma.masked_greater(np.random.default_rng(0).normal(size=(50, 9)), 2)
    with pytest.raises(ValueError, match="`samples`. Expected an array without masked"):
        kp.Spectrum.from_samples(samples)
    assert kp.Spectrum.from_samples(samples.filled(2)).rank == 9
