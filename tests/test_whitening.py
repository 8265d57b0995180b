"""Whitening: eq. (10), its gradients, and its statistics."""

import keras
import numpy as np
import pytest
import reference
from backend import to_numpy, value_and_gradient
from datasets import Batches, gaussian
from keras import layers, ops
from models import compiled, hidden, network

import keras_powerlaw as kp
from keras_powerlaw.keras_internals import mask_of


def correlated(batch, units, seed=0):
    rng = np.random.default_rng(seed)
    mixing = reference.orthonormal(units, rng) * np.linspace(0.5, 3.0, units)
    return (rng.normal(size=(batch, units)) @ mixing + 2.0).astype("float32")


def whiten(x, ridge):
    """Eq. (10) in NumPy."""
    flat = np.asarray(x, "float64").reshape(len(x), -1)
    sigma = np.cov(flat, rowvar=False) + ridge * np.eye(flat.shape[1])
    factor = np.linalg.cholesky(sigma)
    return np.linalg.solve(factor, (flat - flat.mean(axis=0)).T).T.reshape(x.shape)


def assert_white(output, tolerance):
    output = np.float64(to_numpy(output))
    identity = np.eye(output.shape[1])
    np.testing.assert_allclose(np.cov(output, rowvar=False), identity, atol=tolerance)
    np.testing.assert_allclose(output.mean(axis=0), 0, atol=tolerance)


class TestEquation10:
    @pytest.mark.parametrize("shape", [(200, 24), (200, 2, 3, 4)], ids=["flat", "conv"])
    @pytest.mark.parametrize("ridge", [1e-3, 0.1])
    def test_equals_numpy(self, shape, ridge):
        x = correlated(200, 24).reshape(shape)
        white = kp.WhiteningLayer(ridge=ridge)(x, training=True)
        np.testing.assert_allclose(to_numpy(white), whiten(x, ridge), atol=1e-4)

    def test_makes_the_covariance_the_identity(self):
        assert_white(kp.WhiteningLayer()(correlated(300, 24), training=True), 1e-3)

    def test_has_a_gradient_through_mean_covariance_and_factor(self):
        x, rng = correlated(40, 6), np.random.default_rng(2)
        weights = rng.normal(size=x.shape)
        layer = kp.WhiteningLayer(ridge=1e-2)
        layer.build(x.shape)
        _, gradient = value_and_gradient(
            lambda x: ops.sum(layer(x, training=True) * ops.cast(weights, "float32")), x
        )
        reference.assert_is_gradient(
            gradient, lambda x: np.sum(whiten(x, 1e-2) * weights), np.float64(x), rng
        )

    @pytest.mark.parametrize("scale", [1e-6, 1.0, 1e3])
    @pytest.mark.parametrize("batch", [2, 50, 400], ids=["B = 2", "B < N", "B > N"])
    def test_is_finite_for_every_finite_batch(self, scale, batch):
        rng = np.random.default_rng(3)
        x = scale * rng.normal(size=(batch, 200)) * np.logspace(0, -6, 200) + scale
        x[:, :20] = 7.0 * scale  # dead units
        white = to_numpy(kp.WhiteningLayer()(x.astype("float32"), training=True))
        assert np.isfinite(white).all()

    @pytest.mark.parametrize("ridge", [0.0, 1e-5])
    @pytest.mark.parametrize(
        "x",
        [
            np.zeros((8, 5)),
            np.full((8, 5), 3.0),
            np.full((8, 5), 1e-25),
            np.ones((1, 5)),
            np.arange(8.0)[:, np.newaxis] * [1e-9, 1e-10, 0, 1e-12, 0],
        ],
        ids=["zeros", "constants", "tiny", "one example", "underflow"],
    )
    def test_is_finite_for_degenerate_batches_and_so_is_its_gradient(self, x, ridge):
        layer = kp.WhiteningLayer(ridge=ridge)
        layer.build(x.shape)
        value, gradient = value_and_gradient(
            lambda x: ops.sum(layer(x, training=True) ** 2), x
        )
        assert np.isfinite(value) and np.isfinite(gradient).all()
        assert np.isfinite(to_numpy(layer(x.astype("float32")))).all()

    @pytest.mark.parametrize("units, batch", [(5, 3000), (20, 400), (200, 2)])
    @pytest.mark.parametrize("ridge", [0.0, 1e-5])
    def test_is_finite_where_the_rank_is_below_the_units(self, units, batch, ridge):
        layer = kp.WhiteningLayer(ridge=ridge, momentum=0.0)  # the last batch alone
        for seed in range(20):
            rng, rank = np.random.default_rng(seed), 1 + seed % 3
            x = rng.normal(size=(batch, rank)) @ rng.normal(size=(rank, units)) * 3
            x = x.astype("float32")
            assert np.isfinite(to_numpy(layer(x, training=True))).all()
            assert np.isfinite(to_numpy(layer(x))).all()

    def test_resolves_variances_down_to_the_rounding_errors_of_float32(self):
        scales = np.array([1.0, 0.1, 0.01, 1e-3 / 2])
        x = np.random.default_rng(11).normal(size=(500, 4)) * scales
        white = kp.WhiteningLayer(ridge=0.0)(x.astype("float32"), training=True)
        floor = 16 * np.finfo("float32").eps * np.linalg.norm(np.cov(x, rowvar=False))
        expected = scales**2 / (scales**2 + floor)
        assert expected[-1] < 0.2
        np.testing.assert_allclose(to_numpy(white).var(axis=0, ddof=1), expected, 0.1)


