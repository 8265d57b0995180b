"""Measuring anywhere: within training, beside other threads, and models with state."""

import threading

import keras
import numpy as np
import pytest
from backend import to_numpy
from datasets import gaussian
from keras import layers
from models import compiled, hidden, network

import keras_powerlaw as kp


def states(layer):
    return [to_numpy(keras.ops.stop_gradient(state)) for state in layer.states]


class TestState:
    @pytest.fixture(params=["LSTM", "GRU"])
    def recurrent(self, request):
        return getattr(layers, request.param)(6, stateful=True, name="recurrent")

    @pytest.fixture
    def model(self, recurrent):
        regularized = hidden(6, kp.SpectralActivityRegularizer(tau=2))
        return keras.Sequential(
            [keras.Input(batch_shape=(20, 3, 4)), recurrent, regularized]
        )

    @pytest.fixture
    def x(self):
        return gaussian(60, (3, 4))[0]

    @pytest.mark.parametrize(
        "measure",
        [
            lambda model, x: kp.measure_spectrum(model, x, "hidden", batch_size=20),
            lambda model, x: kp.refresh_eigenbasis(model, x, batch_size=20),
            lambda model, x: kp.sensitivity_maps(
                model, x, "hidden", (1, 2), batch_size=20
            ),
        ],
        ids=["spectrum", "refresh", "sensitivity"],
    )
    def test_a_measurement_leaves_it(self, model, recurrent, x, measure):
        model(x[:20])
        before = states(recurrent)
        assert np.abs(before).max() > 0.01
        measure(model, x)
        np.testing.assert_array_equal(states(recurrent), before)

    def test_goes_from_batch_to_batch(self, model, recurrent, x):
        model(x[:20])
        before = states(recurrent)
        spectrum = kp.measure_spectrum(model, x, "hidden", batch_size=20)
        maps = kp.sensitivity_maps(model, x, "hidden", (1, 2), batch_size=20)
        for state, value in zip(recurrent.states, before, strict=True):
            state.assign(value)
        activity = [to_numpy(keras.ops.stop_gradient(model(b))) for b in np.split(x, 3)]
        expected = np.linalg.eigvalsh(np.cov(np.concatenate(activity), rowvar=False))
        np.testing.assert_allclose(spectrum.eigenvalues, expected[::-1], rtol=1e-4)
        np.testing.assert_allclose(maps.eigenvalues, expected[::-1][:2], rtol=1e-4)


class TestSeveralOutputs:
    @pytest.mark.parametrize(
        "use",
        [
            lambda model, x: kp.measure_spectrum(model, x, "lstm"),
            lambda model, x: kp.sensitivity_maps(model, x, "lstm", (1,)),
            lambda model, x: kp.refresh_eigenbasis(model, x),
            lambda model, x: kp.refresh_eigenbasis(model),
            lambda model, x: model.fit(
                x, verbose=0, callbacks=[kp.EigenbasisRefresh()]
            ),
        ],
        ids=["spectrum", "sensitivity", "refresh", "window", "fit"],
    )
    def test_are_refused(self, use):
        inputs = keras.Input((3, 4))
        regularizer = kp.SpectralActivityRegularizer(tau=2)
        lstm = layers.LSTM(
            6, return_state=True, name="lstm", activity_regularizer=regularizer
        )
        model = keras.Model(inputs, lstm(inputs)[0])
        model.compile("sgd")
        message = (
            r"Expected a layer with one output: .*Identity.* Received: layer='lstm'"
        )
        with pytest.raises(ValueError, match=message):
            use(model, gaussian(20, (3, 4))[0])

    @pytest.mark.parametrize("kind", ["LSTM", "GRU"])
    def test_take_no_penalty(self, kind):
        inputs = keras.Input((3, 4))
        recurrent = getattr(layers, kind)(6, return_state=True, name="recurrent")
        model = keras.Model(inputs, recurrent(inputs)[0])
        with pytest.raises(ValueError, match="one output: .*'recurrent'.*has several"):
            kp.add_spectral_regularizer(model, "recurrent", tau=2)

    def test_of_a_custom_layer_are_refused(self):
        class Two(layers.Layer):
            def call(self, x):
                return {"a": x, "b": 2 * x}

        inputs = keras.Input((12,))
        model = keras.Model(inputs, Two(name="two")(inputs))
        with pytest.raises(ValueError, match=r"Received: layer='two' \(of type Two\)"):
            kp.measure_spectrum(model, gaussian(20)[0], "two")

    def test_an_identity_behind_one_is_measured(self):
        inputs = keras.Input((3, 4))
        sequence, state = layers.GRU(6, return_sequences=True, return_state=True)(
            inputs
        )
        model = keras.Model(inputs, [sequence, layers.Identity(name="state")(state)])
        x = gaussian(50, (3, 4))[0]
        expected = np.cov(to_numpy(keras.ops.stop_gradient(model(x)[1])), rowvar=False)
        spectrum = kp.measure_spectrum(model, x, "state")
        np.testing.assert_allclose(
            spectrum.eigenvalues, np.linalg.eigvalsh(expected)[::-1], rtol=1e-4
        )


