"""Weights with a spectrum: closed forms, nonlinearities, and what can't be served."""

import keras
import numpy as np
import pytest
import reference
import scipy.ndimage
from backend import to_numpy
from datasets import gaussian
from keras import layers
from models import Subclassed, hidden, network

import keras_powerlaw as kp

BROKEN = kp.BrokenPowerLaw(0.3, 1.5, 8)


def correlated(count, units, rank=None, seed=0):
    """Gaussian samples with a mean, along `rank` directions of different variance."""
    rng = np.random.default_rng(seed)
    rank = rank or units
    mixing = (
        np.linspace(0.5, 3.0, rank)[:, None] * reference.orthonormal(units, rng)[:rank]
    )
    return (rng.normal(size=(count, rank)) @ mixing + 5.0).astype("float32")


def color(x, *parts, target=1.0, place="hidden", **options):
    keras.utils.set_random_seed(0)
    model = network(*parts, shape=x.shape[1:])
    assert kp.color_weights(model, x, place, target, **options) is model
    reduction = options.get("reduction", "channels")
    return model, kp.measure_spectrum(model, x, place, reduction=reduction)


def assert_has(spectrum, target, count, tolerance):
    levels = kp.Spectrum(spectrum.eigenvalues[:count] / spectrum.eigenvalues[0])
    expected = getattr(target, "levels", lambda n: n**-target)(
        np.arange(1.0, count + 1)
    )
    np.testing.assert_allclose(levels.eigenvalues, expected / expected[0], tolerance)


class TestALinearLayer:
    @pytest.mark.parametrize("target", [0.0, 1.0, 2.5, BROKEN], ids=str)
    def test_has_the_spectrum_exactly(self, target):
        x = correlated(500, 40)
        _, spectrum = color(x, layers.Dense(30, name="hidden"), target=target)
        assert_has(spectrum, target, 30, 1e-3)

    def test_has_units_of_one_variance_and_mean_zero_and_keeps_its_scale(self):
        x = 0.1 * correlated(500, 40)
        model = network(layers.Dense(30, name="hidden"), shape=(40,))
        kernel = to_numpy(model.layers[0].kernel)
        kp.color_weights(model, x, "hidden")
        activity = np.float64(to_numpy(model.layers[0](x)))
        variances = activity.var(axis=0, ddof=1)
        scale = np.trace(kernel.T @ np.cov(x, rowvar=False) @ kernel) / 30
        np.testing.assert_allclose(variances, scale, rtol=1e-3)
        np.testing.assert_allclose(activity.mean(axis=0), 0, atol=1e-4)

    def test_is_not_scaled_to_saturate_what_follows(self):
        model, _ = color(100 * correlated(500, 40), layers.Dense(30, name="hidden"))
        activity = to_numpy(model.layers[0](100 * correlated(500, 40)))
        np.testing.assert_allclose(activity.var(axis=0, ddof=1), 1, rtol=1e-2)

    def test_without_a_bias_has_it_too(self):
        x = correlated(500, 40)
        dense = layers.Dense(30, use_bias=False, name="hidden")
        _, spectrum = color(x, dense)
        assert_has(spectrum, 1.0, 30, 1e-3)

    def test_on_inputs_of_low_rank_has_what_can_exist(self):
        x = np.pad(correlated(500, 20, rank=12), ((0, 0), (0, 5)), constant_values=3.0)
        with pytest.warns(
            UserWarning, match="receives varies noticeably in 12 dir.*30"
        ):
            _, spectrum = color(x, layers.Dense(30, name="hidden"))
        assert np.all(spectrum.eigenvalues[12:] < 1e-9 * spectrum.eigenvalues[0])
        assert_has(spectrum, 1.0, 12, 1e-3)

    def test_leaves_out_what_hardly_varies(self):
        x = correlated(500, 40)
        x[:, :5] = 1e-2 * x[:, :5]
        with pytest.warns(UserWarning, match="noticeably in 35 directions"):
            model, _ = color(x, layers.Dense(40, name="hidden"))
        assert np.abs(to_numpy(model.layers[0].kernel)).max() < 3

    def test_of_a_sequence_has_it_over_all_positions(self):
        x = correlated(1200, 40).reshape(300, 4, 40)
        dense = layers.Dense(30, name="hidden")
        _, spectrum = color(x, dense, layers.Flatten())
        assert_has(spectrum, 1.0, 30, 1e-3)

    @pytest.mark.parametrize("reduction", ["channels", "mean"])
    def test_of_a_convolution_has_it(self, reduction):
        x, _ = gaussian(300, (7, 7, 3))
        parts = layers.Conv2D(16, 3, name="map"), layers.Flatten()
        _, spectrum = color(x, *parts, place="map", reduction=reduction)
        assert_has(spectrum, 1.0, 16, 1e-3)

    def test_is_the_same_with_the_same_seed(self):
        x, kernels = correlated(500, 40), []
        dense = layers.Dense(30, name="hidden")
        model = network(dense, shape=(40,))
        before = model.get_weights()
        for seed in (1, 1, 2):
            model.set_weights(before)
            kp.color_weights(model, x, "hidden", seed=seed)
            kernels.append(to_numpy(dense.kernel))
        np.testing.assert_array_equal(kernels[0], kernels[1])
        assert not np.allclose(kernels[0], kernels[2])


