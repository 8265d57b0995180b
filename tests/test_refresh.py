"""Renewing the eigenbasis: from data or training steps, within `fit()` and outside."""

import itertools
import time

import keras
import numpy as np
import pytest
import reference
import scipy.linalg
from backend import BACKEND, only, to_numpy, within_fit
from datasets import Again, Batches, gaussian, tf_dataset
from keras import layers, ops
from models import Subclassed, compiled, feature_map, hidden, network

import keras_powerlaw as kp
from keras_powerlaw import refresh
from keras_powerlaw.refresh import CovarianceOnDevice, covariance_of

UNITS = 24
DATA = gaussian(230)
# Compiling takes longer than a few steps, but on JAX, which compiles every operation.
EAGERLY = {"run_eagerly": BACKEND != "jax"}


def regularized(units=UNITS, rate=1e-3, **options):
    """A network with a layer of regularized units, the weights from a fixed seed."""
    keras.utils.set_random_seed(0)
    model = network(hidden(units, kp.SpectralActivityRegularizer(tau=2, beta=2.0)))
    return compiled(model, keras.optimizers.SGD(rate), **{**EAGERLY, **options})


def regularizer_of(model, name="hidden"):
    return model.get_layer(name).activity_regularizer


def fit(model, *callbacks, data=DATA, **settings):
    """Two epochs of five steps."""
    settings = {"batch_size": 46, "epochs": 2, "verbose": 0, **settings}
    settings["shuffle"] = False
    return model.fit(*data, callbacks=callbacks, **settings).history


def some(count):
    return tuple(array[:count] for array in DATA)


def begin(callback, model):
    """Outside of `fit()`, where on JAX a test cannot change the weights."""
    callback.set_model(model)
    callback.on_train_begin()
    return callback


class TestDecomposition:
    @pytest.mark.parametrize("kind", [covariance_of, CovarianceOnDevice])
    @pytest.mark.parametrize("count", [400, 30])
    def test_agrees_with_numpy(self, kind, count):
        rng = np.random.default_rng(0)
        samples = rng.normal(size=(count, 60)) / np.arange(1, 61) + 3.0
        samples = samples.astype("float32")
        sigma = np.cov(samples.astype("float64"), rowvar=False)
        expected = reference.eigenvalues(samples.astype("float64"))
        found = kind(ops.convert_to_tensor(samples), "float32")
        eigenvalues, eigenvectors = found.eigenvectors()
        np.testing.assert_allclose(eigenvalues, expected, atol=2e-6)
        basis = to_numpy(ops.convert_to_tensor(eigenvectors + 0))
        np.testing.assert_allclose(basis.T @ basis, np.eye(60), atol=1e-5)
        rotated = basis.T @ sigma @ basis
        np.testing.assert_allclose(rotated, np.diag(expected), atol=5e-6)
        turned = reference.orthonormal(60, rng)[:, :7].astype("float32")
        variances = reference.variances(samples, turned)
        np.testing.assert_allclose(found.variances_along(turned), variances, rtol=1e-4)
        # What rounding adds lies below what is resolved, and above what is not.
        assert found.floor() < 1e-5 * expected[0]
        assert np.sum(eigenvalues > found.floor()) == min(60, count - 1)


