"""What rounding adds to a covariance is neither rank nor spectrum."""

import dataclasses

import keras
import numpy as np
import pytest
import reference
from keras import layers

import keras_powerlaw as kp
from keras_powerlaw.spectral.backup import BasisBackup, CallbackState
from keras_powerlaw.spectral.renewal import Renewal
from keras_powerlaw.spectrum import Covariance


def measured(data, **options):
    """The spectrum of some data, and the variance that their rounding may add."""
    running = Covariance(**options)
    for batch in np.array_split(data, 3):
        running.update(batch)
    eigenvalues, _ = running.eigenvectors()
    return kp.Spectrum(eigenvalues, floor=running.floor())


def gaussian_with(variances, count, mean=0.0, seed=0):
    """Data of exactly this spectrum, along directions at random, in float64."""
    rng = np.random.default_rng(seed)
    units = len(variances)
    scores = rng.normal(size=(count, units))
    scores -= scores.mean(axis=0)
    scores = np.linalg.qr(scores)[0] * np.sqrt(count - 1)
    return scores * np.sqrt(variances) @ reference.orthonormal(units, rng).T + mean


class TestSpectrum:
    def test_ends_at_the_floor(self):
        eigenvalues = 1.0 / np.arange(1, 101)
        spectrum = kp.Spectrum(eigenvalues, floor=1 / 60)
        assert spectrum.rank == 59
        assert spectrum.fit_range == (11, 59)
        np.testing.assert_allclose(spectrum.exponent, 1.0, rtol=1e-10)

    def test_fits_nothing_below_the_floor(self):
        errors = np.full(60, 1e-14)
        spectrum = kp.Spectrum(
            np.r_[1.0 / np.arange(1, 41), errors], fit_range=(5, 100), floor=1e-14
        )
        assert spectrum.fit_range == (5, 100)  # as it was asked for
        np.testing.assert_allclose(spectrum.exponent, 1.0, rtol=1e-10)
        assert np.isnan(dataclasses.replace(spectrum, floor=1 / 7).exponent)

    def test_knows_the_rounding_of_float64_by_itself(self):
        eigenvalues = np.r_[1.0 / np.arange(1, 11), np.full(10, 1e-16)]
        for floor in (None, 0.0, 1e-20):
            spectrum = kp.Spectrum(eigenvalues, floor=floor)
            assert spectrum.rank == 10
            np.testing.assert_allclose(spectrum.floor, 20 * 2.0**-52)

    @pytest.mark.parametrize("bad", [-1.0, np.nan, "0"])
    def test_refuses_what_is_no_variance(self, bad):
        with pytest.raises(ValueError, match="argument `floor`. Expected a finite"):
            kp.Spectrum([2.0, 1.0], floor=bad)


class TestRoundedData:
    @pytest.mark.parametrize("dtype", ["float16", "float32"])
    @pytest.mark.parametrize("mean", [0.0, 50.0])
    @pytest.mark.parametrize("count, units", [(4000, 50), (400, 300), (60, 400)])
    def test_a_low_rank_remains(self, count, units, mean, dtype):
        rng = np.random.default_rng(1)
        exact = 3 * rng.normal(size=(count, 7)) @ rng.normal(size=(7, units)) + mean
        rounded = exact.astype(dtype)
        spectrum = measured(rounded.astype("float32"), computed_in=dtype)
        assert spectrum.eigenvalues[7] > spectrum.eigenvalues[0] * 1e-16
        assert spectrum.rank == 7

    def test_one_unit_far_from_zero_is_enough(self):
        rng = np.random.default_rng(2)
        exact = rng.normal(size=(1000, 3)) @ rng.normal(size=(3, 100))
        exact[:, 0] += 10000.0
        assert measured(exact.astype("float32")).rank == 3

    @pytest.mark.parametrize(
        "exponent, units, mean",
        [(1.0, 500, 0.0), (1.0, 500, 20.0), (3.0, 1000, 1.0)],
    )
    def test_small_variances_remain(self, exponent, units, mean):
        true = np.arange(1.0, units + 1) ** -exponent  # n^(−3): nine decades
        data = gaussian_with(true, units + 500, mean)
        spectrum = measured(data.astype("float32"))
        assert spectrum.rank == units
        np.testing.assert_allclose(spectrum.eigenvalues, true, rtol=0.01)
        np.testing.assert_allclose(spectrum.exponent, exponent, rtol=1e-3)

    def test_small_variances_remain_in_bfloat16(self):
        true = 1.0 / np.arange(1, 501)
        data = keras.ops.cast(gaussian_with(true, 2000, 0.2), "bfloat16")
        data = keras.ops.convert_to_numpy(keras.ops.cast(data, "float32"))
        spectrum = measured(data, computed_in="bfloat16")
        assert spectrum.rank == 500
        np.testing.assert_allclose(spectrum.exponent, 1.0, rtol=0.01)

    def test_float64_keeps_what_float32_cannot_resolve(self):
        true = np.logspace(0, -11, 20)
        data = gaussian_with(true, 400, mean=1000.0)
        assert measured(data).rank == 20
        assert measured(data.astype("float32")).rank < 15


def linear(*parts, shape=(10,)):
    """A network that is linear, and so has no more rank than its inputs."""
    return keras.Sequential([keras.Input(shape), *parts])


def dense(units, bias=0.0, **options):
    constant = keras.initializers.Constant(bias)
    return layers.Dense(units, bias_initializer=constant, **options)


