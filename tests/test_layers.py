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


def correlated(batch, units, rng):
    mixing = reference.orthonormal(units, rng) * np.linspace(0.5, 3.0, units)
    return (rng.normal(size=(batch, units)) @ mixing + 2.0).astype("float32")


def whiten(x, ridge):
    """Eq. (10) in NumPy."""
    flat = np.asarray(x, "float64").reshape(len(x), -1)
    sigma = np.cov(flat, rowvar=False) + ridge * np.eye(flat.shape[1])
    factor = np.linalg.cholesky(sigma)
    return np.linalg.solve(factor, (flat - flat.mean(axis=0)).T).T.reshape(x.shape)


class TestEquation10:
    @pytest.mark.parametrize("shape", [(200, 24), (200, 2, 3, 4)], ids=["flat", "conv"])
    @pytest.mark.parametrize("ridge", [1e-3, 0.1])
    def test_equals_numpy(self, shape, ridge):
        x = correlated(200, 24, np.random.default_rng(0)).reshape(shape)
        white = kp.WhiteningLayer(ridge=ridge)(x, training=True)
        np.testing.assert_allclose(to_numpy(white), whiten(x, ridge), atol=1e-4)

    def test_whitened_covariance_is_the_identity(self):
        x = correlated(300, 24, np.random.default_rng(1))
        white = to_numpy(kp.WhiteningLayer()(x, training=True))
        np.testing.assert_allclose(np.cov(white, rowvar=False), np.eye(24), atol=1e-3)
        np.testing.assert_allclose(white.mean(axis=0), 0, atol=1e-4)

    def test_gradient_flows_through_mean_covariance_and_factor(self):
        rng = np.random.default_rng(2)
        x = correlated(40, 6, rng)
        weights = rng.normal(size=x.shape)
        layer = kp.WhiteningLayer(ridge=1e-2)
        layer.build(x.shape)
        _, gradient = value_and_gradient(
            lambda x: ops.sum(layer(x, training=True) * ops.cast(weights, "float32")), x
        )
        directions = rng.normal(size=(5, *x.shape))
        computed = [np.sum(gradient * direction) for direction in directions]
        expected = [
            reference.directional_derivative(
                lambda x: np.sum(whiten(x, 1e-2) * weights),
                x.astype("float64"),
                direction,
            )
            for direction in directions
        ]
        np.testing.assert_allclose(computed, expected, rtol=1e-3)

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

        def total(x):
            return ops.sum(layer(x, training=True) ** 2)

        value, gradient = value_and_gradient(total, x)
        assert np.isfinite(value)
        assert np.isfinite(gradient).all()
        assert np.isfinite(to_numpy(layer(x.astype("float32")))).all()

    @pytest.mark.parametrize("units, batch", [(5, 3000), (20, 400), (200, 2)])
    @pytest.mark.parametrize("ridge", [0.0, 1e-5])
    def test_is_finite_where_the_rank_is_below_the_units(self, units, batch, ridge):
        for seed in range(20):
            rng = np.random.default_rng(seed)
            rank = 1 + seed % 3
            x = rng.normal(size=(batch, rank)) @ rng.normal(size=(rank, units)) * 3
            x = x.astype("float32")
            layer = kp.WhiteningLayer(ridge=ridge)
            assert np.isfinite(to_numpy(layer(x, training=True))).all()
            assert np.isfinite(to_numpy(layer(x))).all()

    def test_float32_resolves_variances_down_to_its_rounding_errors(self):
        scales = np.array([1.0, 0.1, 0.01, 1e-3 / 2])
        x = np.random.default_rng(11).normal(size=(500, 4)) * scales
        white = kp.WhiteningLayer(ridge=0.0)(x.astype("float32"), training=True)
        variances = to_numpy(white).var(axis=0, ddof=1)
        floor = 16 * np.finfo("float32").eps * np.linalg.norm(np.cov(x, rowvar=False))
        expected = scales**2 / (scales**2 + floor)
        assert expected[-1] < 0.2
        np.testing.assert_allclose(variances, expected, rtol=0.1)