class TestRefresh:
    @pytest.fixture
    def model(self):
        """Two regularized layers, one of them convolutional."""
        first, second = (kp.SpectralActivityRegularizer(tau=tau) for tau in (1, 5))
        flat = layers.Flatten()
        return network(feature_map(2, first), flat, hidden(24, second), shape=(8, 8, 1))

    X = gaussian(230, (8, 8, 1))[0]

    def test_gives_the_eigenvectors_of_the_covariance_over_the_full_set(self, model):
        weights = model.get_weights()
        found = kp.refresh_eigenbasis(model, self.X, batch_size=64)
        for name, tau in ("map", 1), ("hidden", 5):
            layer = model.get_layer(name)
            activity = to_numpy(keras.Model(model.inputs, layer.output)(self.X))
            sigma = np.cov(activity.reshape(230, -1), rowvar=False)
            expected = np.linalg.eigvalsh(sigma)[::-1]
            basis, tolerance = to_numpy(regularizer_of(model, name).basis), expected[0]
            along, diagonal = basis.T @ sigma @ basis, np.diag(expected[tau - 1 :])
            np.testing.assert_allclose(along, diagonal, atol=2e-6 * tolerance)
            eigenvalues = found[name].eigenvalues
            np.testing.assert_allclose(eigenvalues, expected, atol=1e-6 * tolerance)
        for before, after in zip(weights, model.get_weights(), strict=True):
            np.testing.assert_array_equal(before, after)

    @pytest.mark.parametrize(
        "value, message",
        [
            (np.nan, "activations of layer 'hidden'.* NaN or inf"),
            (0.0, "'hidden' vary in only 0 of 24"),
        ],
    )
    def test_that_fails_for_one_layer_leaves_all_bases(self, model, value, message):
        kp.refresh_eigenbasis(model, self.X)
        before = to_numpy(regularizer_of(model, "map").basis)
        model.get_layer("map").kernel.assign(np.ones((3, 3, 1, 2)))
        model.get_layer("hidden").kernel.assign(np.full((72, 24), value))
        with pytest.raises(ValueError, match=message):
            kp.refresh_eigenbasis(model, self.X)
        found = to_numpy(regularizer_of(model, "map").basis)
        np.testing.assert_array_equal(found, before)

    def test_needs_a_regularized_layer(self):
        model = keras.Sequential([keras.Input((3,)), layers.Dense(2)], name="plain")
        with pytest.raises(ValueError, match="'plain', which has none"):
            kp.refresh_eigenbasis(model, np.zeros((9, 3)))

    def test_takes_no_max_samples_without_data(self):
        with pytest.raises(ValueError, match="argument `max_samples`.*without `x`"):
            kp.EigenbasisRefresh(max_samples=100)
        with pytest.raises(ValueError, match="argument `max_samples`.*without `x`"):
            kp.refresh_eigenbasis(regularized(), max_samples=100)

    def test_from_a_loop_of_ones_own_takes_its_latest_activations(self):
        model = regularized()
        assert kp.refresh_eigenbasis(model) == {}
        for start in range(0, 230, 46):
            model.train_on_batch(*(array[start : start + 46] for array in DATA))
            if start == 0:
                assert kp.refresh_eigenbasis(model) == {}
        spectra = kp.refresh_eigenbasis(model)
        assert len(spectra["hidden"].eigenvalues) == UNITS
        assert regularizer_of(model).basis.shape == (UNITS, UNITS - 1)

    def test_from_training_steps_names_the_layer_whose_activations_are_nan(self):
        model = regularized()
        kp.refresh_eigenbasis(model)
        model.get_layer("hidden").kernel.assign(np.full((12, UNITS), np.nan))
        model(DATA[0], training=True)
        with pytest.raises(ValueError, match="Layer 'hidden': There is NaN"):
            kp.refresh_eigenbasis(model)


class Changes(keras.callbacks.Callback):
    """The steps before which the basis has changed, and the exponent was measured.

    Listed after the refresh, it sees a batch's basis before its step.
    """

    def __init__(self, refresh):
        super().__init__()
        self.refresh, self.steps, self.measured = refresh, [], []
        self.step, self.basis, self.spectra = 0, None, {}

    def on_train_batch_begin(self, batch, logs=None):
        within_fit(self.model)
        basis = regularizer_of(self.model).basis
        basis = None if basis is None else to_numpy(basis)
        if not np.array_equal(basis, self.basis):
            self.steps.append(self.step)
        if self.refresh.spectra != self.spectra:
            self.measured.append(self.step)
        self.basis, self.spectra = basis, self.refresh.spectra
        self.step += 1


