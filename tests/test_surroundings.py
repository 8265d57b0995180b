"""What else a user's model and `fit()` may bring along, with the regularizer in it."""

import keras
import numpy as np
import pytest
from backend import BACKEND, only, tensorflow, to_numpy, within_fit, without
from datasets import Batches, gaussian, tf_dataset
from keras import layers
from models import Subclassed, compiled, hidden, network

import keras_powerlaw as kp


@pytest.fixture
def data():
    return gaussian(120)


def plain_model():
    """The same weights every time."""
    keras.utils.set_random_seed(0)
    return network(hidden(20, kp.SpectralActivityRegularizer(tau=3, beta=2.0)))


def compiled_model(optimizer=None, **settings):
    return compiled(plain_model(), optimizer or keras.optimizers.SGD(0.1), **settings)


def fit(model, data, *more, refresh=None, callbacks=(), **settings):
    refresh = refresh or kp.EigenbasisRefresh(data[0])
    settings = {"batch_size": 30, "epochs": 3, "shuffle": False} | settings
    arguments = more or data
    callbacks = [refresh, *callbacks]
    return model.fit(*arguments, verbose=0, callbacks=callbacks, **settings).history


class TestSameTrainingAsPlainFit:
    """However it is run and fed, the losses of the steps are the same."""

    @pytest.mark.parametrize(
        "settings",
        [
            {"run_eagerly": True},
            {"jit_compile": False},
            {"jit_compile": True},
            {"steps_per_execution": 4},
        ],
        ids=lambda settings: "-".join(f"{k}={v}" for k, v in settings.items()),
    )
    def test_compiled_with(self, data, settings):
        if "steps_per_execution" in settings and BACKEND == "torch":
            pytest.skip("not on torch: Keras does not have steps_per_execution there")
        if settings.get("jit_compile") and BACKEND == "torch":
            pytest.skip(
                "not on torch: with any activity regularizer, it compiles anew at "
                "every step"
            )
        expected, found = compiled_model(), compiled_model(**settings)
        history = fit(expected, data), fit(found, data)
        np.testing.assert_allclose(history[1]["loss"], history[0]["loss"], rtol=1e-4)
        np.testing.assert_allclose(
            history[1]["hidden_exponent"], history[0]["hidden_exponent"], rtol=1e-4
        )

    @pytest.mark.parametrize("form", [tf_dataset, Batches])
    def test_fed_with(self, data, form):
        expected = fit(compiled_model(), data)
        batches = form(*data, size=30)
        refresh = kp.EigenbasisRefresh(batches)
        found = fit(compiled_model(), data, batches, refresh=refresh, batch_size=None)
        np.testing.assert_allclose(found["loss"], expected["loss"], rtol=1e-5)

    def test_exact_form_with_xla(self, data):
        losses = []
        for settings in ({"run_eagerly": True}, {}):
            keras.utils.set_random_seed(0)
            regularizer = kp.SpectralActivityRegularizer(tau=3, exact=True)
            model = network(hidden(20, regularizer))
            model.compile(keras.optimizers.SGD(0.1), "mse", **settings)
            history = model.fit(
                data[0], np.zeros((120, 4)), shuffle=False, verbose=0, epochs=2
            )
            losses.append(history.history["loss"])
        np.testing.assert_allclose(*losses, rtol=1e-4)


class TestRefreshWithoutRetracing:
    @only(
        "tensorflow",
        "jax",
        why="it compiles nothing unless asked, and then, with any activity "
        "regularizer, every step anew",
    )
    @pytest.mark.parametrize("every", [{"every_epochs": 1}, {"every_steps": 3}])
    def test_nothing_is_compiled_after_the_first_step(self, data, every):
        model = compiled_model()
        compilations = counter_of_compilations(model)
        counts, refreshes = [], []

        class Watch(keras.callbacks.Callback):
            def on_train_batch_begin(self, batch, logs=None):
                if not refreshes or refresh.spectra is not refreshes[-1]:
                    refreshes.append(refresh.spectra)
                counts.append(compilations())

            def on_train_batch_end(self, batch, logs=None):
                counts.append(compilations())

        refresh = kp.EigenbasisRefresh(data[0], **every)
        fit(model, data, refresh=refresh, callbacks=[Watch()], epochs=4)
        assert len(refreshes) >= 4
        first, *later = np.diff(counts)[::2]
        assert first >= 1
        assert not np.any(later)


