"""Penalty, basis and whitening are computed in float32 under every mixed policy.

Under float64, everything trains, and whitening is as precise.
"""

import keras
import numpy as np
import pytest
import reference
from backend import only, to_numpy
from datasets import gaussian
from keras import layers, ops
from models import compiled, feature_map, hidden, network

import keras_powerlaw as kp


@pytest.fixture(params=["mixed_float16", "mixed_bfloat16", "bfloat16"])
def policy(request):
    """Makes the policy the global one, as a user does."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(request.param)
    yield keras.config.dtype_policy()
    keras.config.set_dtype_policy(before)


@pytest.fixture(scope="module")
def data():
    return gaussian(200)


def compiled_model(exact=False):
    regularizer = kp.SpectralActivityRegularizer(tau=3, beta=2.0, exact=exact)
    return compiled(network(hidden(20, regularizer), kp.WhiteningLayer()))


def dtype_of(tensor):
    return keras.backend.standardize_dtype(tensor.dtype)


@pytest.mark.parametrize("exact", [False, True], ids=["frozen", "exact"])
@pytest.mark.parametrize("reduction", ["flatten", "mean"])
def test_penalty_and_basis_are_those_of_the_rounded_activations(
    policy, reduction, exact
):
    options = {"tau": 3, "beta": 2.0, "exact": exact, "reduction": reduction}
    regularizer = kp.SpectralActivityRegularizer(**options)
    x, _ = gaussian(200, (6, 6, 1))
    parts = [feature_map(8, regularizer), layers.Flatten()]
    if reduction == "flatten":
        parts = [layers.Flatten(), hidden(20, regularizer)]
    model = network(*parts, shape=(6, 6, 1))
    activity_of = keras.Model(model.inputs, carrier_of(model).output)
    activity = activity_of(x)
    assert dtype_of(activity) == policy.compute_dtype
    samples = reference.samples(to_numpy(activity), reduction)
    eigenvalues = reference.eigenvalues(samples)
    if not exact:
        spectrum = kp.refresh_eigenbasis(model, x)[carrier_of(model).name]
        # The order in which the means are added up makes a difference.
        digits = 1e-6 if reduction == "flatten" else 1e-5
        np.testing.assert_allclose(
            spectrum.eigenvalues, eigenvalues, rtol=digits, atol=1e-9 * eigenvalues[0]
        )
        assert dtype_of(regularizer.basis) == "float32"
        along = reference.variances(samples, to_numpy(regularizer.basis))
        np.testing.assert_allclose(along, eigenvalues[2:], rtol=1e-4)
    model(x, training=True)
    penalty = sum(model.losses)
    assert dtype_of(penalty) == "float32"
    expected = reference.penalty(eigenvalues, 1.0, 3, 2.0)
    np.testing.assert_allclose(float(penalty), expected, rtol=1e-4)


def carrier_of(model):
    [layer] = [layer for layer in model.layers if layer.activity_regularizer]
    return layer


def test_whitening_is_that_of_the_rounded_activations(policy, data):
    layer = kp.WhiteningLayer()
    rounded = ops.cast(data[0], policy.compute_dtype)
    white = layer(rounded, training=True)
    assert dtype_of(white) == policy.compute_dtype
    assert {dtype_of(weight) for weight in layer.weights} == {"float32"}
    covariance = np.cov(to_numpy(white), rowvar=False)
    np.testing.assert_allclose(covariance, np.eye(12), atol=0.02)
    assert np.isfinite(to_numpy(layer(rounded))).all()


def test_training_stays_finite_and_files_and_measurements_work(policy, data, tmp_path):
    x, y = data
    model = compiled_model()
    refresh = kp.EigenbasisRefresh(x)
    history = model.fit(*data, 50, epochs=2, verbose=0, callbacks=[refresh]).history
    assert np.all(np.isfinite(history["loss"]))
    assert all(np.isfinite(to_numpy(weight)).all() for weight in model.weights)
    assert kp.measure_spectrum(model, x, "hidden").exponent > 0
    report = kp.evaluate_robustness(model, x, y, [0.1], pgd_steps=10, clip=None)
    assert np.all(report.accuracy["pgd"] <= report.accuracy["fgsm"] + 0.02)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(
        loaded.predict(x, verbose=0), model.predict(x, verbose=0)
    )


@only("tensorflow", "torch", why="JAX has float64 only with jax_enable_x64")
class TestFloat64:
    @pytest.fixture(autouse=True)
    def float64(self):
        before = keras.config.floatx(), keras.config.dtype_policy()
        keras.config.set_floatx("float64")
        keras.config.set_dtype_policy("float64")
        yield
        keras.config.set_floatx(before[0])
        keras.config.set_dtype_policy(before[1])

    @pytest.mark.parametrize("jacobian", [False, True], ids=["spectral", "jacobian"])
    @pytest.mark.parametrize("exact", [False, True], ids=["frozen", "exact"])
    def test_trains(self, data, exact, jacobian):
        model = compiled_model(exact)
        if jacobian:
            model = kp.add_jacobian_regularizer(model)
        refresh = [] if exact else [kp.EigenbasisRefresh(data[0])]
        history = model.fit(*data, epochs=2, verbose=0, callbacks=refresh).history
        assert np.all(np.isfinite(history["loss"]))

    def test_penalty_and_spectrum_are_those_of_the_activations(self, data):
        model = compiled_model()
        activity = ops.convert_to_numpy(model.layers[0](data[0]))
        assert activity.dtype == "float64"
        eigenvalues = reference.eigenvalues(activity)
        spectrum = kp.measure_spectrum(model, data[0], "hidden")
        np.testing.assert_allclose(spectrum.eigenvalues, eigenvalues, atol=1e-12)
        kp.refresh_eigenbasis(model, data[0])
        model(data[0], training=True)
        [penalty] = [float(loss) for loss in model.losses if float(loss)]
        expected = reference.penalty(eigenvalues, 1.0, 3, 2.0)
        np.testing.assert_allclose(penalty, expected, rtol=1e-4)

    def test_whitens_what_float32_cannot_resolve(self):
        x = np.random.default_rng(0).normal(size=(200, 6)) * np.logspace(0, -5, 6)
        layer = kp.WhiteningLayer(ridge=0.0)
        white = ops.convert_to_numpy(layer(x + 1.0, training=True))
        np.testing.assert_allclose(np.cov(white, rowvar=False), np.eye(6), atol=1e-4)
        assert {weight.dtype for weight in layer.weights} == {"float64"}