class TestSchedule:
    @pytest.mark.parametrize(
        "every, epochs, steps",
        [
            ({}, {}, [0, 20, 29, 49]),  # every epoch, and every 20 steps
            ({"every_epochs": 2}, {"epochs": 3, "initial_epoch": 1}, [0, 29]),
            ({"every_steps": 13}, {}, [0, 13, 26, 39, 52]),
        ],
        ids=str,
    )
    def test_on_data_begins_with_training(self, every, epochs, steps):
        callback = kp.EigenbasisRefresh(DATA[0], **every)
        changes = Changes(callback)
        fit(regularized(), callback, changes, batch_size=8, **epochs)  # of 29 steps
        assert changes.steps == changes.measured == steps

    @pytest.mark.parametrize(
        "units, settings, steps, measured",
        [
            (24, {}, [2, 7, 12, 17, 22, 27], [2, 22]),
            (24, {"every_epochs": 2}, [2, 10, 20], [2, 10, 20]),
            (24, {"every_steps": 10}, [2, 12, 22], [2, 22]),
            (300, {}, [14, 26], [14]),
        ],
        ids=str,
    )
    def test_on_training_steps_begins_as_soon_as_it_can_and_follows_the_width(
        self, units, settings, steps, measured
    ):
        """All refreshes renew the basis, and about every twentieth step measures it."""
        callback = kp.EigenbasisRefresh(**settings)
        changes = Changes(callback)
        fit(regularized(units), callback, changes, epochs=6)
        assert (changes.steps, changes.measured) == (steps, measured)

    def test_of_a_later_training_begins_with_a_measurement_and_forgets_another_model(
        self,
    ):
        callback, found = kp.EigenbasisRefresh(every_steps=10), []
        for factor, units in (1, UNITS), (2, UNITS), (1, 12):
            data = factor * DATA[0], DATA[1]
            fit(regularized(units), callback, data=data, epochs=1)
            found.append(callback.spectra["hidden"].eigenvalues)
        assert found[1][0] > 1.5 * found[0][0] and len(found[2]) == 12
        other = hidden(12, kp.SpectralActivityRegularizer(tau=2), name="other")
        fit(compiled(network(other), **EAGERLY), callback)
        assert callback.spectra.keys() == callback.staleness.keys() == {"other"}

    @pytest.mark.parametrize(
        "settings, fewest, expected",
        [({}, 100, 5 * UNITS), ({}, 150, 150), ({"max_samples": 90}, 100, 90)],
    )
    def test_takes_five_examples_per_unit_unless_told(
        self, settings, fewest, expected, monkeypatch
    ):
        monkeypatch.setattr(refresh, "FEWEST_EXAMPLES", fewest)
        batches = Batches(DATA[0], size=10)
        callback = begin(kp.EigenbasisRefresh(batches, **settings), regularized())
        callback.on_epoch_begin(0)
        assert len(batches.delivered) == expected / 10


class TestInFit:
    def test_exponent_and_staleness_are_logged_from_the_first_refresh_on(self):
        callback = kp.EigenbasisRefresh()
        logs = fit(regularized(), callback, data=some(40), batch_size=20, epochs=9)
        assert set(logs) == {"loss", "hidden_exponent", "hidden_staleness"}
        exponents, staleness = logs["hidden_exponent"], logs["hidden_staleness"]
        assert np.isnan(exponents[0]) and np.isfinite(exponents[1:]).all()
        assert exponents[-1] == callback.spectra["hidden"].exponent
        assert np.isnan(staleness[0])
        np.testing.assert_equal(staleness[-1], callback.staleness["hidden"])

    @pytest.mark.parametrize("verbose", [0, 2])
    def test_is_silent_when_fit_is_even_if_slow(self, verbose, capsys, monkeypatch):
        monkeypatch.setattr(time, "monotonic", itertools.count(step=3600).__next__)
        fit(regularized(), kp.EigenbasisRefresh(DATA[0]), epochs=1, verbose=verbose)
        assert ("Eigenbasis" in capsys.readouterr().out) == (verbose > 0)


def turning_model(alpha=0.0):
    """A linear layer whose covariance spectrum is n^(−2), in directions that turn."""
    x = np.random.default_rng(0).normal(size=(400, 64))
    x = np.linalg.qr(x - x.mean(axis=0))[0].astype("float32") * 20
    regularizer = kp.SpectralActivityRegularizer(alpha, tau=1, form="paper")
    layer = layers.Dense(64, name="hidden", activity_regularizer=regularizer)
    model = keras.Sequential([keras.Input((64,)), layer])

    def turn(rotation):
        layer.kernel.assign(rotation / np.arange(1, 65)[:, np.newaxis])

    turn(np.eye(64))
    return model, x, turn


# Along the new directions, all variances of the old ones are equal.
FLATTENING = scipy.linalg.hadamard(64) / 8


