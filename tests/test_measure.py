"""Spectra of a model's layers: over a data set, and in the course of `fit()`."""

import warnings

import keras
import numpy as np
import pytest
import reference
from backend import BACKEND, only, to_numpy
from datasets import Batches, gaussian, tf_dataset
from keras import layers
from models import Subclassed, compiled, feature_map, hidden, network

import keras_powerlaw as kp
from keras_powerlaw import arguments
from keras_powerlaw.keras_internals import flatten_layers

X = gaussian(210, (6, 6, 1))[0]


@pytest.fixture
def model():
    flat = layers.Flatten(name="flat")
    return network(feature_map(3), flat, hidden(20), shape=(6, 6, 1))


def expected(model, x, name):
    """The eigenvalues, apart from the package."""
    layer = keras.Model(model.inputs, model.get_layer(name).output)
    activity = to_numpy(layer(x, training=False)).reshape(len(x), -1)
    return reference.eigenvalues(activity)


class TestMeasuring:
    @pytest.mark.parametrize("name", ["map", "hidden"])
    @pytest.mark.parametrize(
        "x",
        [
            lambda: X,
            lambda: Batches(X, X, size=11),
            lambda: tf_dataset(X, size=209),  # leaves a batch of one
        ],
        ids=["array", "PyDataset", "tf.data.Dataset"],
    )
    def test_gives_the_eigenvalues_over_the_whole_set(self, model, x, name):
        spectrum = kp.measure_spectrum(model, x(), name, batch_size=100)
        eigenvalues = expected(model, X, name)
        np.testing.assert_allclose(
            spectrum.eigenvalues, eigenvalues, atol=1e-6 * eigenvalues[0]
        )

    def test_takes_the_layer_itself_and_a_fit_range(self, model):
        layer = model.get_layer("hidden")
        spectrum = kp.measure_spectrum(model, X, layer, fit_range=(2, 15))
        assert spectrum.fit_range == (2, 15)
        with pytest.raises(ValueError, match="`fit_range`"):  # before the pass
            kp.measure_spectrum(model, "no data", layer, fit_range=(2, 21))

    def test_reads_the_data_once_for_many_layers(self, model):
        data = Batches(X, size=50)
        spectra = kp.measure_spectrum(model, data, (layers.Conv2D, "logits"))
        assert data.delivered == list(range(len(data)))
        assert list(spectra) == ["map", "logits"]
        for name, spectrum in spectra.items():
            alone = kp.measure_spectrum(model, data, name)
            np.testing.assert_array_equal(spectrum.eigenvalues, alone.eigenvalues)
            assert spectrum.floor == alone.floor

    def test_warns_of_exponents_that_have_too_few_samples(self, model):
        def warned(count, name, **options):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                kp.measure_spectrum(model, X[:count], name, **options)
            return [str(w.message) for w in caught if w.category is UserWarning]

        (message,) = warned(90, ["map", "hidden"])  # 48 and 20 units
        assert "'map', 'hidden': fewer than the units" in message
        (message,) = warned(210, ["map", "hidden"])
        assert "'map': fewer" in message
        assert not warned(210, "map", fit_range=(2, 42))
        assert warned(210, "map", fit_range=(2, 43))
        assert warned(47, "map", fit_range=(2, 9))
        assert not warned(48, "map", fit_range=(2, 9))
        assert not warned(47, "map", components=10)  # no exponent
        assert not warned(2, ["map", "hidden", "logits"])

    def test_of_fewer_samples_than_units_needs_no_covariance(self, monkeypatch):
        wide = network(feature_map(3), layers.Flatten(), shape=(20, 20, 1))
        x = gaussian(1000, (20, 20, 1))[0]
        monkeypatch.setattr(arguments, "installed_memory", lambda: 4 * 2**20)
        with pytest.raises(ValueError, match="Too wide"):
            kp.measure_spectrum(wide, x, "map")
        full = kp.measure_spectrum(wide, x[:40], "map", batch_size=7)
        exact = expected(wide, x[:40], "map")
        np.testing.assert_allclose(full.eigenvalues[:39], exact[:39], rtol=1e-5)
        leading = kp.measure_spectrum(wide, x[:40], "map", components=10)
        np.testing.assert_allclose(leading.eigenvalues, exact[:10], rtol=1e-5)
        np.testing.assert_allclose(leading.variance, full.variance, rtol=1e-5)
        np.testing.assert_allclose(leading.floor, full.floor, rtol=1e-5)

    def test_pools_all_calls_of_a_shared_layer(self):
        one, two = keras.Input((5,)), keras.Input((5,))
        shared = layers.Dense(8, name="shared")
        model = keras.Model([one, two], layers.Add()([shared(one), shared(two)]))
        x = [gaussian(90, (5,), seed=seed)[0] for seed in (0, 1)]
        found = kp.measure_spectrum(model, x, "shared").eigenvalues
        pooled = to_numpy(shared(np.concatenate(x)))
        np.testing.assert_allclose(found, reference.eigenvalues(pooled), atol=1e-6)

    def test_is_in_inference_mode_and_with_or_without_a_penalty_the_same(self):
        model = network(layers.BatchNormalization(name="norm"), layers.Dropout(0.5))
        x = gaussian(50)[0]
        plain = kp.measure_spectrum(model, x, "norm").eigenvalues
        kp.add_spectral_regularizer(model, "norm", tau=2)
        kp.refresh_eigenbasis(model, x)
        regularized = kp.measure_spectrum(model, x, layers.Dropout)["dropout"]
        np.testing.assert_array_equal(regularized.eigenvalues, plain)
        assert not np.any(to_numpy(model.get_layer("norm").moving_mean))

    def test_refuses_a_layer_that_the_model_does_not_call(self):
        model = Subclassed(layers.Flatten())
        model.unused = layers.Dense(3, name="unused")
        with pytest.raises(ValueError, match="'unused', which was not called"):
            kp.measure_spectrum(model, X, "unused")

    def test_refuses_what_is_not_finite(self, model):
        x = X.copy()
        x[7, 0, 0, 0] = np.nan
        with pytest.raises(ValueError, match="argument `x`.* NaN or infinity in 1 of"):
            kp.measure_spectrum(model, x, "hidden")
        model.get_layer("hidden").kernel.assign(np.full((48, 20), np.nan))
        with pytest.raises(ValueError, match="activations of layer 'hidden'.* NaN or"):
            kp.measure_spectrum(model, X, "hidden")

    @pytest.mark.parametrize("count", [0, 1])
    def test_refuses_fewer_than_two_examples(self, model, count):
        with pytest.raises(ValueError, match=f"two examples.* Received: x={count} ex"):
            kp.measure_spectrum(model, X[:count], "hidden")