class TestBehindANonlinearity:
    @pytest.mark.parametrize(
        "activation, alpha",
        [
            *(("tanh", 0.7), ("tanh", 1.5), ("gelu", 0.7), ("gelu", 1.0)),
            *(("relu", 0.7), ("relu", 1.0)),
        ],
    )
    def test_the_activations_have_the_exponent(self, activation, alpha):
        x = correlated(4000, 100)
        dense = layers.Dense(64, activation, name="hidden")
        _, spectrum = color(x, dense, target=alpha)
        assert abs(spectrum.exponent - alpha) < 0.05

    def test_of_few_samples_they_are_corrected_without_bias(self):
        x = correlated(10_000, 200)
        dense = layers.Dense(200, "tanh", name="hidden")
        _, spectrum = color(x, dense)
        assert abs(spectrum.exponent - 1) < 0.05

    def test_flattened_convolutions_follow_as_far_as_they_can(self):
        noise, _ = gaussian(1000, (20, 20, 1))
        x, found = 10 * scipy.ndimage.gaussian_filter(noise, (0, 2, 2, 0)), []
        for alpha in (1.8, 2.2):
            convolution = layers.Conv2D(8, 5, 4, activation="relu", name="map")
            options = {"place": "map", "reduction": "flatten", "target": alpha}
            found.append(color(x, convolution, layers.Flatten(), **options)[1].exponent)
        np.testing.assert_allclose(found, [1.8, 2.2], atol=0.1)


class TestPlaces:
    def test_behind_a_normalization_the_weights_are_those_before_it(self):
        x = correlated(3000, 60)
        parts = (
            layers.Dense(50, "tanh", name="dense"),
            layers.BatchNormalization(name="hidden"),
        )
        model, spectrum = color(x, *parts)
        assert_has(spectrum, 1.0, 50, 0.1)
        activity = to_numpy(model.layers[0](x))
        trained = to_numpy(model.layers[1](activity, training=True))
        # Normalized, they keep it.
        assert_has(kp.Spectrum.from_samples(trained), 1.0, 50, 0.1)

    def test_layers_are_taken_from_the_first_to_the_last(self):
        x = correlated(3000, 60)
        parts = hidden(50, name="first"), layers.Dropout(0.5), hidden(40)
        model, spectrum = color(x, *parts, place=["hidden", "first"])
        for name, found in spectrum.items():
            assert abs(found.exponent - 1) < 0.05, name

    def test_a_functional_model_may_branch_elsewhere(self):
        x = correlated(2000, 60)
        inputs = keras.Input((60,))
        left = layers.Dense(40, "tanh", name="hidden")(inputs)
        outputs = layers.Add()([left, layers.Dense(40)(inputs)])
        model = keras.Model(inputs, layers.Dense(3)(outputs))
        kp.color_weights(model, x, "hidden")
        assert abs(kp.measure_spectrum(model, x, "hidden").exponent - 1) < 0.05

    def test_training_and_saving_go_on_as_before(self, tmp_path):
        x, y = correlated(500, 40), np.arange(500) % 4
        model, _ = color(x, hidden(30, kp.SpectralActivityRegularizer(tau=3)))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile("adam", loss)
        model.fit(x, y, epochs=2, verbose=0, callbacks=[kp.EigenbasisRefresh()])
        model.save(tmp_path / "model.keras")
        loaded = keras.saving.load_model(tmp_path / "model.keras")
        np.testing.assert_array_equal(
            loaded.predict(x, verbose=0), model.predict(x, verbose=0)
        )


class TestRefusals:
    def test_names_a_layer_without_weights_of_its_own_before_it(self):
        inputs = keras.Input((6,))
        both = [layers.Dense(4)(inputs), layers.Dense(4)(inputs)]
        outputs = layers.Add(name="sum")(both)
        model = keras.Model(inputs, layers.Dense(3)(outputs))
        with pytest.raises(ValueError, match="layers behind a Dense.*'sum'"):
            kp.color_weights(model, gaussian(20, (6,))[0], "sum")

    def test_names_a_layer_that_is_called_twice(self):
        inputs, shared = keras.Input((6,)), layers.Dense(6, name="shared")
        model = keras.Model(inputs, shared(shared(inputs)))
        with pytest.raises(ValueError, match="calls once.*'shared'"):
            kp.color_weights(model, gaussian(20, (6,))[0], "shared")

    def test_names_a_layer_of_a_model_in_the_model(self):
        inner = network(hidden(5), shape=(6,))
        model = keras.Sequential([keras.Input((6,)), inner, layers.Dense(2)])
        with pytest.raises(ValueError, match="that the model itself calls.*'hidden'"):
            kp.color_weights(model, gaussian(20, (6,))[0], "hidden")

    def test_names_a_model_whose_graph_keras_does_not_know(self):
        model = Subclassed(hidden(5))
        model(gaussian(20, (6,))[0])
        unbuilt = keras.Sequential([hidden(5)])
        for each in (model, unbuilt):
            with pytest.raises(ValueError, match="`model`. Expected a Sequential or F"):
                kp.color_weights(each, gaussian(20, (6,))[0], "hidden")

    def test_names_data_that_are_not_finite_or_too_few(self):
        model = network(hidden(5), shape=(6,))
        x, _ = gaussian(20, (6,))
        with pytest.raises(ValueError, match="at least two examples"):
            kp.color_weights(model, x[:1], "hidden")
        x[3] = np.nan
        with pytest.raises(ValueError, match="NaN or infinity"):
            kp.color_weights(model, x, "hidden")