def measurements(model, x, y):
    """One figure of each kind, of the model as it is now."""
    return [
        kp.measure_spectrum(model, x, "hidden").eigenvalues[0],
        kp.sensitivity_maps(model, x, "hidden", (1,)).eigenvalues[0],
        kp.evaluate_robustness(
            model, x, y, [0.1], ["noise"], clip=None, checks=False
        ).clean_accuracy,
    ]


class TestInCallbacks:
    @pytest.fixture
    def data(self):
        return gaussian(40)

    @pytest.fixture
    def model(self):
        return compiled(network(hidden(8)), keras.optimizers.SGD(1.0))

    def fit(self, trained, measured, data):
        """The figures of `measured` at every step, and after `trained.fit()`."""
        seen, look = [], keras.callbacks.Callback()

        def measure(step, logs=None):
            seen.append(measurements(measured, *data))

        look.on_train_batch_end = measure
        look.on_epoch_end = measure
        trained.fit(*data, batch_size=20, verbose=0, callbacks=[look])
        return seen, measurements(measured, *data)

    def test_of_the_model_that_trains(self, model, data):
        seen, after = self.fit(model, model, data)
        np.testing.assert_allclose(seen[1:], [after, after], rtol=1e-6)
        assert seen[0][0] != seen[1][0]

    def test_of_a_model_that_shares_its_layers(self, model, data):
        robust = kp.add_jacobian_regularizer(model)
        seen, after = self.fit(robust, model, data)
        np.testing.assert_allclose(seen[1:], [after, after], rtol=1e-6)
        assert seen[0][0] != seen[1][0]

    def test_while_it_is_evaluated_and_predicts(self, model, data):
        expected = measurements(model, *data)[:1]
        seen, look = [], keras.callbacks.Callback()

        def measure(step, logs=None):
            seen.append(kp.measure_spectrum(model, data[0], "hidden").eigenvalues[0])

        look.on_test_batch_end = look.on_predict_batch_end = measure
        model.evaluate(*data, batch_size=20, verbose=0, callbacks=[look])
        model.predict(data[0], batch_size=20, verbose=0, callbacks=[look])
        np.testing.assert_allclose(seen, 4 * expected, rtol=1e-6)


def test_threads_measure_one_model_at_once():
    x, _ = gaussian(400)
    model = network(hidden(8, "l2"), hidden(8, name="second"))
    regularizer = model.layers[0].activity_regularizer
    names = ["hidden", "second"]
    expected = [kp.measure_spectrum(model, x, name).eigenvalues for name in names]
    found, start = {}, threading.Barrier(4)

    def measure(index):
        start.wait()
        found[index] = [
            kp.measure_spectrum(model, x, names[index % 2], batch_size=50).eigenvalues
            for _ in range(3)
        ]

    threads = [threading.Thread(target=measure, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index in range(4):
        for eigenvalues in found[index]:
            np.testing.assert_allclose(eigenvalues, expected[index % 2], rtol=1e-4)
    assert model.layers[0].activity_regularizer is regularizer
    assert model.layers[1].activity_regularizer is None
