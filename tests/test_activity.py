"""Measuring spectra of models."""

import keras
import numpy as np
import pytest
from datasets import Batches, gaussian
from keras import layers, ops
from models import feature_map, hidden, network

import keras_powerlaw as kp
from keras_powerlaw import arguments as memory
from keras_powerlaw.attach import observe


@pytest.fixture
def model():
    return network(
        feature_map(3), layers.Flatten(name="flat"), hidden(20), shape=(6, 6, 1)
    )


@pytest.fixture
def x():
    return gaussian(210, (6, 6, 1))[0]


def expected(model, x, name):
    layer = keras.Model(model.inputs, model.get_layer(name).output)
    activity = ops.convert_to_numpy(layer(x, training=False)).reshape(len(x), -1)
    return np.linalg.eigvalsh(np.cov(activity, rowvar=False))[::-1]


@pytest.mark.parametrize("name", ["map", "hidden", "logits"])
@pytest.mark.parametrize("batch_size", [1024, 100, 11])
def test_measures_eigenvalues_over_the_whole_set(model, x, name, batch_size):
    spectrum = kp.measure_spectrum(model, x, name, batch_size=batch_size)
    eigenvalues = expected(model, x, name)
    np.testing.assert_allclose(
        spectrum.eigenvalues, eigenvalues, atol=1e-6 * eigenvalues[0]
    )


def test_takes_the_layer_itself_and_a_fit_range(model, x):
    spectrum = kp.measure_spectrum(model, x, model.layers[2], fit_range=(2, 15))
    assert spectrum.fit_range == (2, 15)
    low, high = spectrum.exponent_interval
    assert low < spectrum.exponent < high
    np.testing.assert_allclose(
        spectrum.eigenvalues, expected(model, x, "hidden"), atol=1e-6
    )


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        (["hidden", "map"], ["hidden", "map"]),
        (layers.Dense, ["hidden", "logits"]),
        ((layers.Conv2D, layers.Dense), ["map", "hidden", "logits"]),
        (["logits", layers.Dense], ["logits", "hidden"]),
        (layers.Layer, ["map", "flat", "hidden", "logits"]),
    ],
)
def test_many_layers_in_one_pass(model, x, choice, names):
    data = Batches(x, size=50)
    spectra = kp.measure_spectrum(model, data, choice)
    assert list(spectra) == names
    assert data.delivered == list(range(len(data)))  # each batch once
    for name in names:
        alone = kp.measure_spectrum(model, data, name)
        np.testing.assert_array_equal(spectra[name].eigenvalues, alone.eigenvalues)
        assert spectra[name].floor == alone.floor
    kp.plot_spectrum(spectra, tau=None)


def test_leading_eigenvalues_of_a_layer_too_wide_for_its_covariance(monkeypatch):
    wide = network(feature_map(3), layers.Flatten(), shape=(20, 20, 1))
    x = gaussian(40, (20, 20, 1))[0]
    full = kp.measure_spectrum(wide, x, "map")
    monkeypatch.setattr(memory, "available_bytes", lambda: 4 * 2**20)
    with pytest.raises(ValueError, match="Too wide for the memory"):
        kp.measure_spectrum(wide, x, "map")
    leading = kp.measure_spectrum(wide, x, "map", components=10, batch_size=7)
    np.testing.assert_allclose(leading.eigenvalues, full.eigenvalues[:10], rtol=1e-3)
    np.testing.assert_allclose(leading.variance, full.variance, rtol=1e-5)
    np.testing.assert_allclose(leading.floor, full.floor, rtol=1e-3)


@pytest.mark.parametrize("choice", [[], layers.LSTM, ["hidden", "third"], [3]])
def test_refuses_layers_that_are_not_there(model, x, choice):
    with pytest.raises(ValueError, match="argument `layer`. Expected"):
        kp.measure_spectrum(model, x, choice)


def test_layer_of_a_nested_model(model, x):
    outer = keras.Sequential([keras.Input((6, 6, 1)), model, layers.Softmax()])
    spectrum = kp.measure_spectrum(outer, x, "hidden")
    np.testing.assert_allclose(
        spectrum.eigenvalues, expected(model, x, "hidden"), atol=1e-6
    )


def test_regularized_and_plain_models_measure_the_same(model, x):
    regularized = kp.add_spectral_regularizer(model, ["map", "hidden"], tau=2)
    kp.refresh_eigenbasis(regularized, x)
    for name in ("map", "hidden"):
        np.testing.assert_array_equal(
            kp.measure_spectrum(regularized, x, name).eigenvalues,
            kp.measure_spectrum(model, x, name).eigenvalues,
        )


def test_lists_the_layers_if_there_is_no_such_layer(model, x):
    with pytest.raises(ValueError, match="'map', 'flat', 'hidden', 'logits'.*'third'"):
        kp.measure_spectrum(model, x, "third")


def test_layer_that_the_model_does_not_call(x):
    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.used = layers.Flatten(name="used")
            self.unused = layers.Dense(3, name="unused")

        def call(self, x):
            return self.used(x)

    with pytest.raises(ValueError, match="'unused', which was not called"):
        kp.measure_spectrum(Subclassed(), x, "unused")


def test_observing_leaves_no_trace_even_after_an_error(model, x):
    l2 = keras.regularizers.L2(1e-3)
    layer = layers.Dense(20, name="hidden", activity_regularizer=l2)
    model = keras.Sequential([keras.Input((6, 6, 1)), layers.Flatten(), layer])
    before = dict(vars(model.layers[0]))

    class Unforeseen(Exception):
        pass

    with (
        pytest.raises(Unforeseen),
        observe(model, model.layers, [len, len]) as observed,
    ):
        model(x)
        raise Unforeseen
    assert [len(calls) for calls in observed] == [1, 1]
    assert layer.activity_regularizer is l2
    assert vars(model.layers[0]).keys() == before.keys()
    assert model.layers[0].activity_regularizer is None
    model(x)
    assert float(sum(model.losses)) > 0


def test_real_digits_have_a_spectrum_steeper_than_1_over_n(digits):
    (x, _), _ = digits
    model = keras.Sequential([keras.Input(x.shape[1:]), layers.Flatten(name="pixels")])
    spectrum = kp.measure_spectrum(model, x, "pixels")
    eigenvalues = np.linalg.eigvalsh(np.cov(x.reshape(len(x), -1), rowvar=False))
    np.testing.assert_allclose(spectrum.eigenvalues, eigenvalues[::-1], atol=1e-10)
    assert spectrum.rank == np.sum(x.std(axis=0) > 0)  # some pixels are always blank
    assert spectrum.exponent > 1.5