class TestStatistics:
    def test_first_batch_sets_them(self):
        x = correlated(300, 8, np.random.default_rng(4))
        layer = kp.WhiteningLayer()
        during = to_numpy(layer(x, training=True))
        np.testing.assert_allclose(layer.moving_mean, x.mean(axis=0), rtol=1e-4)
        np.testing.assert_allclose(
            layer.moving_covariance, np.cov(x, rowvar=False), rtol=1e-3, atol=1e-4
        )
        np.testing.assert_allclose(to_numpy(layer(x)), during, atol=1e-3)

    def test_of_small_activations_are_as_precise_as_those_of_large_ones(self):
        x = correlated(300, 8, np.random.default_rng(4))
        layers = kp.WhiteningLayer(ridge=0.0), kp.WhiteningLayer(ridge=0.0)
        for layer, scale in zip(layers, (1.0, 2.0**-20), strict=True):
            layer(scale * x, training=True)
        large, small = (to_numpy(layer.moving_covariance) for layer in layers)
        np.testing.assert_allclose(small * 2.0**40, large, rtol=1e-5)

    def test_plain_then_exponential_average(self):
        rng = np.random.default_rng(5)
        batches = [correlated(50, 3, rng) for _ in range(6)]
        layer = kp.WhiteningLayer(momentum=0.75)
        expected = np.zeros(3)
        for count, x in enumerate(batches):
            layer(x, training=True)
            momentum = min(count / (count + 1), 0.75)
            expected = momentum * expected + (1 - momentum) * x.mean(axis=0)
        np.testing.assert_allclose(layer.moving_mean, expected, rtol=1e-5)

    def test_inference_does_not_depend_on_the_batch(self):
        x = correlated(100, 8, np.random.default_rng(6))
        layer = kp.WhiteningLayer()
        layer(x, training=True)
        np.testing.assert_allclose(
            to_numpy(layer(x))[:1], to_numpy(layer(x[:1])), atol=1e-5
        )

    def test_batch_statistics_by_option_do(self):
        x = correlated(100, 8, np.random.default_rng(7))
        layer = kp.WhiteningLayer(use_batch_statistics=True)
        np.testing.assert_array_equal(
            to_numpy(layer(x)), to_numpy(layer(x, training=True))
        )
        assert np.abs(to_numpy(layer(x))[:50] - to_numpy(layer(x[:50]))).max() > 1e-2

    def test_single_example_leaves_them(self):
        x = correlated(100, 8, np.random.default_rng(8))
        layer = kp.WhiteningLayer()
        layer(x, training=True)
        before = layer.get_weights()
        white = to_numpy(layer(x[:1], training=True))
        np.testing.assert_array_equal(white, np.zeros((1, 8)))
        for old, new in zip(before, layer.get_weights(), strict=True):
            np.testing.assert_array_equal(old, new)

    def test_a_frozen_layer_keeps_them_and_runs_in_inference_mode(self):
        x = correlated(60, 6, np.random.default_rng(7))
        base = keras.Sequential([keras.Input((6,)), kp.WhiteningLayer()])
        base(x, training=True)
        base.trainable = False
        expected = to_numpy(base(x[:9], training=False))
        found = to_numpy(base(3 * x[:9] + 1, training=True))
        assert np.abs(found - expected).max() > 0.5
        np.testing.assert_array_equal(to_numpy(base(x[:9], training=True)), expected)
        np.testing.assert_array_equal(to_numpy(base(x[:9], training=False)), expected)
        base.trainable = True
        base(3 * x + 1, training=True)
        assert not np.array_equal(to_numpy(base(x[:9], training=False)), expected)