DATA = gaussian(400)


def fit(model, *callbacks, epochs=2, data=DATA, **settings):
    keras.utils.set_random_seed(1)  # of the order of the examples
    settings = {"batch_size": 50, "verbose": 0, **settings}
    return model.fit(*data, epochs=epochs, callbacks=callbacks, **settings).history


def steps_of(monitor):
    return [steps for steps, _ in monitor.history]


class TestMonitoringData:
    def test_logs_what_measuring_finds_and_counts_on(self):
        model = compiled(network(hidden(20), hidden(10, name="second")))
        monitor = kp.SpectrumMonitor(DATA[0], ["hidden", "second"])
        logs = fit(model, monitor)
        for name in "hidden", "second":
            spectrum = kp.measure_spectrum(model, DATA[0], name)
            np.testing.assert_array_equal(
                monitor.spectra[name].eigenvalues, spectrum.eigenvalues
            )
            for figure in "exponent", "dimension_90", "participation_ratio":
                found = logs[f"{name}_{figure}"][-1]
                np.testing.assert_equal(found, getattr(spectrum, figure))
        fit(model, monitor, epochs=1)
        assert steps_of(monitor) == [8, 16, 24]

    def test_is_every_so_many_epochs_or_steps(self):
        model = compiled(network(hidden(20)))
        epochs = kp.SpectrumMonitor(DATA[0], "hidden", every_epochs=2)
        steps = kp.SpectrumMonitor(DATA[0], "hidden", every_steps=3)
        logs = fit(model, steps, epochs, epochs=5)["hidden_exponent"]
        assert steps_of(epochs) == [16, 32]
        assert np.isnan(logs[0]) and logs[1] == logs[2] and logs[2] != logs[3]
        assert steps_of(steps) == list(range(3, 40, 3))


class Look(keras.callbacks.Callback):
    """Looks at the layer that is monitored, and saves the model."""

    def __init__(self, model, path):
        super().__init__()
        self.path, self.methods = path, methods(model)

    def on_epoch_end(self, epoch, logs=None):
        assert methods(self.model) == self.methods
        self.model.save(self.path)


def methods(model):
    """Those that the layer's class does not have, and what is called like them."""
    attributes = vars(model.get_layer("hidden")).items()
    return {k: v for k, v in attributes if callable(v) and k != "activity_regularizer"}


def traces(model):
    """All that a monitor could leave behind."""
    layers = [
        (id(layer), id(layer.activity_regularizer), sorted(vars(layer)))
        for layer in flatten_layers(model)[1:]
    ]
    return layers, list(map(id, model.variables))


REGULARIZERS = {
    "none": lambda: None,
    "L2": lambda: keras.regularizers.L2(1e-2),
    "spectral": lambda: kp.SpectralActivityRegularizer(tau=2),
}


def model_with(regularizer, **options):
    keras.utils.set_random_seed(0)
    model = compiled(network(hidden(20, REGULARIZERS[regularizer]())), **options)
    if regularizer == "spectral":
        kp.refresh_eigenbasis(model, DATA[0])
    return model


class TestMonitoringTraining:
    @pytest.mark.parametrize(
        "regularizer, options",
        [
            *((name, {}) for name in REGULARIZERS),
            ("none", {"steps_per_execution": 4}),
            pytest.param("none", {"jit_compile": True}, marks=pytest.mark.slow),
        ],
        ids=str,
    )
    def test_takes_the_same_course_and_leaves_no_trace(
        self, regularizer, options, tmp_path
    ):
        if BACKEND == "torch" and options:
            pytest.skip("not on torch: needs a compiler, or is not there")
        plain, model = (model_with(regularizer, **options) for _ in range(2))
        expected = fit(plain)
        look = Look(model, tmp_path / "model.keras")
        monitor = kp.SpectrumMonitor(layers="hidden")
        before = traces(model)
        found = fit(model, monitor, look)
        assert monitor.spectra["hidden"].rank == 20
        assert found["loss"] == expected["loss"]
        for one, other in zip(plain.weights, model.weights, strict=True):
            np.testing.assert_array_equal(*map(to_numpy, (one, other)))
        assert traces(model) == before

        loaded = keras.saving.load_model(look.path)
        np.testing.assert_allclose(
            *(each.predict(DATA[0], verbose=0) for each in (loaded, model)), rtol=1e-6
        )
        kept = loaded.get_layer("hidden").activity_regularizer
        if regularizer == "none":
            assert kept.get_config() == {"l2": 0.0}
        else:
            own = model.get_layer("hidden").activity_regularizer
            assert (type(kept), kept.get_config()) == (type(own), own.get_config())

        fit(model, epochs=1)  # which no one measures
        assert steps_of(monitor) == [8, 16]

    @pytest.mark.parametrize("regularizer", REGULARIZERS)
    def test_that_is_interrupted_leaves_no_trace_after_the_next(self, regularizer):
        model = model_with(regularizer)
        before = traces(model)
        for monitor in (kp.SpectrumMonitor(layers="hidden") for _ in range(2)):
            monitor.set_model(model)
            monitor.on_train_begin()
            model(DATA[0], training=True)
            assert traces(model) != before  # and here the first one ends
        monitor.on_train_end()
        assert traces(model) == before

    def test_measures_its_activations_and_not_those_of_validation(self):
        dropout = layers.Dropout(0.5, name="dropout")
        model = compiled(network(dropout), keras.optimizers.SGD(0.0))
        monitor = kp.SpectrumMonitor(layers="dropout")
        fit(model, monitor, validation_data=(100 * DATA[0], DATA[1]))
        # Half of the inputs are zero, the others twice as large.
        np.testing.assert_allclose(
            monitor.spectra["dropout"].variance, 2 * DATA[0].var(axis=0).sum(), rtol=0.1
        )

    def test_by_several_monitors_at_once(self):
        model = network(feature_map(5), layers.Flatten(), shape=(8, 8, 1))
        monitors = [
            kp.SpectrumMonitor(layers=layers.Conv2D, reduction=reduction)
            for reduction in ("channels", "mean")
        ]
        before = traces(compiled(model))
        fit(model, *monitors, data=gaussian(60, (8, 8, 1)))
        assert [monitor.spectra["map"].rank for monitor in monitors] == [5, 5]
        channels, mean = (monitor.spectra["map"].variance for monitor in monitors)
        assert channels > 2 * mean
        assert traces(model) == before

    def test_with_too_few_samples_gives_no_spectrum(self):
        model = compiled(network(hidden(250)))
        monitor = kp.SpectrumMonitor(layers="hidden")
        logs = fit(model, monitor)
        assert steps_of(monitor) == [16]  # from 500 samples on
        assert np.isnan(logs["hidden_exponent"][0])
        assert np.isnan(logs["hidden_dimension_90"][0])

    @only("tensorflow", why="tf.distribute")
    def test_on_several_devices_needs_data(self, strategy):
        with strategy():
            model = compiled(network(hidden(9)))
        with pytest.raises(ValueError, match=r"give `x`.*SpectrumMonitor\(x, layers\)"):
            fit(model, kp.SpectrumMonitor(layers="hidden"))


@pytest.mark.parametrize(
    "callback",
    [kp.EigenbasisRefresh, lambda **every: kp.SpectrumMonitor(None, "hidden", **every)],
    ids=["refresh", "monitor"],
)
def test_a_callback_refuses_two_intervals(callback):
    with pytest.raises(ValueError, match="not both. Received: every_epochs=1, every_"):
        callback(every_epochs=1, every_steps=3)