class TestTargets:
    @pytest.mark.parametrize(
        "target", [0.0, 1.0, 1.5, kp.BrokenPowerLaw(0.5, 1.2, 8)], ids=str
    )
    @pytest.mark.parametrize("training", [True, False])
    def test_the_output_has_the_spectrum(self, target, training):
        x = correlated(300, 24)
        model = network(kp.WhiteningLayer(ridge=0.0, target=target), shape=(24,))
        kp.refresh_whitening(model, x)
        output = to_numpy(model.layers[0](x, training=training))
        spectrum = kp.Spectrum.from_samples(output, fit_range=(1, 24))
        assert spectrum.distance(target).maximum < 1e-3
        np.testing.assert_allclose(output.var(axis=0, ddof=1).mean(), 1, rtol=1e-3)

    def test_the_flat_one_is_the_white_layer(self):
        x = correlated(200, 8)
        outputs = [
            to_numpy(kp.WhiteningLayer(target=target)(x, training=True))
            for target in (None, 0.0)
        ]
        np.testing.assert_array_equal(*outputs)

    def test_are_saved(self, tmp_path):
        target = kp.BrokenPowerLaw(0.5, 1.2, 8)
        model = network(kp.WhiteningLayer(target=target, name="colored"), shape=(24,))
        model.save(tmp_path / "model.keras")
        loaded = keras.saving.load_model(tmp_path / "model.keras")
        assert loaded.get_layer("colored").target == target
        x = correlated(20, 24)
        np.testing.assert_array_equal(
            loaded.predict(x, verbose=0), model.predict(x, verbose=0)
        )

    def test_what_is_none_is_named(self):
        with pytest.raises(ValueError, match="argument `target`.*Received: target=-1"):
            kp.WhiteningLayer(target=-1)


class TestStatistics:
    def test_are_those_of_the_first_batch(self):
        x, layer = correlated(300, 8), kp.WhiteningLayer()
        during = to_numpy(layer(x, training=True))
        np.testing.assert_allclose(layer.moving_mean, x.mean(axis=0), rtol=1e-4)
        np.testing.assert_allclose(
            layer.moving_covariance, np.cov(x, rowvar=False), rtol=1e-3, atol=1e-4
        )
        np.testing.assert_allclose(to_numpy(layer(x)), during, atol=1e-3)

    def test_of_small_activations_are_as_precise_as_those_of_large_ones(self):
        found = []
        for scale in (1.0, 2.0**-20):
            layer = kp.WhiteningLayer(ridge=0.0)
            layer(scale * correlated(300, 8), training=True)
            found.append(to_numpy(layer.moving_covariance) / scale**2)
        np.testing.assert_allclose(*found, rtol=1e-5)

    def test_are_a_plain_and_then_an_exponential_average(self):
        layer, expected = kp.WhiteningLayer(momentum=0.75), np.zeros(3)
        for count in range(6):
            x = correlated(50, 3, seed=count)
            layer(x, training=True)
            momentum = min(count / (count + 1), 0.75)
            expected = momentum * expected + (1 - momentum) * x.mean(axis=0)
        np.testing.assert_allclose(layer.moving_mean, expected, rtol=1e-5)

    def test_in_inference_do_not_depend_on_the_batch_unless_asked_to(self):
        x = correlated(100, 8)
        layer = kp.WhiteningLayer()
        layer(x, training=True)
        whole, half = (to_numpy(layer(each))[:50] for each in (x, x[:50]))
        np.testing.assert_allclose(whole, half, atol=1e-5)
        layer = kp.WhiteningLayer(use_batch_statistics=True)
        whole, half = (to_numpy(layer(each))[:50] for each in (x, x[:50]))
        np.testing.assert_array_equal(whole, to_numpy(layer(x, training=True))[:50])
        assert np.abs(whole - half).max() > 1e-2

    def test_are_left_by_a_single_example(self):
        x, layer = correlated(100, 8), kp.WhiteningLayer()
        layer(x, training=True)
        before = layer.get_weights()
        assert not to_numpy(layer(x[:1], training=True)).any()
        for old, new in zip(before, layer.get_weights(), strict=True):
            np.testing.assert_array_equal(old, new)

    def test_are_kept_by_a_frozen_layer_which_runs_in_inference_mode(self):
        x = correlated(60, 6)
        base = keras.Sequential([keras.Input((6,)), kp.WhiteningLayer()])
        base(x, training=True)
        base.trainable = False
        expected = to_numpy(base(x[:9], training=False))
        assert np.abs(to_numpy(base(3 * x[:9], training=True)) - expected).max() > 0.5
        for training in (True, False):
            found = to_numpy(base(x[:9], training=training))
            np.testing.assert_array_equal(found, expected)
        base.trainable = True
        base(3 * x + 1, training=True)
        assert not np.array_equal(to_numpy(base(x[:9], training=False)), expected)


def moved(*parts):
    """A model whose weights have moved since its batches were whitened."""
    x = correlated(400, 6, seed=3)
    model = keras.Sequential([keras.Input((6,)), *parts])
    model(x, training=True)
    for weight in model.trainable_weights:
        weight.assign(to_numpy(weight) * np.linspace(0.3, 2.0, weight.shape[-1]))
    return model, x