class TestStaleness:
    def test_is_the_share_of_the_penalty_that_the_old_basis_hides(self):
        model, x, turn = turning_model()
        callback = begin(kp.EigenbasisRefresh(x, max_samples=None), model)
        callback.on_epoch_begin(0)
        assert np.isnan(callback.staleness["hidden"])
        callback.on_epoch_begin(1)
        assert callback.staleness["hidden"] < 1e-3  # nothing has moved

        old = to_numpy(regularizer_of(model).basis)
        turn(np.kron(np.eye(8), scipy.linalg.hadamard(8) / np.sqrt(8)))
        callback.on_epoch_begin(2)
        activity = to_numpy(model(x))
        eigenvalues = reference.eigenvalues(activity)
        settings = {"alpha": 0.0, "tau": 1, "beta": 1.0, "form": "paper"}
        shown = reference.penalty(reference.variances(activity, old), **settings)
        share = 1 - shown / reference.penalty(eigenvalues, **settings)
        assert 0.1 < share < 1
        np.testing.assert_allclose(callback.staleness["hidden"], share, rtol=1e-4)

    @pytest.mark.parametrize(
        "other, match",
        [
            (FLATTENING, "'hidden' is satisfied in a stale basis: for 200 steps"),
            (np.eye(64), "'hidden' has not brought its spectrum near.*.alpha=0.0.:"),
        ],
        ids=["stale", "far"],
    )
    def test_or_a_spectrum_that_stays_away_is_warned_of_after_200_steps(
        self, other, match
    ):
        model, x, turn = turning_model()  # the exponent is 2, and stays there
        callback = begin(kp.EigenbasisRefresh(x, max_samples=None), model)
        with pytest.warns(UserWarning, match=match) as found:
            for epoch in range(6):
                turn(other if epoch % 2 else np.eye(64))
                callback.on_epoch_begin(epoch)
                callback.on_train_batch_end(39)
                callback.on_epoch_end(epoch, {})
            callback.on_train_end()
            begin(callback, model).on_train_end()  # a training without a refresh
        assert sum("'hidden'" in str(each.message) for each in found) == 1


class TestDataSets:
    def test_that_are_streams_are_read_once_before_training(self):
        stream = Again(*np.array_split(DATA[0], 5))
        callback = kp.EigenbasisRefresh(stream, every_steps=2, max_samples=100)
        changes = Changes(callback)
        fit(regularized(), callback, changes)
        assert (stream.opened, changes.steps) == (1, [0, 2, 4, 6, 8])
        first = kp.measure_spectrum(callback.model, DATA[0][:100], "hidden")
        np.testing.assert_allclose(
            callback.spectra["hidden"].eigenvalues, first.eigenvalues, rtol=0.01
        )

    def test_of_keras_are_drawn_anew(self):
        batches = Batches(*DATA, size=23)
        callback = kp.EigenbasisRefresh(batches, every_steps=2, max_samples=46)
        fit(regularized(), callback, epochs=1)
        drawn = {tuple(batches.delivered[start : start + 2]) for start in (0, 2, 4)}
        assert len(batches.delivered) == 6 and len(drawn) > 1

    def test_of_tensorflow_may_be_cached_in_a_file(self, tmp_path):
        """TensorFlow spoils the file when two iterators read the data set at once."""
        batches = tf_dataset(*DATA, size=23).cache(str(tmp_path / "cache")).repeat()
        callback = kp.EigenbasisRefresh(batches, max_samples=46, every_steps=3)
        fit(regularized(), callback, data=[batches], batch_size=None, steps_per_epoch=7)
        assert list(tmp_path.glob("cache.index"))

    @pytest.mark.parametrize("is_known", [False, True])
    def test_without_end_are_read_as_far_as_needed(self, is_known):
        batches = tf_dataset(*DATA, size=46).repeat()
        part = hidden(9, kp.SpectralActivityRegularizer(tau=2))
        model = compiled((network if is_known else Subclassed)(part), **EAGERLY)
        callback = kp.EigenbasisRefresh(batches)
        fit(model, callback, data=[batches], batch_size=None, steps_per_epoch=3)
        assert len(callback.spectra["hidden"].eigenvalues) == 9


class TestBasisFromTraining:
    def test_is_that_of_the_activations_in_training(self):
        """Of batch normalization, whose averages for inference are far off."""
        regularizer = kp.SpectralActivityRegularizer(tau=2)
        norm = layers.BatchNormalization(activity_regularizer=regularizer, name="norm")
        model = network(layers.Dense(UNITS, name="dense"), norm)
        compiled(model, keras.optimizers.SGD(0.0), **EAGERLY)
        callback = kp.EigenbasisRefresh()
        fit(model, callback, epochs=6)
        blocks = to_numpy(model.get_layer("dense")(DATA[0])).reshape(5, 46, UNITS)
        normalized = (blocks - blocks.mean(axis=1, keepdims=True)) / np.sqrt(
            blocks.var(axis=1, keepdims=True) + norm.epsilon
        )
        samples = normalized.reshape(-1, UNITS)
        expected = reference.eigenvalues(samples)
        # Each of the five batches about as often.
        found = callback.spectra["norm"].eigenvalues
        np.testing.assert_allclose(found, expected, rtol=0.1)
        variances = reference.variances(samples, to_numpy(regularizer.basis))
        np.testing.assert_allclose(variances, expected[1:], rtol=0.1)

    def test_penalizes_as_one_from_the_data_does(self):
        exponents = []
        for x in None, DATA[0]:
            model = regularized(run_eagerly=False)
            model.optimizer = keras.optimizers.Adam(1e-2)
            fit(model, kp.EigenbasisRefresh(x, every_steps=5), epochs=60)
            spectrum = kp.measure_spectrum(model, DATA[0], "hidden", fit_range=(3, 24))
            exponents.append(spectrum.exponent)
        from_window, from_data = exponents
        assert from_window < 1.5 < 1.7  # that of the plain network
        assert abs(from_window - from_data) < 0.15

    @pytest.mark.parametrize(
        "options",
        [{"run_eagerly": True}, {"jit_compile": True}, {"steps_per_execution": 5}],
        ids=str,
    )
    def test_is_the_same_however_the_step_is_executed(self, options):
        if BACKEND == "torch" and "run_eagerly" not in options:
            pytest.skip("not on torch: needs a compiler, or is not there")
        callbacks = [kp.EigenbasisRefresh(every_steps=5) for _ in range(2)]
        usual = fit(regularized(run_eagerly=False), callbacks[0], epochs=4)
        other = regularized(**{"run_eagerly": False, **options})
        found = fit(other, callbacks[1], epochs=4)
        if "steps_per_execution" in options:  # the first refresh is a few steps later
            assert np.all(np.isfinite(found["hidden_exponent"][1:]))
        else:
            np.testing.assert_allclose(found["loss"], usual["loss"], rtol=1e-4)

    def test_reads_the_data_no_second_time(self):
        batches = Batches(*DATA, size=46)
        expected = fit(regularized(), kp.EigenbasisRefresh())["loss"]
        callback = kp.EigenbasisRefresh()
        found = fit(regularized(), callback, data=(batches,), batch_size=None)["loss"]
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        # Keras itself looks at the first batch before training.
        assert len(batches.delivered) <= 2 * 5 + 2

    def test_needs_a_model_that_is_told_that_it_trains(self):
        part = hidden(UNITS, kp.SpectralActivityRegularizer(tau=2))
        with pytest.raises(ValueError, match="has an argument `training`"):
            fit(compiled(Subclassed(part)), kp.EigenbasisRefresh())

    @only("tensorflow", "jax", why="it compiles nothing")
    def test_is_in_the_steps_of_a_later_training_that_are_compiled(self):
        calls, count = [], layers.Lambda(lambda x: calls.append(None) or x)
        part = hidden(UNITS, kp.SpectralActivityRegularizer(tau=2))
        model = compiled(network(count, part))
        fit(model, kp.EigenbasisRefresh())
        after_one = len(calls)
        fit(model, kp.EigenbasisRefresh())
        assert len(calls) == after_one


class TestFirstSteps:
    """Until there are two samples per unit, training is that of the plain network."""

    def test_leave_the_penalty_out(self):
        class Losses(keras.callbacks.Callback):
            def on_train_batch_end(self, batch, logs=None):
                losses.append(logs["loss"])

        losses, model = [], regularized(rate=0.1)
        plain = compiled(network(hidden(UNITS)), keras.optimizers.SGD(0.1), **EAGERLY)
        plain.set_weights(model.get_weights())
        settings = {"batch_size": 20, "epochs": 1}
        fit(plain, Losses(), **settings)
        fit(model, kp.EigenbasisRefresh(), Losses(), **settings)
        expected, found = np.split(np.array(losses), 2)
        first = -(-2 * UNITS // 20)  # steps without penalty
        np.testing.assert_allclose(found[:first], expected[:first], rtol=1e-5)
        assert found[first] > expected[first] + 1e-3

    def test_end_with_an_announcement_once(self, capsys):
        model = regularized()
        fit(model, kp.EigenbasisRefresh(), verbose=2)
        assert capsys.readouterr().out.count("penalty begins with step 3") == 1
        fit(model, kp.EigenbasisRefresh(), verbose=2)
        assert "begins" not in capsys.readouterr().out
        fit(regularized(), kp.EigenbasisRefresh(), verbose=0)
        assert capsys.readouterr().out == ""

    @pytest.mark.parametrize(
        "count, message",
        [
            (40, "in 2 steps.* .layer 'hidden': 40 of 48.. The next"),
            (
                60,
                "in 3 steps.* .layer 'hidden': 60 of 48.. The next",
            ),  # the last one fills it
        ],
    )
    def test_that_are_the_last_are_warned_of_and_the_next_fit_goes_on(
        self, count, message
    ):
        model, settings = regularized(), {"batch_size": 20, "epochs": 1}
        with pytest.warns(UserWarning, match=f"has not begun {message}"):
            fit(model, kp.EigenbasisRefresh(), data=some(count), **settings)
        assert regularizer_of(model).basis is None
        logs = fit(model, kp.EigenbasisRefresh(), data=some(40), **settings)
        assert np.isfinite(logs["hidden_exponent"][0])

    def test_are_an_error_without_the_callback(self):
        model = regularized()
        fit(model, kp.EigenbasisRefresh(), epochs=0)  # of which nothing is left
        with pytest.raises(ValueError, match=r"EigenbasisRefresh\(\)"):
            fit(model)

    def test_of_a_model_compiled_anew_are_those_of_a_new_one(self):
        def fold(model, factor):
            compiled(model, keras.optimizers.Adam(0.01), **EAGERLY)
            callback = kp.EigenbasisRefresh()
            fit(model, callback, data=(factor * DATA[0], DATA[1]), batch_size=20)
            return model.get_weights()

        model, new = regularized(), regularized()
        start = model.get_weights()
        fold(model, 1)
        model.set_weights(start)
        for again, first in zip(fold(model, 3), fold(new, 3), strict=True):
            np.testing.assert_array_equal(again, first)

    @only("tensorflow", "torch", why="on JAX, a training step takes and returns state")
    def test_are_behind_a_training_step_of_ones_own(self):
        class OfItsOwn(keras.Sequential):
            def train_step(self, data):
                # And perhaps an optimizer of its own.
                return {"mean": ops.mean(self(data[0], training=True))}

        model = compiled(OfItsOwn(regularized().layers), run_eagerly=True)
        fit(model, kp.EigenbasisRefresh())
        basis = to_numpy(regularizer_of(model).basis)
        fit(model, kp.EigenbasisRefresh(), epochs=0)
        np.testing.assert_array_equal(to_numpy(regularizer_of(model).basis), basis)


def test_logs_the_exponent_of_the_validation_data_in_inference_mode():
    model, test = regularized(), gaussian(300, seed=7)
    refresh = kp.EigenbasisRefresh()
    logs = fit(model, refresh, validation_data=test, validation_batch_size=64)
    eigenvalues = kp.measure_spectrum(model, test[0], "hidden").eigenvalues
    expected = kp.Spectrum(eigenvalues, fit_range=(3, UNITS)).exponent
    assert logs["val_hidden_exponent"][-1] == pytest.approx(expected, 1e-3)
    logs = fit(model, refresh, validation_data=some(40))  # fewer than two a unit
    assert np.isnan(logs["val_hidden_exponent"]).all()


class Inheriting(Subclassed):
    """One whose layers are told by Keras that they train."""

    def call(self, x, training=None):
        return super().call(x)


def noisy(kind, regularizer):
    """Networks whose regularized layer is behind noise."""
    parts = [layers.Dense(20, "relu"), layers.Dropout(0.5), hidden(UNITS, regularizer)]
    logits = layers.Dense(4)
    if kind == "subclassed":
        return Inheriting(*parts, logits)
    if kind == "nested":
        inner = keras.Sequential([keras.Input((12,)), *parts[:2]], name="inner")
        return network(inner, parts[2])
    if kind == "normalized":
        return network(*parts[:2], layers.BatchNormalization(), parts[2])
    if kind == "noise first":
        return network(layers.GaussianNoise(1.0), parts[2])
    if kind == "recurrent":
        options = {"dropout": 0.5, "activity_regularizer": regularizer}
        recurrent = layers.LSTM(UNITS, name="hidden", **options)
        return network(layers.Reshape((4, 3)), recurrent)
    return network(*parts)


NOISY = ["sequential", "subclassed", "nested", "normalized", "noise first", "recurrent"]


class TestBehindNoise:
    @pytest.mark.parametrize("kind", NOISY)
    def test_the_basis_and_the_penalty_are_those_of_the_network_in_use(self, kind):
        keras.utils.set_random_seed(0)
        model = noisy(kind, kp.SpectralActivityRegularizer(tau=2, beta=2.0))
        model = compiled(model, keras.optimizers.SGD(0.0))
        fit(model, kp.EigenbasisRefresh(), epochs=1)
        part = next(
            layer for layer in model._flatten_layers() if layer.name == "hidden"
        )
        found = kp.refresh_eigenbasis(model)["hidden"]
        in_use = kp.measure_spectrum(model, DATA[0], part)
        # Moving averages move while samples are kept.
        tolerance = 0.05 if kind == "normalized" else 1e-3
        np.testing.assert_allclose(found.eigenvalues, in_use.eigenvalues, tolerance)
        model(DATA[0][:46])
        expected = [float(loss) for loss in model.losses]
        model(DATA[0][:46], training=True)
        found = [float(loss) for loss in model.losses]
        assert max(found) > 0
        np.testing.assert_allclose(found, expected, rtol=tolerance)

    def test_nothing_else_runs_twice(self):
        def train(beta):
            keras.utils.set_random_seed(0)
            regularizer = kp.SpectralActivityRegularizer(tau=2, beta=beta)
            model = network(
                layers.Dense(20, activity_regularizer="l2"),
                *(layers.Dropout(0.5), layers.BatchNormalization()),
                hidden(UNITS, regularizer),
            )
            model = compiled(model, keras.optimizers.SGD(0.0))
            loss = fit(model, kp.EigenbasisRefresh())["loss"]
            return loss, model.get_weights()

        (found, weights), (expected, plain) = train(1e-9), train(0.0)
        np.testing.assert_allclose(found, expected, rtol=1e-6)
        for one, other in zip(weights, plain, strict=True):
            np.testing.assert_array_equal(one, other)

    def test_a_model_that_is_not_told_that_it_trains_is_warned_of(self):
        part = hidden(UNITS, kp.SpectralActivityRegularizer(tau=2))
        model = compiled(Subclassed(layers.Dropout(0.5, name="drop"), part))
        model(DATA[0])
        with pytest.warns(UserWarning, match="noise of layer 'drop' as well"):
            kp.refresh_eigenbasis(model, DATA[0])


class TestWhenItActs:
    def test_each_layer_begins_with_its_own_samples(self, capsys):
        parts = [
            hidden(units, kp.SpectralActivityRegularizer(tau=2), name)
            for units, name in ((200, "wide"), (UNITS, "narrow"))
        ]
        model = compiled(network(*parts), **EAGERLY)
        fit(model, kp.EigenbasisRefresh(), epochs=3, verbose=2)
        printed = capsys.readouterr().out
        assert "begins with step 3: 'narrow'." in printed
        assert "begins with step 10: 'wide'." in printed

    def test_a_fit_without_the_callback_warns_once(self, recwarn):
        model = regularized()
        fit(model, kp.EigenbasisRefresh())
        assert not [each for each in recwarn if "renewed" in str(each.message)]
        for _ in range(2):
            fit(model)
        fit(model, kp.EigenbasisRefresh())
        [_] = [each for each in recwarn if "not renewed any more" in str(each.message)]

    def test_a_basis_that_is_not_renewed_for_long_is_warned_of(self):
        model = regularized()
        kp.refresh_eigenbasis(model, DATA[0])
        fit(model, epochs=39)
        with pytest.warns(UserWarning, match="call `keras_powerlaw.refresh_eigenbasis"):
            fit(model, epochs=1)

    @only("tensorflow", "torch", why="there, recording gradients can't be seen")
    def test_a_loop_that_forgets_to_say_that_it_trains_is_refused(self):
        model = regularized()
        assert float(model.evaluate(*DATA, verbose=0)) > 0

        def loss():
            model(DATA[0])
            return float(sum(model.losses))

        with pytest.raises(ValueError, match="with `training=True`"):
            if BACKEND == "tensorflow":
                import tensorflow as tf

                with tf.GradientTape():
                    loss()
            loss()

    def test_nan_is_reported_once_and_logged(self):
        x = DATA[0].copy()
        x[150] = np.nan
        model = regularized()
        fit(model, kp.EigenbasisRefresh())
        with pytest.warns(UserWarning) as seen:
            logs = fit(model, kp.EigenbasisRefresh(), data=(x, DATA[1]), epochs=4)
        [text] = (str(each.message) for each in seen if "basis" in str(each.message))
        assert "NaN or infinity" in text and "look for it in the data" in text
        assert np.isnan(logs["hidden_exponent"][-1])

    def test_a_frozen_layer_is_said_to_be_frozen(self):
        part = hidden(UNITS, kp.SpectralActivityRegularizer(tau=2))
        part.trainable = False
        model = compiled(network(part), **EAGERLY)
        with pytest.warns(UserWarning, match="'hidden' can do nothing: neither it nor"):
            fit(model, kp.EigenbasisRefresh())


@pytest.mark.parametrize("kind", [np.nan, np.inf])
def test_samples_that_overflowed_in_half_precision_are_left_out(kind):
    samples = gaussian(100, (20,))[0]
    expected, _ = covariance_of(ops.convert_to_tensor(samples)).eigenvectors()
    spoiled = np.vstack([samples[:50], np.full((3, 20), kind), samples[50:]])
    spoiled = ops.convert_to_tensor(spoiled.astype("float32"))
    found, _ = covariance_of(spoiled, "float16").eigenvectors()
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    with pytest.raises(ValueError, match="NaN or infinity"):
        covariance_of(spoiled)


class TestALayerThatDies:
    @pytest.mark.parametrize("x", [None, DATA[0]], ids=["window", "data"])
    def test_in_training_keeps_its_basis_and_the_penalty_yields(self, x):
        class Kill(keras.callbacks.Callback):
            def on_epoch_begin(self, epoch, logs=None):
                if epoch == 1:
                    within_fit(self.model)
                    layer = self.model.get_layer("hidden")
                    layer.kernel.assign(np.zeros((12, UNITS)))

        model = regularized(rate=0.0)
        callback = kp.EigenbasisRefresh(x, every_steps=2)
        with pytest.warns(UserWarning, match="'hidden' could not be renewed") as seen:
            logs = fit(model, callback, Kill(), batch_size=230, epochs=12)
        [warned] = (str(each.message) for each in seen if "basis" in str(each.message))
        assert "vary in only 0 of 24" in warned
        assert np.isnan(logs["hidden_exponent"][-1])
        assert np.all(np.isfinite(logs["loss"]))
        assert regularizer_of(model).basis is not None
        model.get_layer("hidden").kernel.assign(gaussian(12, (UNITS,))[0])
        before = regularizer_of(model).eigenbasis.yielded_to
        kp.refresh_eigenbasis(model, DATA[0])
        assert regularizer_of(model).eigenbasis.yielded_to == 2 * before

    def test_at_first_is_an_error(self):
        model = regularized(rate=0.0)
        model.get_layer("hidden").kernel.assign(np.zeros((12, UNITS)))
        with pytest.raises(ValueError, match="'hidden' vary in only 0 of 24"):
            fit(model, kp.EigenbasisRefresh())