class TestRefresh:
    def moved(self, *blocks, examples=400, seed=3):
        """A model whose weights have moved since its batches were whitened."""
        x = correlated(examples, 6, np.random.default_rng(seed))
        model = keras.Sequential([keras.Input((6,)), *blocks])
        model(x, training=True)
        for weight in model.trainable_weights:
            weight.assign(to_numpy(weight) * np.linspace(0.3, 2.0, weight.shape[-1]))
        return model, x

    def test_the_output_is_white_at_the_present_weights(self):
        model, x = self.moved(
            layers.Dense(8, "tanh"), kp.WhiteningLayer(ridge=0.0), layers.Dense(3)
        )
        white = keras.Model(model.inputs, model.layers[1].output)
        assert np.abs(np.cov(to_numpy(white(x)), rowvar=False) - np.eye(8)).max() > 0.5
        kp.refresh_whitening(model, x, batch_size=70)
        output = to_numpy(white(x))
        np.testing.assert_allclose(np.cov(output, rowvar=False), np.eye(8), atol=2e-3)
        np.testing.assert_allclose(output.mean(axis=0), 0, atol=2e-3)

    def test_equals_numpy(self):
        model, x = self.moved(layers.Dense(8, "tanh"), kp.WhiteningLayer(ridge=0.1))
        hidden = np.tanh(x.astype("float64") @ to_numpy(model.layers[0].kernel))
        kp.refresh_whitening(model, x)
        np.testing.assert_allclose(
            model.layers[1].moving_covariance, np.cov(hidden, rowvar=False), rtol=1e-4
        )
        np.testing.assert_allclose(to_numpy(model(x)), whiten(hidden, 0.1), atol=1e-4)

    def test_a_later_layer_sees_what_the_earlier_one_gives_now(self):
        model, x = self.moved(
            *(layers.Dense(6, "tanh"), kp.WhiteningLayer()),
            *(layers.Dense(5, "tanh"), kp.WhiteningLayer()),
        )
        kp.refresh_whitening(model, x)
        covariance = np.cov(to_numpy(model(x)), rowvar=False)
        np.testing.assert_allclose(covariance, np.eye(5), atol=1e-2)

    def test_feature_maps_and_a_data_set(self):
        model, x = self.moved(layers.Reshape((3, 2)), kp.WhiteningLayer())
        kp.refresh_whitening(model, Batches(3 * x + 1, size=100))
        np.testing.assert_allclose(
            model.layers[1].moving_mean, (3 * x + 1).mean(axis=0), rtol=1e-4
        )

    @pytest.mark.parametrize("policy", ["mixed_float16", "float64"])
    def test_other_precisions(self, policy):
        model, x = self.moved(
            layers.Dense(4, "tanh", dtype=policy), kp.WhiteningLayer(dtype=policy)
        )
        kp.refresh_whitening(model, x)
        covariance = np.cov(to_numpy(model(x)).astype("float64"), rowvar=False)
        np.testing.assert_allclose(covariance, np.eye(4), atol=1e-2)

    def test_within_fit(self):
        x, y = gaussian(200, seed=9)
        model = compiled(network(hidden(20), kp.WhiteningLayer(name="white")))
        found = []

        def refresh(epoch, logs):
            kp.refresh_whitening(model, x)
            spectrum = kp.measure_spectrum(model, x, "white")
            found.append(spectrum.eigenvalues)

        callback = keras.callbacks.LambdaCallback(on_epoch_end=refresh)
        model.fit(x, y, batch_size=50, epochs=2, verbose=0, callbacks=[callback])
        np.testing.assert_allclose(found, 1, atol=0.05)
        after = kp.measure_spectrum(model, x, "white").eigenvalues
        np.testing.assert_allclose(after, found[-1], rtol=1e-3)

    def test_an_error_leaves_the_statistics(self):
        model, x = self.moved(layers.Dense(4), kp.WhiteningLayer())
        before = [to_numpy(variable) for variable in model.layers[1].variables]
        output = to_numpy(model(x))
        x[5] = np.nan
        with pytest.raises(ValueError, match="argument `x`"):
            kp.refresh_whitening(model, x)
        for old, new in zip(before, model.layers[1].variables, strict=True):
            np.testing.assert_array_equal(old, to_numpy(new))
        x[5] = 0
        np.testing.assert_array_equal(to_numpy(model(x))[:5], output[:5])

    @pytest.mark.parametrize(
        "layer", [layers.Dense(3), kp.WhiteningLayer(use_batch_statistics=True)]
    )
    def test_nothing_to_refresh(self, layer):
        model, x = self.moved(layer)
        with pytest.raises(ValueError, match="at least one WhiteningLayer that uses"):
            kp.refresh_whitening(model, x)