def counter_of_compilations(model):
    """A function that says how often something was compiled, or traced, until now."""
    counted = []
    if BACKEND == "jax":
        import jax.monitoring

        def listen(event, duration, **_):
            if event == "/jax/core/compile/backend_compile_duration":
                counted.append(event)

        jax.monitoring.register_event_duration_secs_listener(listen)
    else:
        call = model.layers[-1].call

        def counting_call(inputs, training=None):
            counted.append(inputs)
            return call(inputs)

        model.layers[-1].call = counting_call
    return lambda: len(counted)


class TestWeights:
    def test_sample_weights_weigh_the_data_not_the_penalty(self, data):
        x, y = data
        model = compiled_model()
        kp.refresh_eigenbasis(model, x)
        weights = np.linspace(0, 2, len(x)).astype("float32")
        logits = model(x, training=True)
        penalty = float(sum(model.losses))
        data_loss = float(model.loss(y, logits, sample_weight=weights))
        reported = model.evaluate(x, y, 120, sample_weight=weights, verbose=0)
        np.testing.assert_allclose(reported, data_loss + penalty, rtol=1e-5)
        reported = model.train_on_batch(x, y, sample_weight=weights)
        np.testing.assert_allclose(reported, data_loss + penalty, rtol=1e-5)

    def test_gradients_are_accumulated(self, data):
        """Two accumulated batches move the weights by the mean of their steps."""
        halves = [
            tuple(array[rows] for array in data)
            for rows in (slice(60), slice(60, None))
        ]

        def change(optimizer, batches):
            model = compiled_model(optimizer)
            kp.refresh_eigenbasis(model, data[0])
            before = model.get_weights()
            for batch in batches:
                model.train_on_batch(*batch)
            return [
                new - old for new, old in zip(model.get_weights(), before, strict=True)
            ]

        accumulating = keras.optimizers.SGD(0.1, gradient_accumulation_steps=2)
        together = change(accumulating, halves)
        each = [change(keras.optimizers.SGD(0.1), [half]) for half in halves]
        for found, *steps in zip(together, *each, strict=True):
            np.testing.assert_allclose(found, np.mean(steps, axis=0), atol=1e-6)


class TestCallbacks:
    def test_early_stopping_on_the_exponent(self, data):
        stop = keras.callbacks.EarlyStopping(
            "hidden_exponent", mode="max", patience=1, restore_best_weights=True
        )
        history = fit(compiled_model(), data, callbacks=[stop], epochs=9)
        assert 2 <= len(history["loss"]) < 9  # it falls from the first epoch on

    @pytest.mark.parametrize("file", ["best.keras", "best.weights.h5"])
    def test_model_checkpoint(self, data, tmp_path, file):
        model = compiled_model()
        checkpoint = keras.callbacks.ModelCheckpoint(
            tmp_path / file, monitor="loss", save_weights_only="weights" in file
        )
        fit(model, data, callbacks=[checkpoint])
        if "weights" in file:
            loaded = compiled_model()
            loaded.load_weights(tmp_path / file)
        else:
            loaded = keras.saving.load_model(tmp_path / file)
        np.testing.assert_allclose(
            loaded.predict(data[0], verbose=0), model.predict(data[0], verbose=0)
        )

    def test_tensorboard(self, data, tmp_path):
        tensorflow()  # which writes what it shows
        board = keras.callbacks.TensorBoard(tmp_path, histogram_freq=1)
        fit(compiled_model(), data, callbacks=[board])
        events = b"".join(path.read_bytes() for path in tmp_path.rglob("*tfev*"))
        assert b"epoch_hidden_exponent" in events


