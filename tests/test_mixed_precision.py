"""Penalty, basis and whitening are computed in float32 under every mixed policy.

Under float64, everything trains, and whitening is as precise.
"""

import keras
import numpy as np
import pytest
import reference
from backend import only, to_numpy
from datasets import gaussian
from keras import ops
from models import compiled, hidden, network

import keras_powerlaw as kp

POLICIES = ["mixed_float16", "mixed_bfloat16", "bfloat16"]


@pytest.fixture(params=POLICIES)
def policy(request):
    """Makes the policy the global one, as a user does."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(request.param)
    yield keras.config.dtype_policy()
    keras.config.set_dtype_policy(before)


@pytest.fixture
def data():
    return gaussian(200)


def compiled_model(exact=False):
    regularizer = kp.SpectralActivityRegularizer(tau=3, beta=2.0, exact=exact)
    model = network(hidden(20, regularizer), kp.WhiteningLayer())
    return compiled(model, keras.optimizers.Adam(1e-3))


@pytest.mark.parametrize("exact", [False, True], ids=["frozen", "exact"])
def test_penalty_is_that_of_the_rounded_activations(policy, data, exact):
    model = compiled_model(exact)
    regularizer = model.layers[0].activity_regularizer
    if not exact:
        kp.refresh_eigenbasis(model, data[0])
        assert keras.backend.standardize_dtype(regularizer.basis.dtype) == "float32"
    hidden = model.layers[0](data[0], training=True)
    assert keras.backend.standardize_dtype(hidden.dtype) == policy.compute_dtype
    model(data[0], training=True)
    penalty = sum(model.losses)

    rounded = to_numpy(hidden)
    basis = reference.eigenvectors(rounded)
    variances = reference.variances(rounded, basis)
    assert keras.backend.standardize_dtype(penalty.dtype) == "float32"
    expected = reference.penalty(variances, 1.0, 3, 2.0)
    np.testing.assert_allclose(float(penalty), expected, rtol=1e-4)


def test_rounding_changes_it_little(policy, data):
    model = compiled_model()
    kp.refresh_eigenbasis(model, data[0])
    keras.config.set_dtype_policy("float32")
    precise = compiled_model()
    precise.set_weights(model.get_weights())
    kp.refresh_eigenbasis(precise, data[0])
    penalties = []
    for each in (model, precise):
        each(data[0], training=True)
        penalties.append(float(sum(each.losses)))
    # bfloat16 keeps 8 bits, of inputs, weights and activations.
    tolerance = 0.005 if policy.compute_dtype == "float16" else 0.03
    np.testing.assert_allclose(*penalties, rtol=tolerance)


def test_basis_diagonalizes_the_covariance_of_the_rounded_activations(policy, data):
    model = compiled_model()
    spectrum = kp.refresh_eigenbasis(model, data[0])["hidden"]
    rounded = to_numpy(model.layers[0](data[0]))
    expected = np.linalg.eigvalsh(np.cov(rounded, rowvar=False))[::-1]
    np.testing.assert_allclose(
        spectrum.eigenvalues, expected, rtol=1e-6, atol=1e-9 * expected[0]
    )
    basis = to_numpy(model.layers[0].activity_regularizer.basis)
    np.testing.assert_allclose(
        reference.variances(rounded, basis), expected[2:], rtol=1e-4
    )


def test_whitening_is_that_of_the_rounded_activations(policy, data):
    layer = kp.WhiteningLayer()
    x = ops.cast(data[0], policy.compute_dtype)
    white = layer(x, training=True)
    assert keras.backend.standardize_dtype(white.dtype) == policy.compute_dtype
    assert {keras.backend.standardize_dtype(w.dtype) for w in layer.weights} == {
        "float32"
    }
    covariance = np.cov(to_numpy(white), rowvar=False)
    np.testing.assert_allclose(covariance, np.eye(12), atol=0.02)


def test_training_stays_finite_and_measurements_work(policy, data):
    x, y = data
    model = compiled_model()
    history = model.fit(
        x,
        y,
        batch_size=50,
        epochs=3,
        verbose=0,
        callbacks=[kp.EigenbasisRefresh(x)],
    ).history
    assert np.all(np.isfinite(history["loss"]))
    assert all(np.isfinite(to_numpy(weight)).all() for weight in model.weights)
    assert kp.measure_spectrum(model, x, "hidden").exponent > 0
    report = kp.evaluate_robustness(model, x, y, [0.1], pgd_steps=10, clip=None)
    assert np.all(report.accuracy["pgd"] <= report.accuracy["fgsm"] + 0.02)


def test_saved_model_predicts_the_same(policy, data, tmp_path):
    model = compiled_model()
    model.fit(*data, verbose=0, callbacks=[kp.EigenbasisRefresh(data[0])])
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(
        loaded.predict(data[0], verbose=0), model.predict(data[0], verbose=0)
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

    def test_penalty_is_that_of_the_activations(self, data):
        model = compiled_model()
        kp.refresh_eigenbasis(model, data[0])
        activity = keras.ops.convert_to_numpy(model.layers[0](data[0], training=True))
        assert activity.dtype == "float64"
        model(data[0], training=True)
        [penalty] = [float(loss) for loss in model.losses if float(loss)]
        basis = reference.eigenvectors(activity)
        expected = reference.penalty(reference.variances(activity, basis), 1.0, 3, 2.0)
        np.testing.assert_allclose(penalty, expected, rtol=1e-4)

    def test_whitens_what_float32_cannot_resolve(self):
        x = np.random.default_rng(0).normal(size=(200, 6)) * np.logspace(0, -5, 6)
        layer = kp.WhiteningLayer(ridge=0.0)
        white = keras.ops.convert_to_numpy(layer(x + 1.0, training=True))
        np.testing.assert_allclose(np.cov(white, rowvar=False), np.eye(6), atol=1e-4)
        assert {weight.dtype for weight in layer.weights} == {"float64"}

    def test_spectrum_is_that_of_the_activations(self, data):
        model = compiled_model()
        activity = keras.ops.convert_to_numpy(model.layers[0](data[0]))
        expected = np.linalg.eigvalsh(np.cov(activity, rowvar=False))[::-1]
        spectrum = kp.measure_spectrum(model, data[0], "hidden")
        np.testing.assert_allclose(spectrum.eigenvalues, expected, atol=1e-12)
