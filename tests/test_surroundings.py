"""What else a user's model and `fit()` may bring along, and what does not work.

docs/limits.md says what to do instead.
"""

import subprocess
import sys

import keras
import numpy as np
import pytest
from backend import BACKEND, only, tensorflow, to_numpy, within_fit, without
from datasets import Batches, gaussian, tf_dataset
from keras import layers
from models import Subclassed, compiled, hidden, network

import keras_powerlaw as kp


@pytest.fixture(scope="module")
def data():
    return gaussian(120)


def plain_model(**settings):
    """The same weights every time."""
    keras.utils.set_random_seed(0)
    settings = {"tau": 3, "beta": 2.0} | settings
    return network(hidden(20, kp.SpectralActivityRegularizer(**settings)))


def compiled_model(optimizer=None, **settings):
    return compiled(plain_model(), optimizer or keras.optimizers.SGD(0.1), **settings)


def fit(model, data, *more, refresh=None, callbacks=(), **settings):
    callbacks = [refresh or kp.EigenbasisRefresh(data[0]), *callbacks]
    settings = {"batch_size": 30, "epochs": 3, "shuffle": False} | settings
    arguments = more or data
    return model.fit(*arguments, verbose=0, callbacks=callbacks, **settings).history


@pytest.fixture(scope="module")
def expected(data):
    return fit(compiled_model(), data)


NOT_ON_TORCH = {"jit_compile": True}, {"steps_per_execution": 4}


class TestSameTrainingAsPlainFit:
    """However it is run and fed, the losses of the steps are the same."""

    @pytest.mark.parametrize(
        "settings",
        [{"run_eagerly": True}, {"jit_compile": False}, *NOT_ON_TORCH],
        ids=str,
    )
    def test_compiled_with(self, data, expected, settings):
        if BACKEND == "torch" and settings in NOT_ON_TORCH:
            pytest.skip("not on torch: it compiles every step anew, and no two at once")
        found = fit(compiled_model(**settings), data)
        for name in ("loss", "hidden_exponent"):
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-4)

    @pytest.mark.parametrize("form", [tf_dataset, Batches])
    def test_fed_with(self, data, expected, form):
        batches = form(*data, size=30)
        refresh = kp.EigenbasisRefresh(batches)
        found = fit(compiled_model(), data, batches, refresh=refresh, batch_size=None)
        np.testing.assert_allclose(found["loss"], expected["loss"], rtol=1e-5)

    def test_exact_form_with_xla(self, data):
        losses = []
        for settings in ({"run_eagerly": True}, {}):
            model = compiled(plain_model(exact=True), **settings)
            history = model.fit(*data, shuffle=False, verbose=0, epochs=2).history
            losses.append(history["loss"])
        np.testing.assert_allclose(*losses, rtol=1e-4)