def of_few_digits():
    """Inputs that every dtype represents exactly."""
    return np.random.default_rng(0).integers(-8, 9, (2000, 10)) / 4


def spectrum_of_last(model, x):
    return kp.measure_spectrum(model, x, model.layers[-1])


@pytest.mark.parametrize("policy", ["float32", "mixed_float16", "mixed_bfloat16"])
class TestLayers:
    @pytest.fixture(autouse=True)
    def dtype_policy(self, policy):
        before = keras.config.dtype_policy()
        keras.config.set_dtype_policy(policy)
        yield
        keras.config.set_dtype_policy(before)

    @pytest.mark.parametrize(
        "parts",
        [
            lambda: [dense(100)],
            lambda: [dense(500, 1.0)],
            lambda: [dense(100, 20.0, activation="relu")],
            lambda: [dense(300), layers.BatchNormalization()],
            lambda: [dense(300), dense(400), dense(100)],
        ],
        ids=["dense", "wide", "relu", "batch normalization", "three layers"],
    )
    def test_rank_of_a_linear_network(self, parts):
        x = of_few_digits()
        spectrum = spectrum_of_last(linear(*parts()), x)
        assert spectrum.rank == 10
        assert np.isnan(spectrum.exponent)

    def test_rank_of_a_sum_over_many_inputs(self):
        rng = np.random.default_rng(0)
        x = rng.integers(-4, 5, (1000, 10)) @ rng.integers(-1, 2, (10, 2000))
        model = linear(dense(100), shape=(2000,))
        assert spectrum_of_last(model, x).rank == 10

    def test_rank_of_a_convolution(self):
        rng = np.random.default_rng(0)
        x = rng.integers(-4, 5, (500, 3)) @ rng.integers(-2, 3, (3, 64))
        model = linear(layers.Conv2D(8, 3), layers.Conv2D(4, 3), shape=(8, 8, 1))
        assert spectrum_of_last(model, x.reshape(-1, 8, 8, 1)).rank == 3


class TestWhereRankMatters:
    @pytest.fixture
    def model(self):
        return linear(dense(100, 50.0, name="offset"))

    def test_a_refresh_refuses_a_tau_beyond_it(self, model):
        x = of_few_digits()
        spectra = kp.refresh_eigenbasis(
            kp.add_spectral_regularizer(model, "offset", tau=5), x
        )
        assert spectra["offset"].fit_range == (6, 10)
        with pytest.raises(ValueError, match="by more than rounding errors"):
            kp.refresh_eigenbasis(
                kp.add_spectral_regularizer(model, "offset", tau=15), x
            )

    def test_sensitivity_maps_refuse_components_beyond_it(self, model):
        with pytest.raises(ValueError, match="at most 10, the number of eigenvalues"):
            kp.sensitivity_maps(model, of_few_digits(), "offset", components=(1, 11))

    def test_a_plot_ends_with_it(self, model):
        plt = pytest.importorskip("matplotlib.pyplot")
        spectrum = kp.measure_spectrum(model, of_few_digits(), "offset")
        axes = kp.plot_spectrum(spectrum, plt.figure().add_subplot())
        assert np.isfinite(axes.lines[0].get_ydata()).sum() == 10


class TestBackup:
    @pytest.fixture
    def regularizer(self):
        regularizer = kp.SpectralActivityRegularizer(tau=1)
        regularizer.eigenbasis.assign(np.eye(3), share=0.5, strength=1.0)
        return regularizer

    def write(self, folder, regularizer, fit_range=(1, 2)):
        spectrum = kp.Spectrum([2.0, 1.0, 1e-6], fit_range, floor=1e-5)
        renewal = Renewal(spectrum, staleness=0.5, penalty=3.0, dead=0.1)
        backup = BasisBackup(folder)
        backup.write(7, CallbackState(7, 0, 1), [(regularizer, renewal)])
        return backup

    def test_keeps_the_floor(self, tmp_path, regularizer):
        _, [renewal] = self.write(tmp_path, regularizer).read(7, [regularizer])
        assert renewal.spectrum.floor == 1e-5
        assert renewal.spectrum.rank == 2
        assert (renewal.staleness, renewal.penalty) == (0.5, 3.0)

    def test_keeps_the_share_of_a_basis_newer_than_the_spectrum(
        self, tmp_path, regularizer
    ):
        restored = kp.SpectralActivityRegularizer(tau=1)
        self.write(tmp_path, regularizer).read(7, [restored])
        assert float(restored.eigenbasis.share) == 0.5

    def test_of_a_spectrum_too_short_for_a_fit(self, tmp_path, regularizer):
        backup = self.write(tmp_path, regularizer, fit_range=None)
        _, [renewal] = backup.read(7, [regularizer])
        assert np.isnan(renewal.spectrum.exponent)

    def test_of_a_version_without_floor_and_penalty(self, tmp_path, regularizer):
        backup = self.write(tmp_path, regularizer)
        [path] = tmp_path.iterdir()
        with np.load(path) as arrays:
            missing = ("floor0", "penalty0", "share0")
            np.savez(path, **{k: arrays[k] for k in arrays if k not in missing})
        restored = kp.SpectralActivityRegularizer(tau=1)
        _, [renewal] = backup.read(7, [restored])
        assert renewal.spectrum.rank == 3
        assert renewal.spectrum.fit_range == (1, 2)
        assert np.isnan(renewal.penalty)
        np.testing.assert_allclose(float(restored.eigenbasis.share), 2 / 3, rtol=1e-5)
