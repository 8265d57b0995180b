"""Spectra of a plain network in training."""

import keras
import numpy as np
import pytest
from backend import BACKEND, only, to_numpy
from datasets import gaussian
from keras import layers
from models import Subclassed, compiled, feature_map, hidden, network

import keras_powerlaw as kp


@pytest.fixture
def data():
    return gaussian(400)


@pytest.fixture
def model():
    return compiled(network(hidden(20), hidden(10, name="second")))


def fit(model, data, monitor, epochs=2, **settings):
    settings = {"batch_size": 50, "verbose": 0, **settings}
    return model.fit(*data, epochs=epochs, callbacks=[monitor], **settings).history


class TestOnData:
    def test_logs_what_measure_spectrum_finds(self, model, data):
        monitor = kp.SpectrumMonitor(data[0], ["hidden", "second"])
        history = fit(model, data, monitor)
        spectra = kp.measure_spectrum(model, data[0], ["hidden", "second"])
        for name, spectrum in spectra.items():
            np.testing.assert_array_equal(
                monitor.spectra[name].eigenvalues, spectrum.eigenvalues
            )
            assert history[f"{name}_dimension_90"][-1] == spectrum.dimension_90
            assert (
                history[f"{name}_participation_ratio"][-1]
                == spectrum.participation_ratio
            )
        assert history["hidden_exponent"][-1] == spectra["hidden"].exponent
        assert [steps for steps, _ in monitor.history] == [8, 16]

    def test_every_so_many_epochs_or_steps(self, model, data):
        monitor = kp.SpectrumMonitor(data[0], "hidden", every_epochs=2)
        history = fit(model, data, monitor, epochs=5)
        assert [steps for steps, _ in monitor.history] == [16, 32]
        assert np.isnan(history["hidden_exponent"][0])
        assert history["hidden_exponent"][1] == history["hidden_exponent"][2]
        monitor = kp.SpectrumMonitor(data[0], "hidden", every_steps=3)
        fit(model, data, monitor)
        assert [steps for steps, _ in monitor.history] == [3, 6, 9, 12, 15]

    def test_counts_on_in_the_next_fit(self, model, data):
        monitor = kp.SpectrumMonitor(data[0], "hidden")
        fit(model, data, monitor, epochs=1)
        fit(model, data, monitor, epochs=1)
        assert [steps for steps, _ in monitor.history] == [8, 16]


class TestOnTrainingSteps:
    def test_measures_their_activations(self, data):
        # At a rate of zero these are the activations on the data, in any order.
        model = compiled(network(hidden(20)), keras.optimizers.SGD(0.0))
        monitor = kp.SpectrumMonitor(layers="hidden")
        history = fit(model, data, monitor, epochs=5)  # 2,000 samples, 1,000 are kept
        [whole] = kp.measure_spectrum(model, data[0], ["hidden"]).values()
        found = monitor.spectra["hidden"]
        np.testing.assert_allclose(found.eigenvalues, whole.eigenvalues, rtol=0.3)
        assert history["hidden_exponent"][-1] == found.exponent
        assert [steps for steps, _ in monitor.history] == [8, 16, 24, 32, 40]

    def test_in_training_mode_and_not_those_of_validation(self, data):
        dropout = layers.Dropout(0.5, name="dropout")
        model = compiled(network(dropout), keras.optimizers.SGD(0.0))
        monitor = kp.SpectrumMonitor(layers="dropout")
        validation = (100 * data[0], data[1])
        fit(model, data, monitor, validation_data=validation)
        # Half of the inputs are zero, the others twice as large.
        np.testing.assert_allclose(
            monitor.spectra["dropout"].variance, 2 * data[0].var(axis=0).sum(), rtol=0.1
        )

    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"run_eagerly": True},
            pytest.param({"jit_compile": True}, marks=pytest.mark.slow),
            {"steps_per_execution": 4},
        ],
        ids=["by default", "eagerly", "XLA", "several steps at once"],
    )
    def test_training_takes_the_same_course(self, data, options):
        if BACKEND == "torch" and options.keys() & {
            "jit_compile",
            "steps_per_execution",
        }:
            pytest.skip("not on torch: needs a compiler, or is not there")
        weights = []
        for callbacks in ([], [kp.SpectrumMonitor(layers="hidden")]):
            keras.utils.set_random_seed(0)
            model = compiled(network(hidden(20)), **options)
            model.fit(*data, batch_size=50, epochs=1, callbacks=callbacks, verbose=0)
            weights.append([to_numpy(weight) for weight in model.weights])
        assert callbacks[0].spectra["hidden"].rank > 9
        for plain, monitored in zip(*weights, strict=True):
            np.testing.assert_allclose(monitored, plain, rtol=1e-5, atol=1e-6)

    def test_leaves_no_trace(self, model, data, tmp_path):
        layer = model.get_layer("hidden")
        before = vars(layer).keys()

        class Save(keras.callbacks.Callback):
            def on_epoch_end(self, epoch, logs=None):
                self.model.save(tmp_path / "model.keras")

        monitor = kp.SpectrumMonitor(layers="hidden")
        model.fit(*data, epochs=1, callbacks=[monitor, Save()], verbose=0)
        assert vars(layer).keys() == before
        saved = keras.saving.load_model(tmp_path / "model.keras")
        np.testing.assert_allclose(
            saved.predict(data[0], verbose=0), model.predict(data[0], verbose=0)
        )
        # A later training is not recorded.
        steps = list(monitor.history)
        model.fit(*data, epochs=1, verbose=0)
        assert monitor.history == steps

    def test_feature_maps_by_channels(self):
        data = gaussian(60, (8, 8, 1))
        model = network(feature_map(5), layers.Flatten(), shape=(8, 8, 1))
        monitor = kp.SpectrumMonitor(layers=layers.Conv2D, reduction="channels")
        history = fit(compiled(model), data, monitor)
        assert monitor.spectra["map"].rank == 5
        assert history["map_participation_ratio"][-1] > 1

    def test_a_subclassed_model(self, data):
        class Telling(Subclassed):
            def call(self, x, training=None):
                for part in self.parts:
                    x = part(x, training=training)
                return x

        for kind in (Telling, Subclassed):
            model = compiled(kind(hidden(20), layers.Dense(4)))
            model(data[0][:2])
            monitor = kp.SpectrumMonitor(layers="hidden")
            if kind is Subclassed:
                with pytest.raises(ValueError, match="an argument `training`.*none"):
                    fit(model, data, monitor)
            else:
                fit(model, data, monitor)
                assert monitor.spectra["hidden"].rank > 9

    def test_too_few_samples_are_no_spectrum(self, data):
        model = compiled(network(hidden(250)))
        monitor = kp.SpectrumMonitor(layers="hidden")
        history = fit(model, data, monitor, epochs=3)
        assert [steps for steps, _ in monitor.history] == [16, 24]  # from 500 on
        assert np.isnan(history["hidden_exponent"][0])
        assert np.isnan(history["hidden_dimension_90"][0])


def test_beside_the_penalty_of_another_layer(data):
    regularized = hidden(20, kp.SpectralActivityRegularizer(tau=2))
    model = compiled(network(regularized, hidden(10, name="second")))
    monitor = kp.SpectrumMonitor(layers="second")
    history = model.fit(
        *data,
        epochs=2,
        callbacks=[kp.EigenbasisRefresh(), monitor],
        verbose=0,
    ).history
    assert {"hidden_exponent", "second_exponent"} <= history.keys()


@pytest.mark.parametrize(
    "name, bad",
    [
        *(("every_epochs", value) for value in (0, 1.5, "1")),
        *(("every_steps", value) for value in (0, 1.5, "1")),
        ("layers", []),
        ("reduction", "rows"),
        ("batch_size", 0),
        ("max_samples", 1),
        ("seed", -1),
        ("verbose", "loud"),
    ],
)
def test_refuses_other_arguments(name, bad):
    options = {"layers": "hidden", name: bad}
    with pytest.raises(ValueError, match=f"argument `{name}`. Expected"):
        kp.SpectrumMonitor(**options)


def test_refuses_two_intervals():
    with pytest.raises(ValueError, match="`every_epochs` or `every_steps`, not both"):
        kp.SpectrumMonitor(layers="hidden", every_epochs=1, every_steps=1)


@only("tensorflow", why="tf.distribute")
def test_needs_data_on_several_devices(strategy, data):
    with strategy():
        model = compiled(network(hidden(9)))
    with pytest.raises(ValueError, match=r"give `x`.*SpectrumMonitor\(x, layers\)"):
        fit(model, data, kp.SpectrumMonitor(layers="hidden"))