class TestModels:
    def losses_are_those_of_the_new_basis(self, model, x, y, targets, epochs=2):
        """Trains in full batches; every loss is predicted from the model before it."""
        predicted = []

        class Predict(keras.callbacks.Callback):
            def on_train_batch_begin(self, batch, logs=None):
                within_fit(model)
                outputs = model(x, training=True)
                penalty = sum(float(to_numpy(loss)) for loss in model.losses)
                predicted.append(float(model.loss(y, outputs)) + penalty)

        refresh = kp.EigenbasisRefresh(x)
        size = len(y)
        history = model.fit(
            x,
            y,
            batch_size=size,
            epochs=epochs,
            verbose=0,
            shuffle=False,
            callbacks=[refresh, Predict()],
        ).history
        assert set(refresh.spectra) == targets
        np.testing.assert_allclose(history["loss"], predicted, rtol=2e-4)

    def compile(self, model):
        return compiled(model, keras.optimizers.Adam(1e-3))

    def test_functional_with_two_inputs_and_a_shared_layer(self, data):
        one, two = keras.Input((12,)), keras.Input((12,))
        shared = hidden(16, kp.SpectralActivityRegularizer(tau=2), "shared")
        merged = layers.Concatenate()([shared(one), shared(two)])
        model = self.compile(keras.Model([one, two], layers.Dense(4)(merged)))
        x = [data[0], data[0][::-1].copy()]
        self.losses_are_those_of_the_new_basis(model, x, data[1], {"shared"})
        model(x, training=True)
        total = sum(float(loss) for loss in model.losses)
        regularizer = shared.activity_regularizer
        penalties = [float(regularizer.penalty(shared(each))) for each in x]
        np.testing.assert_allclose(total, sum(penalties), rtol=1e-5)

    def test_nested(self, data):
        nested = network(plain_model())
        self.losses_are_those_of_the_new_basis(
            self.compile(nested), *data, targets={"hidden"}
        )

    def test_subclassed(self, data):
        model = Subclassed(plain_model(), layers.Dense(4))
        self.losses_are_those_of_the_new_basis(
            self.compile(model), *data, targets={"hidden"}
        )

    def test_keras_applications(self):
        rng = np.random.default_rng(0)
        x = rng.random((24, 32, 32, 3)).astype("float32")
        plain = keras.applications.VGG16(
            weights=None, input_shape=(32, 32, 3), include_top=False, pooling="avg"
        )
        name = "global_average_pooling2d"
        model = kp.add_spectral_regularizer(plain, name, tau=2)
        np.testing.assert_array_equal(
            model.predict(x, verbose=0), plain.predict(x, verbose=0)
        )
        model.compile("sgd", "mse")
        refresh = kp.EigenbasisRefresh(x, batch_size=24)
        history = model.fit(
            x, np.zeros((24, 512)), batch_size=12, verbose=0, callbacks=[refresh]
        ).history
        assert np.isfinite(history["loss"][0])
        assert len(refresh.spectra[name].eigenvalues) == 512


def test_runs_without_the_other_backends(tmp_path):
    import subprocess
    import sys
    import textwrap

    script = textwrap.dedent(
        """
        import keras
        import numpy as np
        import keras_powerlaw as kp

        x, y = np.random.random((60, 9)).astype("float32"), np.arange(60) % 3
        model = keras.Sequential(
            [
                keras.Input((9,)),
                keras.layers.Dense(
                    12,
                    activity_regularizer=kp.SpectralActivityRegularizer(tau=2),
                    name="hidden",
                ),
                kp.WhiteningLayer(),
                keras.layers.Dense(3),
            ]
        )
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile("adam", loss)
        model.fit(x, y, verbose=0, callbacks=[kp.EigenbasisRefresh(x)])
        kp.measure_spectrum(model, x, "hidden")
        kp.evaluate_robustness(model, x, y, [0.1], ["fgsm", "pgd", "noise"])
        model.save(sys.argv[1] + "/model.keras")
        """
    )
    others = {"tensorflow", "jax", "torch"} - {BACKEND}
    command = [sys.executable, "-c", without(*others) + script, str(tmp_path)]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr
