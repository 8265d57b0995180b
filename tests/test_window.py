"""The eigenbasis that comes from the training batches themselves."""

import itertools

import keras
import numpy as np
import pytest
from backend import BACKEND, only, to_numpy, within_fit
from datasets import Batches, gaussian, tf_dataset
from keras import layers, ops
from models import Subclassed, compiled, feature_map, hidden, network

import keras_powerlaw as kp
from keras_powerlaw.basis import ActivationWindow
from keras_powerlaw.spectral.schedule import Schedule
from keras_powerlaw.spectrum import Degenerate

UNITS = 24
NEEDED = 2 * UNITS


@pytest.fixture
def data():
    return gaussian(230)


def regularized(optimizer="adam", tau=2, **options):
    """A network with a layer of 24 regularized units, the weights from a fixed seed."""
    keras.utils.set_random_seed(0)
    model = network(hidden(UNITS, kp.SpectralActivityRegularizer(tau=tau, beta=2.0)))
    return compiled(model, optimizer, **options)


def regularizer_of(model, name="hidden"):
    return model.get_layer(name).activity_regularizer


def fit(model, data, *callbacks, **settings):
    settings = {
        "batch_size": 46,
        "epochs": 2,
        "verbose": 0,
        "shuffle": False,
    } | settings
    refresh = kp.EigenbasisRefresh()
    history = model.fit(*data, callbacks=[refresh, *callbacks], **settings).history
    return history, refresh


def open_window(units, replicas=1):
    owner = kp.SpectralActivityRegularizer()
    window = ActivationWindow(owner, replicas)
    window.open(units)
    return window


def rows(count, units, start=0):
    """Rows that tell their number: row k has k in every column."""
    numbers = np.arange(start, start + count, dtype="float32")
    return ops.convert_to_tensor(np.repeat(numbers[:, np.newaxis], units, axis=1))


class TestWindow:
    def test_holds_the_latest_samples(self):
        window = open_window(units=700)
        assert not window.is_filled
        for start in range(0, 9000, 300):
            window.write(rows(300, 700, start))
            assert window.is_filled == (start + 300 >= 1400)
        kept = np.sort(to_numpy(window.samples())[:, 0])
        assert len(kept) >= 1400
        # What did not fit at the end is up to a batch older.
        latest = np.arange(9000 - 1400 + 300, 9000)
        assert set(latest) <= set(kept) and kept.min() >= 9000 - len(kept) - 300

    def test_any_batch_size_fills_it(self):
        for size in (1, 7, 64, 128, 333, 5000):
            window = open_window(units=20)
            for _ in range(1 + 1000 // min(size, 250)):
                window.write(rows(size, 20))
            assert window.is_filled and window.count >= 1000

    def test_takes_an_even_choice_of_a_large_batch(self):
        window = open_window(units=20)
        window.write(rows(32 * 1024, 20))
        chosen = to_numpy(window.samples())[:, 0]
        assert len(np.unique(chosen)) == len(chosen) == 250
        # From everywhere in the batch, and from all columns of 32×32 feature maps.
        counts, _ = np.histogram(chosen, bins=50, range=(0, 32 * 1024))
        assert counts.min() >= 4 and counts.max() <= 6
        assert len(np.unique(chosen % 32)) == 32

    def test_state_can_be_restored(self):
        window, other = open_window(20), open_window(20)
        for start in range(0, 1600, 100):
            window.write(rows(100, 20, start))
        other.restore(window.to_arrays())
        for each in (window, other):
            each.write(rows(100, 20, 5000))
        np.testing.assert_array_equal(
            to_numpy(window.samples()), to_numpy(other.samples())
        )


class TestDecomposition:
    @pytest.mark.parametrize("on_host", [True, False])
    @pytest.mark.parametrize("count", [400, 30])
    def test_agrees_with_numpy(self, on_host, count):
        rng = np.random.default_rng(0)
        samples = rng.normal(size=(count, 60)) / np.arange(1, 61) + 3.0
        samples = samples.astype("float32")
        sigma = np.cov(samples.astype("float64"), rowvar=False)
        expected = np.linalg.eigvalsh(sigma)[::-1]
        found = decompose_samples(ops.convert_to_tensor(samples), on_host=on_host)
        np.testing.assert_allclose(found.eigenvalues, expected, atol=2e-6)
        basis = to_numpy(found.eigenvectors)
        np.testing.assert_allclose(basis.T @ basis, np.eye(60), atol=1e-5)
        np.testing.assert_allclose(
            basis.T @ sigma @ basis, np.diag(expected), atol=5e-6
        )
        turned = np.linalg.qr(rng.normal(size=(60, 60)))[0][:, :7].astype("float32")
        np.testing.assert_allclose(
            to_numpy(found.variances_along(ops.convert_to_tensor(turned))),
            np.diag(turned.T @ sigma @ turned),
            rtol=1e-4,
        )

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    @pytest.mark.parametrize("on_host", [True, False])
    def test_refuses_what_is_not_finite(self, bad, on_host):
        samples = np.ones((40, 5), "float32")
        samples[3, 2] = bad
        with pytest.raises(Degenerate, match="NaN or infinity"):
            decompose_samples(ops.convert_to_tensor(samples), on_host=on_host)


class TestBasisFromTraining:
    def test_it_is_that_of_the_activations_in_training(self, data):
        """Of batch normalization, whose averages for inference are far off."""
        norm = layers.BatchNormalization(
            activity_regularizer=kp.SpectralActivityRegularizer(tau=2), name="norm"
        )
        keras.utils.set_random_seed(0)
        model = network(layers.Dense(UNITS), norm)
        compiled(model, keras.optimizers.SGD(0.0))
        _, refresh = fit(model, data, epochs=6)
        before = keras.Model(model.inputs, model.layers[0].output)(data[0])
        blocks = to_numpy(before).reshape(5, 46, UNITS)
        normalized = (blocks - blocks.mean(axis=1, keepdims=True)) / np.sqrt(
            blocks.var(axis=1, keepdims=True) + norm.epsilon
        )
        sigma = np.cov(normalized.reshape(-1, UNITS), rowvar=False)
        expected = np.linalg.eigvalsh(sigma)[::-1]
        # Each of the five batches about as often.
        found = refresh.spectra["norm"].eigenvalues
        np.testing.assert_allclose(found, expected, rtol=0.1)
        basis = to_numpy(regularizer_of(model, "norm").basis)
        assert basis.shape == (UNITS, UNITS - 1)
        np.testing.assert_allclose(
            np.diag(basis.T @ sigma @ basis), expected[1:], rtol=0.1
        )

    def test_penalizes_the_training_as_a_basis_from_the_data_does(self, data):
        exponents = []
        for x in (None, data[0]):
            model = regularized(keras.optimizers.Adam(1e-2))
            refresh = kp.EigenbasisRefresh(x, every_steps=5)
            model.fit(*data, batch_size=46, epochs=60, verbose=0, callbacks=[refresh])
            spectrum = kp.measure_spectrum(model, data[0], "hidden", fit_range=(3, 24))
            exponents.append(spectrum.exponent)
        from_window, from_data = exponents
        assert from_window < 1.5 < 1.7  # that of the plain network
        assert abs(from_window - from_data) < 0.15

    @pytest.mark.parametrize(
        "options",
        [{"run_eagerly": True}, {"jit_compile": True}, {"steps_per_execution": 5}],
        ids=["eager", "jit_compile", "steps_per_execution"],
    )
    def test_however_the_step_is_executed(self, data, options):
        if BACKEND == "torch" and "jit_compile" in options:
            pytest.skip("torch.compile needs a C++ compiler, and Keras advises against")
        if BACKEND == "torch" and "steps_per_execution" in options:
            pytest.skip("Keras has no steps_per_execution on torch")
        histories = []
        for each in ({}, options):
            model = regularized(**each)
            refresh = kp.EigenbasisRefresh(every_steps=5)
            histories.append(
                model.fit(
                    *data,
                    batch_size=46,
                    epochs=4,
                    verbose=0,
                    shuffle=False,
                    callbacks=[refresh],
                ).history
            )
        usual, other = histories
        if "steps_per_execution" in options:  # the first refresh is a few steps later
            assert np.all(np.isfinite(other["hidden_exponent"][1:]))
        else:
            np.testing.assert_allclose(other["loss"], usual["loss"], rtol=1e-4)

    def test_what_fit_takes_and_reads_once(self, data):
        x, y = data

        def generator():
            while True:
                for start in range(0, 230, 46):
                    yield x[start : start + 46], y[start : start + 46]

        batches = Batches(x, y, size=46)
        losses = []
        for source in (data, (generator(),), (batches,), (tf_dataset(x, y, size=46),)):
            history, _ = fit(
                regularized(), source, steps_per_epoch=5, batch_size=None, shuffle=False
            )
            losses.append(history["loss"])
        for other in losses[2:]:
            np.testing.assert_allclose(other, losses[1], rtol=1e-5)
        # Keras itself looks at the first batch before training.
        assert len(batches.delivered) <= 2 * 5 + 2

    def test_feature_maps_by_channels(self):
        x, y = gaussian(64, (8, 8, 1))
        keras.utils.set_random_seed(0)
        regularizer = kp.SpectralActivityRegularizer(tau=2, reduction="channels")
        model = network(feature_map(12, regularizer), layers.Flatten(), shape=(8, 8, 1))
        compiled(model, keras.optimizers.SGD(0.0))
        _, refresh = fit(model, (x, y), batch_size=32, epochs=3)
        every = to_numpy(keras.Model(model.inputs, model.layers[0].output)(x))
        expected = np.linalg.eigvalsh(np.cov(every.reshape(-1, 12), rowvar=False))
        np.testing.assert_allclose(
            refresh.spectra["map"].eigenvalues, expected[::-1], rtol=0.4
        )

    def test_a_subclassed_model(self, data):
        """Its layers have no shape before they are called."""

        class KnowsTraining(Subclassed):
            def call(self, x, training=None):
                for part in self.parts:
                    x = part(x, training=training)
                return x

        for model_class in (KnowsTraining, Subclassed):
            keras.utils.set_random_seed(0)
            regularizer = kp.SpectralActivityRegularizer(tau=2)
            model = compiled(model_class(hidden(UNITS, regularizer), layers.Dense(4)))
            if model_class is Subclassed:
                with pytest.raises(ValueError, match="has an argument `training`"):
                    fit(model, data)
                continue
            history, refresh = fit(model, data)
            assert np.isfinite(history["hidden_exponent"][-1])
            assert len(refresh.spectra["hidden"].eigenvalues) == UNITS

    def test_mixed_precision(self, data):
        keras.utils.set_random_seed(0)
        regularizer = kp.SpectralActivityRegularizer(tau=2)
        layer = hidden(UNITS, regularizer)
        layer.dtype_policy = "mixed_bfloat16"
        model = compiled(network(layer))
        history, _ = fit(model, data)
        assert np.all(np.isfinite(history["loss"]))
        assert keras.backend.standardize_dtype(regularizer.basis.dtype) == "float32"

    def test_is_traced_once(self, data):
        calls = []

        class Counting(layers.Layer):
            def call(self, x):
                calls.append(None)
                return x

        keras.utils.set_random_seed(0)
        counting = Counting()
        regularizer = kp.SpectralActivityRegularizer(tau=2)
        model = compiled(network(counting, hidden(UNITS, regularizer)))
        x, y = data[0], data[1]
        fit(model, (x, y))
        after_one_fit = len(calls)
        fit(model, (x, y))
        if BACKEND != "torch":  # which compiles nothing
            assert len(calls) == after_one_fit

    def test_weights_files_and_exports_know_nothing_of_it(self, data, tmp_path):
        model = regularized()
        fit(model, data)
        assert len(model.weights) == len(regularized().weights)
        plain = network(hidden(UNITS))
        model.save_weights(tmp_path / "model.weights.h5")
        plain.load_weights(tmp_path / "model.weights.h5")
        np.testing.assert_allclose(
            to_numpy(plain(data[0])), to_numpy(model(data[0])), rtol=1e-5, atol=1e-6
        )
        model.save(tmp_path / "model.keras")
        loaded = keras.models.load_model(tmp_path / "model.keras")
        assert regularizer_of(loaded).basis is None
        assert regularizer_of(loaded).window is None

    @only("tensorflow", why="elsewhere an export needs TensorFlow, or ONNX")
    def test_exported_graphs_have_no_window(self, data, tmp_path):
        import tensorflow as tf

        model = regularized()
        fit(model, data)
        model.export(tmp_path / "exported", verbose=False)
        stored = tf.train.list_variables(str(tmp_path / "exported/variables/variables"))
        assert not [name for name, shape in stored if UNITS - 1 in shape]
        assert not [name for name, shape in stored if shape and shape[0] >= 1000]


class TestFirstSteps:
    """Until there are two samples per unit, training is that of the plain network."""

    def test_the_penalty_is_left_out(self, data):
        losses = []

        class Losses(keras.callbacks.Callback):
            def on_train_batch_end(self, batch, logs=None):
                losses[-1].append(logs["loss"])

        for model in (regularized(keras.optimizers.SGD(0.1)), None):
            losses.append([])
            if model is None:
                keras.utils.set_random_seed(0)
                model = compiled(network(hidden(UNITS)), keras.optimizers.SGD(0.1))
                model.fit(
                    *data, batch_size=20, verbose=0, shuffle=False, callbacks=[Losses()]
                )
            else:
                fit(model, data, Losses(), batch_size=20, epochs=1)
        found, plain = losses
        first = -(-NEEDED // 20)  # steps without penalty
        np.testing.assert_allclose(found[:first], plain[:first], rtol=1e-5)
        assert found[first] > plain[first] + 1e-3

    def test_its_beginning_is_announced_once(self, data, capsys):
        model = regularized()
        fit(model, data, verbose=2)
        assert capsys.readouterr().out.count("penalty begins with step 3") == 1
        fit(model, data, verbose=2)
        assert "begins" not in capsys.readouterr().out
        fit(regularized(), data, verbose=0)
        assert capsys.readouterr().out == ""

    def test_logs_are_nan_before_it(self, data):
        x, y = data[0][:40], data[1][:40]
        history, _ = fit(regularized(), (x, y), batch_size=20, epochs=3)
        for name in ("exponent", "staleness", "penalty"):
            assert np.isnan(history[f"hidden_{name}"][0])
        assert np.isfinite(history["hidden_exponent"][1])

    def test_training_that_ends_before_it_says_so(self, data):
        model = regularized()
        with pytest.warns(UserWarning, match="never acted: training ended after 2 st"):
            fit(model, (data[0][:40], data[1][:40]), batch_size=20, epochs=1)
        assert regularizer_of(model).basis is None
        with pytest.raises(ValueError, match=r"EigenbasisRefresh\(\)"):
            regularized().fit(*data, verbose=0)

    def test_training_that_ends_before_a_refresh_was_due_says_so(self, data):
        steps = -(-2 * UNITS // 20)  # the last fills the window
        x, y = data[0][: 20 * steps], data[1][: 20 * steps]
        with pytest.warns(UserWarning, match="steps, before a refresh was due"):
            fit(regularized(), (x, y), batch_size=20, epochs=1)

    def test_it_goes_on_in_the_next_fit(self, data):
        model = regularized()
        with pytest.warns(UserWarning, match="never acted"):
            fit(model, (data[0][:40], data[1][:40]), batch_size=20, epochs=1)
        history, _ = fit(model, data, batch_size=20, epochs=1)
        assert np.isfinite(history["hidden_exponent"][0])

    def test_none_is_left_of_a_training_without_epochs(self, data):
        model = regularized()
        fit(model, data, epochs=0)
        with pytest.raises(ValueError, match=r"EigenbasisRefresh\(\)"):
            model.fit(*data, verbose=0)

    def test_a_model_compiled_anew_begins_like_a_new_one(self, data):
        def fold(model, x):
            compiled(model, keras.optimizers.Adam(0.01))
            fit(model, (x, data[1]), batch_size=20)
            return model.get_weights()

        model, new = regularized(), regularized()
        start = model.get_weights()
        fold(model, data[0])
        model.set_weights(start)
        other = data[0] * np.arange(1, 13, dtype="float32")
        for again, first in zip(fold(model, other), fold(new, other), strict=True):
            np.testing.assert_array_equal(again, first)

    @only("tensorflow", "torch", why="on JAX, a training step takes and returns state")
    def test_a_training_step_of_ones_own_goes_on(self, data):
        class OfItsOwn(keras.Sequential):
            def train_step(self, data):
                # And perhaps an optimizer of its own.
                return {"mean": ops.mean(self(data[0], training=True))}

        keras.utils.set_random_seed(0)
        regularizer = kp.SpectralActivityRegularizer(tau=2)
        model = compiled(OfItsOwn(network(hidden(UNITS, regularizer)).layers))
        model.run_eagerly = True
        fit(model, data)
        basis = to_numpy(regularizer.basis)
        fit(model, data, epochs=0)
        np.testing.assert_array_equal(to_numpy(regularizer.basis), basis)

    def test_a_loss_of_zero_is_no_error(self, data):
        model = regularized(loss=lambda y, logits: ops.sum(0.0 * logits, axis=-1))
        with pytest.warns(UserWarning, match="never acted"):
            history, _ = fit(model, (data[0][:40], data[1][:40]), epochs=1)
        assert history["loss"] == [0.0]
        assert np.isnan(history["hidden_share"][0])

    def test_evaluation_before_it_has_no_penalty(self, data):
        model = regularized(optimizer=keras.optimizers.SGD(0.0))
        plain = compiled(network(hidden(UNITS)))
        plain.set_weights(model.get_weights())
        with pytest.warns(UserWarning, match="never acted"):
            history, _ = fit(
                model,
                (data[0][:20], data[1][:20]),
                batch_size=20,
                epochs=2,
                validation_data=data,
            )
        expected = plain.evaluate(*data, verbose=0)
        np.testing.assert_allclose(history["val_loss"][0], expected, rtol=1e-5)


class TestLoopOfOnesOwn:
    def test_refresh_eigenbasis_takes_the_window(self, data):
        model = regularized()
        assert kp.refresh_eigenbasis(model) == {}
        for start in range(0, 230, 46):
            rows = slice(start, start + 46)
            model.train_on_batch(data[0][rows], data[1][rows])
            if start == 0:
                assert kp.refresh_eigenbasis(model) == {}
        spectra = kp.refresh_eigenbasis(model)
        assert len(spectra["hidden"].eigenvalues) == UNITS
        assert regularizer_of(model).basis.shape == (UNITS, UNITS - 1)
        assert float(model.train_on_batch(*data)) > 0


class TestDyingLayers:
    @pytest.mark.parametrize("way", ["window", "data"])
    def test_one_that_dies_in_training_keeps_its_basis(self, data, way):
        class Kill(keras.callbacks.Callback):
            def on_epoch_begin(self, epoch, logs=None):
                if epoch == 1:
                    within_fit(self.model)
                    layer = self.model.get_layer("hidden")
                    layer.kernel.assign(np.zeros((12, UNITS)))

        model = regularized(keras.optimizers.SGD(0.0))
        x = data[0] if way == "data" else None
        refresh = kp.EigenbasisRefresh(x, every_steps=5)
        with pytest.warns(UserWarning, match="'hidden' could not be renewed"):
            history = model.fit(
                *data,
                batch_size=46,
                epochs=40,
                verbose=0,
                callbacks=[refresh, Kill()],
            ).history
        assert len(history["loss"]) == 40 and np.all(np.isfinite(history["loss"]))
        assert regularizer_of(model).basis is not None

    def test_the_penalty_yields_and_comes_back(self, data):
        strengths = []

        class KillAndRevive(keras.callbacks.Callback):
            def on_epoch_begin(self, epoch, logs=None):
                layer = self.model.get_layer("hidden")
                if epoch == 1:
                    within_fit(self.model)
                    self.kernel = to_numpy(layer.kernel)
                    layer.kernel.assign(np.zeros((12, UNITS)))
                elif epoch == 3:
                    within_fit(self.model)
                    layer.kernel.assign(self.kernel)

            def on_epoch_end(self, epoch, logs=None):
                basis = regularizer_of(self.model).eigenbasis
                strengths.append((basis.yielded_to, logs["hidden_share"], logs["loss"]))

        model = regularized(keras.optimizers.SGD(0.0))
        refresh = kp.EigenbasisRefresh(data[0], every_epochs=1)
        with pytest.warns(UserWarning, match="at 0.01 of its strength. .* smaller"):
            history = model.fit(
                *data,
                epochs=8,
                verbose=0,
                callbacks=[refresh, KillAndRevive()],
            ).history
        left = [strength for strength, _, _ in strengths]
        np.testing.assert_allclose(left, [1, 1, 0.1, 0.01, 0.02, 0.04, 0.08, 0.16])
        np.testing.assert_allclose(
            history["hidden_share"],
            np.multiply(left, history["hidden_penalty"]) / history["loss"],
        )
        # Where the basis is known, the loss of a batch shows the strength.
        x = data[0]
        model(x)
        assert float(sum(model.losses)) == pytest.approx(
            left[-1] * history["hidden_penalty"][-1], rel=0.05
        )

    def test_constant_units_and_rank_are_logged(self, data):
        model = regularized(keras.optimizers.SGD(0.0))
        kernel = to_numpy(model.get_layer("hidden").kernel)
        kernel[:, :6] = 0
        model.get_layer("hidden").kernel.assign(kernel)
        for x in (None, data[0]):
            history = model.fit(
                *data, epochs=9, verbose=0, callbacks=[kp.EigenbasisRefresh(x)]
            ).history
            assert history["hidden_dead"][-1] == 6 / UNITS
            assert history["hidden_rank"][-1] == UNITS - 6

    def test_one_that_is_dead_at_first_is_an_error(self, data):
        model = regularized(keras.optimizers.SGD(0.0))
        model.get_layer("hidden").kernel.assign(np.zeros((12, UNITS)))
        with pytest.raises(ValueError, match="'hidden' vary in only 0 of 24"):
            fit(model, data)


class TestSchedule:
    @pytest.mark.parametrize("settings", [{}, {"every_epochs": 2}, {"every_steps": 7}])
    def test_begins_as_soon_as_it_can(self, data, settings):
        steps = []

        class Watch(keras.callbacks.Callback):
            def on_train_batch_end(self, batch, logs=None):
                steps.append(refresh._last_refresh)

        refresh = kp.EigenbasisRefresh(**settings)
        regularized().fit(
            *data, batch_size=46, epochs=6, verbose=0, callbacks=[refresh, Watch()]
        )
        found = sorted(set(steps) - {None})
        first, *later = found
        assert first == 2 and steps.index(2) == 2
        expected = {"every_epochs": [10, 20], "every_steps": [9, 16, 23]}
        narrow = [7, 12, 17, 22, 27]  # of 24 units, by default
        assert later == expected.get(next(iter(settings), None), narrow)

    def test_all_refreshes_renew_and_some_measure(self, data):
        bases, found = [], []

        class Watch(keras.callbacks.Callback):
            def on_train_batch_end(self, batch, logs=None):
                if refresh._last_refresh is not None:
                    bases.append(to_numpy(regularizer_of(self.model).basis))
                    found.append(refresh.spectra["hidden"].exponent)

        refresh = kp.EigenbasisRefresh(every_steps=10)
        regularized().fit(
            *data, batch_size=46, epochs=7, verbose=0, callbacks=[refresh, Watch()]
        )
        # From the third step on, in which the first one takes place.
        renewed = [not np.array_equal(*pair) for pair in itertools.pairwise(bases)]
        assert np.flatnonzero(renewed).tolist() == [9, 19, 29]
        assert np.flatnonzero(np.diff(found)).tolist() == [19]

    def test_the_first_of_a_later_training_measures(self, data):
        refresh = kp.EigenbasisRefresh(every_steps=10)  # once in five steps
        found = []
        for x in (data[0], 2 * data[0]):
            regularized().fit(x, data[1], batch_size=46, verbose=0, callbacks=[refresh])
            found.append(refresh.spectra["hidden"].eigenvalues[0])
        assert found[1] > 1.5 * found[0]

    def test_another_model_begins_without_the_results_of_the_first(self, data):
        refresh = kp.EigenbasisRefresh()
        for units, name in ((UNITS, "first"), (12, "second")):
            regularizer = kp.SpectralActivityRegularizer(tau=2)
            model = compiled(
                network(
                    layers.Dense(units, activity_regularizer=regularizer, name=name)
                )
            )
            model.fit(*data, batch_size=46, verbose=0, callbacks=[refresh])
        assert refresh.spectra.keys() == refresh.staleness.keys() == {"second"}

    def test_the_widest_layer_decides(self, data):
        first, second = (kp.SpectralActivityRegularizer(tau=2) for _ in range(2))
        model = network(
            hidden(UNITS, first), layers.Dense(300, activity_regularizer=second)
        )
        _, refresh = fit(compiled(model), data, epochs=3)
        assert refresh.schedule == Schedule(every_epochs=None, every_steps=12)


class TestArguments:
    def test_max_samples_needs_data(self):
        with pytest.raises(ValueError, match="argument `max_samples`.*without `x`"):
            kp.EigenbasisRefresh(max_samples=100)
        with pytest.raises(ValueError, match="argument `max_samples`.*without `x`"):
            kp.refresh_eigenbasis(regularized(), max_samples=100)