class TestRefresh:
    def test_makes_the_output_white_at_the_present_weights(self):
        model, x = moved(layers.Dense(8, "tanh"), kp.WhiteningLayer(ridge=0.0))
        assert np.abs(np.cov(to_numpy(model(x)), rowvar=False) - np.eye(8)).max() > 0.5
        kp.refresh_whitening(model, x, batch_size=70)
        assert_white(model(x), 2e-3)

    def test_equals_numpy(self):
        model, x = moved(layers.Dense(8, "tanh"), kp.WhiteningLayer(ridge=0.1))
        hidden = np.tanh(x.astype("float64") @ to_numpy(model.layers[0].kernel))
        kp.refresh_whitening(model, x)
        covariance = np.cov(hidden, rowvar=False)
        np.testing.assert_allclose(model.layers[1].moving_covariance, covariance, 1e-4)
        np.testing.assert_allclose(to_numpy(model(x)), whiten(hidden, 0.1), atol=1e-4)

    def test_shows_a_later_layer_what_the_earlier_one_gives_now(self):
        parts = layers.Dense(6, "tanh"), kp.WhiteningLayer(), layers.Dense(5, "tanh")
        model, x = moved(*parts, kp.WhiteningLayer())
        kp.refresh_whitening(model, x)
        assert_white(model(x), 1e-2)

    def test_takes_feature_maps_and_a_data_set(self):
        model, x = moved(layers.Reshape((3, 2)), kp.WhiteningLayer())
        kp.refresh_whitening(model, Batches(3 * x + 1, size=100))
        expected = (3 * x + 1).mean(axis=0)
        np.testing.assert_allclose(model.layers[1].moving_mean, expected, rtol=1e-4)

    @pytest.mark.parametrize("policy", ["mixed_float16", "float64"])
    def test_works_under_other_policies(self, policy):
        dense = layers.Dense(4, "tanh", dtype=policy)
        model, x = moved(dense, kp.WhiteningLayer(dtype=policy))
        kp.refresh_whitening(model, x)
        assert_white(model(x), 1e-2)

    def test_works_within_fit(self):
        x, y = gaussian(200, seed=9)
        model = compiled(network(hidden(20), kp.WhiteningLayer(name="white")))
        found = []

        def refresh(epoch, logs):
            kp.refresh_whitening(model, x)
            found.append(kp.measure_spectrum(model, x, "white").eigenvalues)

        callback = keras.callbacks.LambdaCallback(on_epoch_end=refresh)
        model.fit(x, y, batch_size=50, epochs=2, verbose=0, callbacks=[callback])
        np.testing.assert_allclose(found, 1, atol=0.05)
        after = kp.measure_spectrum(model, x, "white").eigenvalues
        np.testing.assert_allclose(after, found[-1], rtol=1e-3)

    def test_leaves_the_statistics_and_the_layer_in_case_of_an_error(self):
        model, x = moved(layers.Dense(4), kp.WhiteningLayer())
        before = [to_numpy(variable) for variable in model.layers[1].variables]
        output = to_numpy(model(x))
        x[5] = np.nan
        with pytest.raises(ValueError, match="argument `x`"):
            kp.refresh_whitening(model, x)
        for old, new in zip(before, model.layers[1].variables, strict=True):
            np.testing.assert_array_equal(old, to_numpy(new))
        np.testing.assert_array_equal(to_numpy(model(x))[:5], output[:5])

    @pytest.mark.parametrize(
        "layer", [layers.Dense(3), kp.WhiteningLayer(use_batch_statistics=True)]
    )
    def test_refuses_a_model_with_nothing_to_refresh(self, layer):
        model, x = moved(layer)
        with pytest.raises(ValueError, match="at least one WhiteningLayer that uses"):
            kp.refresh_whitening(model, x)


class TestInModels:
    def test_trains_in_batches_of_any_size_and_is_saved(self, tmp_path):
        data = gaussian(200, seed=9)
        layer = kp.WhiteningLayer(momentum=0.5, ridge=1e-3)
        model = compiled(network(hidden(20), layer))
        for size in (100, 199, 10):  # the last batch of the second has one example
            history = model.fit(*data, batch_size=size, verbose=0).history
            assert np.all(np.isfinite(history["loss"]))
        assert all(np.isfinite(weight).all() for weight in model.get_weights())
        model.save(tmp_path / "model.keras")
        loaded = keras.saving.load_model(tmp_path / "model.keras")
        np.testing.assert_array_equal(
            loaded.predict(data[0], verbose=0), model.predict(data[0], verbose=0)
        )
        assert loaded.layers[1].get_config() == layer.get_config()
        config = layer.get_config()
        assert (config["momentum"], config["ridge"]) == (0.5, 1e-3)
        assert config["use_batch_statistics"] is False

    def test_passes_a_mask_on(self, recwarn):
        symbols = np.random.default_rng(0).integers(3, size=(50, 4))
        embedded = layers.Embedding(3, 2, mask_zero=True)(symbols)
        mask = mask_of(kp.WhiteningLayer()(embedded, training=True))
        np.testing.assert_array_equal(to_numpy(mask), symbols != 0)
        assert not [each for each in recwarn if "mask" in str(each.message)]

    def test_needs_inputs_of_a_known_size(self):
        with pytest.raises(ValueError, match=r"known size .*\(None, None, 3\)"):
            kp.WhiteningLayer()(keras.Input((None, 3)))