@only(
    "tensorflow",
    "jax",
    why="it compiles nothing unless asked, and then, with any activity regularizer, "
    "every step anew",
)
@pytest.mark.parametrize("every", [{"every_epochs": 1}, {"every_steps": 3}], ids=str)
def test_nothing_is_compiled_by_a_refresh_after_the_first_step(data, every):
    model = compiled_model()
    compilations = counter_of_compilations(model)
    counts, refreshes = [], []

    class Watch(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if not refreshes or refresh.spectra["hidden"] is not refreshes[-1]:
                refreshes.append(refresh.spectra["hidden"])
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


def test_sample_weights_weigh_the_data_not_the_penalty(data):
    x, y = data
    model = compiled_model()
    kp.refresh_eigenbasis(model, x)
    weights = np.linspace(0, 2, len(x)).astype("float32")
    logits = model(x, training=True)
    penalty = float(sum(model.losses))
    expected = float(model.loss(y, logits, sample_weight=weights)) + penalty
    reported = model.evaluate(x, y, 120, sample_weight=weights, verbose=0)
    np.testing.assert_allclose(reported, expected, rtol=1e-5)
    reported = model.train_on_batch(x, y, sample_weight=weights)
    np.testing.assert_allclose(reported, expected, rtol=1e-5)


def test_accumulated_gradients_are_the_mean_of_those_of_the_steps(data):
    halves = [[array[rows] for array in data] for rows in (slice(60), slice(60, None))]

    def change(batches, steps=0, **options):
        model = compiled_model(keras.optimizers.SGD(0.1, **options))
        kp.refresh_eigenbasis(model, data[0])
        for _ in range(steps):  # which say how far the penalty may go
            model.layers[0].activity_regularizer.eigenbasis.count_step()
        before = to_numpy(model.layers[0].kernel)
        for batch in batches:
            model.train_on_batch(*batch)
        return to_numpy(model.layers[0].kernel) - before

    changes = [change([half], steps) for steps, half in enumerate(halves)]
    expected = np.mean(changes, axis=0)
    found = change(halves, gradient_accumulation_steps=2)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_callbacks_of_keras_see_the_logs_and_save_the_model(data, tmp_path):
    tensorflow()  # which writes what TensorBoard shows
    model, paths = compiled_model(), [tmp_path / "m.keras", tmp_path / "m.weights.h5"]
    callbacks = [
        keras.callbacks.EarlyStopping("hidden_exponent", mode="max", patience=1),
        *(
            keras.callbacks.ModelCheckpoint(path, save_weights_only=".h5" in path.name)
            for path in paths
        ),
        keras.callbacks.TensorBoard(tmp_path / "board", histogram_freq=1),
    ]
    history = fit(model, data, callbacks=callbacks, epochs=9)
    assert 2 <= len(history["loss"]) < 9  # the exponent falls from the first epoch on
    loaded = [keras.saving.load_model(paths[0]), compiled_model()]
    loaded[1].load_weights(paths[1])
    for each in loaded:
        np.testing.assert_allclose(
            each.predict(data[0], verbose=0), model.predict(data[0], verbose=0)
        )
    events = b"".join(path.read_bytes() for path in tmp_path.rglob("*tfev*"))
    assert b"epoch_hidden_exponent" in events


def two_inputs_of_a_shared_layer():
    one, two = keras.Input((12,)), keras.Input((12,))
    shared = hidden(16, kp.SpectralActivityRegularizer(tau=2))
    merged = layers.Concatenate()([shared(one), shared(two)])
    return keras.Model([one, two], layers.Dense(4)(merged))


@pytest.mark.parametrize(
    "build",
    [
        two_inputs_of_a_shared_layer,
        lambda: network(plain_model()),
        lambda: Subclassed(plain_model(), layers.Dense(4)),
    ],
    ids=["two inputs and a shared layer", "nested", "subclassed"],
)
def test_the_loss_of_every_step_is_that_of_the_new_basis(data, build):
    """In full batches, every loss is predicted from the model before it."""
    model, predicted = compiled(build()), []
    is_shared = len(getattr(model, "inputs", None) or [1]) == 2
    x = [data[0], data[0][::-1].copy()] if is_shared else data[0]

    class Predict(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            within_fit(model)
            outputs = model(x, training=True)
            penalty = sum(float(to_numpy(loss)) for loss in model.losses)
            predicted.append(float(model.loss(data[1], outputs)) + penalty)

    refresh = kp.EigenbasisRefresh(x)
    history = fit(
        *(model, (x, data[1])), refresh=refresh, callbacks=[Predict()], batch_size=120
    )
    assert set(refresh.spectra) == {"hidden"}
    np.testing.assert_allclose(history["loss"], predicted, rtol=2e-4)
    if is_shared:
        shared = model.get_layer("hidden")
        penalties = [float(shared.activity_regularizer.penalty(shared(e))) for e in x]
        model(x, training=True)
        np.testing.assert_allclose(float(sum(model.losses)), sum(penalties), rtol=1e-5)


def test_a_network_of_keras_applications_trains_with_it():
    x = np.random.default_rng(0).random((24, 32, 32, 3)).astype("float32")
    model = keras.applications.VGG16(weights=None, include_top=False, pooling="avg")
    kp.add_spectral_regularizer(model, model.layers[-1], tau=2)
    model.compile("sgd", "mse")
    refresh = kp.EigenbasisRefresh(x, batch_size=24)
    model.fit(x, np.zeros((24, 512)), 12, verbose=0, callbacks=[refresh])
    [spectrum] = refresh.spectra.values()
    assert len(spectrum.eigenvalues) == 512


SCRIPT = """
import keras
import numpy as np
import keras_powerlaw as kp

x, y = np.random.random((60, 9)).astype("float32"), np.arange(60) % 3
layers = [keras.layers.Dense(12), kp.WhiteningLayer(), keras.layers.Dense(3)]
model = keras.Sequential([keras.Input((9,)), *layers])
kp.add_spectral_regularizer(model, layers[0], tau=2)
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
model.compile("adam", loss)
model.fit(x, y, verbose=0, callbacks=[kp.EigenbasisRefresh(x)])
kp.measure_spectrum(model, x, layers[0])
kp.evaluate_robustness(model, x, y, [0.1], ["fgsm", "pgd", "noise"])
model.save(sys.argv[1] + "/model.keras")
"""


def test_runs_without_the_other_backends(tmp_path):
    others = {"tensorflow", "jax", "torch"} - {BACKEND}
    command = [sys.executable, "-c", without(*others) + SCRIPT, str(tmp_path)]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr


class TestLimits:
    @only("tensorflow", why="TensorFlow Lite converts its graphs")
    def test_tensorflow_lite_has_no_triangular_solve(self):
        import tensorflow as tf

        def converter(*parts):
            return tf.lite.TFLiteConverter.from_keras_model(network(*parts))

        regularizer = kp.SpectralActivityRegularizer(tau=2)
        assert converter(hidden(8, regularizer)).convert()
        whitening = converter(hidden(8), kp.WhiteningLayer())
        with pytest.raises(Exception, match="MatrixTriangularSolve"):
            whitening.convert()
        supported = tf.lite.OpsSet.TFLITE_BUILTINS, tf.lite.OpsSet.SELECT_TF_OPS
        whitening.target_spec.supported_ops = list(supported)
        assert whitening.convert()

    @pytest.mark.parametrize("kind", [layers.LSTM, layers.GRU])
    @only("torch", why="elsewhere, Keras trains stateful layers")
    def test_keras_trains_no_stateful_layer_regularized_or_not(self, kind):
        inputs = keras.Input(batch_shape=(20, 3, 4))
        recurrent = kind(6, stateful=True)
        model = compiled(keras.Sequential([inputs, recurrent, layers.Dense(4)]))
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            model.fit(*gaussian(20, (3, 4)), batch_size=20, verbose=0)

    def test_a_simple_recurrent_layer_drops_it(self):
        regularizer = kp.SpectralActivityRegularizer(tau=2)
        layer = layers.SimpleRNN(6, activity_regularizer=regularizer)
        model = network(layer, shape=(3, 4))
        with pytest.raises(ValueError, match="at least one layer"):
            kp.refresh_eigenbasis(model, gaussian(20, (3, 4))[0])

    @only("tensorflow", "jax", why="its steps are not compiled")
    def test_activations_can_be_rematerialized(self, data):
        with keras.RematScope(mode="activations"):
            model = compiled(network(hidden(9)))
        kp.add_spectral_regularizer(model, "hidden", tau=2)
        model.fit(*data, verbose=0, callbacks=[kp.EigenbasisRefresh(data[0])])