class TestInModels:
    def model(self, **settings):
        return compiled(network(hidden(20), kp.WhiteningLayer(**settings)))

    @pytest.fixture
    def data(self):
        return gaussian(200, seed=9)

    @pytest.mark.parametrize("batch_size", [100, 199, 10])
    def test_trains(self, data, batch_size):
        model = self.model()
        history = model.fit(*data, epochs=3, batch_size=batch_size, verbose=0).history
        assert np.all(np.isfinite(history["loss"]))
        assert all(np.isfinite(weight).all() for weight in model.get_weights())

    def test_passes_a_mask_on(self, recwarn):
        symbols = np.random.default_rng(0).integers(3, size=(50, 4))
        embedded = layers.Embedding(3, 2, mask_zero=True)(symbols)
        mask = mask_of(kp.WhiteningLayer()(embedded, training=True))
        np.testing.assert_array_equal(to_numpy(mask), symbols != 0)
        assert not [each for each in recwarn if "mask" in str(each.message)]

    def test_saves_and_loads(self, data, tmp_path):
        model = self.model(momentum=0.5, ridge=1e-3, use_batch_statistics=False)
        model.fit(*data, verbose=0)
        model.save(tmp_path / "model.keras")
        loaded = keras.saving.load_model(tmp_path / "model.keras")
        np.testing.assert_array_equal(
            loaded.predict(data[0], verbose=0), model.predict(data[0], verbose=0)
        )
        config = loaded.layers[1].get_config()
        assert (config["momentum"], config["ridge"]) == (0.5, 1e-3)
        assert config["use_batch_statistics"] is False

    @pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
    def test_computes_in_float32_under_mixed_precision(self, policy):
        x = correlated(300, 8, np.random.default_rng(10))
        layer = kp.WhiteningLayer(dtype=policy)
        half = layer(x, training=True)
        assert keras.backend.standardize_dtype(half.dtype) == layer.compute_dtype
        assert {weight.dtype for weight in layer.weights} == {"float32"}
        rounded = to_numpy(ops.cast(x, layer.compute_dtype))
        np.testing.assert_allclose(
            to_numpy(half), whiten(rounded, layer.ridge), rtol=2e-2, atol=2e-2
        )
        assert np.isfinite(to_numpy(layer(x))).all()


class TestArguments:
    @pytest.mark.parametrize("bad", [-0.1, 1.0, float("nan"), "0.9", None])
    def test_momentum(self, bad):
        with pytest.raises(
            ValueError, match="argument `momentum`. Expected a number in"
        ):
            kp.WhiteningLayer(momentum=bad)

    @pytest.mark.parametrize("bad", [-1e-5, float("nan"), float("inf"), "1", None])
    def test_ridge(self, bad):
        with pytest.raises(ValueError, match="argument `ridge`. Expected a finite"):
            kp.WhiteningLayer(ridge=bad)

    def test_input_of_unknown_size(self):
        with pytest.raises(ValueError, match=r"known size .*\(None, None, 3\)"):
            kp.WhiteningLayer()(keras.Input((None, 3)))
