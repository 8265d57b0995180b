"""Renewing the eigenbasis, within `fit()` and outside."""

import csv
import itertools
import time

import keras
import numpy as np
import pytest
import reference
import scipy.linalg
from backend import tensorflow, to_numpy, within_fit
from datasets import Batches, gaussian, tf_dataset
from keras import layers, ops
from models import Subclassed, compiled, feature_map, hidden, network

import keras_powerlaw as kp
from keras_powerlaw import refresh as sources
from keras_powerlaw.spectrum import Covariance

UNITS = {"map": 72, "hidden": 24}


@pytest.fixture
def data():
    return gaussian(230, (8, 8, 1))


@pytest.fixture
def model():
    """Two regularized layers, one of them convolutional."""
    first, second = (kp.SpectralActivityRegularizer(tau=1) for _ in UNITS)
    model = network(
        feature_map(2, first), layers.Flatten(), hidden(24, second), shape=(8, 8, 1)
    )
    return compiled(model, keras.optimizers.Adam(1e-3))


def activities(model, x):
    """The regularized activations of a full data set, apart from the package."""
    outputs = [model.get_layer(name).output for name in UNITS]
    flat = keras.Model(model.inputs, outputs)(x, training=False)
    return {
        name: ops.convert_to_numpy(activity).reshape(len(x), -1).astype("float64")
        for name, activity in zip(UNITS, flat, strict=True)
    }


def as_tf_data_without_labels(x, y):
    tf = tensorflow()
    return tf.data.Dataset.from_tensor_slices(x).batch(229)  # leaves a batch of one


FORMS = {
    "array": lambda x, y: x,
    "tensor": lambda x, y: ops.convert_to_tensor(x),
    "list of one array": lambda x, y: [x],
    "tf.data.Dataset": lambda x, y: tf_dataset(x, y, size=50),
    "tf.data.Dataset without labels": as_tf_data_without_labels,
    "PyDataset": lambda x, y: Batches(x, y, size=50),
    "batches that can be iterated again": lambda x, y: Batches(x, y, size=230),
}


def turning_model(alpha):
    """A linear layer whose covariance spectrum is n^(−2), in directions that turn."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 64))
    x = np.linalg.qr(x - x.mean(axis=0))[0].astype("float32") * 20
    regularizer = kp.SpectralActivityRegularizer(alpha, tau=1, form="paper")
    layer = layers.Dense(64, name="hidden", activity_regularizer=regularizer)
    model = keras.Sequential([keras.Input((64,)), layer])

    def turn(rotation):
        layer.kernel.assign(rotation / np.arange(1, 65)[:, np.newaxis])

    turn(np.eye(64))
    return model, x, turn


def stale_basis_warnings(recwarn):
    return [w for w in recwarn.list if "stale basis" in str(w.message)]


# Along the new directions, all variances of the old ones are equal.
FLATTENING = scipy.linalg.hadamard(64) / 8


def hours():
    """A clock by which an hour goes by between any two looks at it."""
    return itertools.count(step=3600).__next__


def count_examples(patch):
    """A list to which every batch of a layer's activations adds its length."""
    seen = []
    update = Covariance.update

    def counting(self, activity):
        seen.append(len(activity))
        return update(self, activity)

    patch.setattr(Covariance, "update", counting)
    return seen


def begin(callback, model):
    """Outside of `fit()`, where on JAX a test cannot change the weights."""
    callback.set_model(model)
    callback.on_train_begin()
    return callback


def pass_epoch(callback, epoch, steps):
    callback.on_epoch_begin(epoch)
    callback.on_train_batch_end(steps - 1)
    callback.on_epoch_end(epoch, {})


class TestRefresh:
    @pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
    def test_basis_diagonalizes_the_covariance_of_the_full_set(self, model, data, form):
        found = kp.refresh_eigenbasis(model, form(*data), batch_size=64)
        for name, activity in activities(model, data[0]).items():
            basis = ops.convert_to_numpy(
                model.get_layer(name).activity_regularizer.basis
            ).astype("float64")
            assert basis.shape == (UNITS[name], UNITS[name])
            sigma = np.cov(activity, rowvar=False)
            rotated = basis.T @ sigma @ basis
            eigenvalues = np.diag(rotated)
            off_diagonal = rotated - np.diag(eigenvalues)
            assert np.abs(off_diagonal).sum() < 1e-4 * np.trace(sigma)
            assert np.all(np.diff(eigenvalues) <= 1e-6 * eigenvalues[0])
            np.testing.assert_allclose(
                found[name].eigenvalues,
                np.linalg.eigvalsh(sigma)[::-1],
                atol=1e-6 * eigenvalues[0],
            )

    def test_keeps_the_eigenvectors_from_tau_on(self, data):
        regularizer = kp.SpectralActivityRegularizer(tau=5)
        model = network(layers.Flatten(), hidden(24, regularizer), shape=(8, 8, 1))
        kp.refresh_eigenbasis(model, data[0])
        assert regularizer.basis.shape == (24, 20)

    def test_leaves_the_model_as_it_was(self, model, data):
        weights = model.get_weights()
        regularizer = model.get_layer("hidden").activity_regularizer
        kp.refresh_eigenbasis(model, data[0])
        assert model.get_layer("hidden").activity_regularizer is regularizer
        for before, after in zip(weights, model.get_weights(), strict=True):
            np.testing.assert_array_equal(before, after)

    def test_uses_inference_mode(self, data):
        norm = layers.BatchNormalization(
            activity_regularizer=kp.SpectralActivityRegularizer(tau=1), name="norm"
        )
        model = keras.Sequential([keras.Input((8, 8, 1)), layers.Flatten(), norm])
        kp.refresh_eigenbasis(model, data[0])
        np.testing.assert_array_equal(norm.moving_mean, np.zeros(64))

    def test_on_a_subset(self, model, data):
        some = kp.refresh_eigenbasis(model, data[0], max_samples=100, seed=1)
        same = kp.refresh_eigenbasis(model, data[0], max_samples=100, seed=1)
        other = kp.refresh_eigenbasis(model, data[0], max_samples=100, seed=2)
        stream = tf_dataset(*data, size=50)
        first = kp.refresh_eigenbasis(model, stream, max_samples=120)
        for name in UNITS:
            np.testing.assert_array_equal(
                some[name].eigenvalues, same[name].eigenvalues
            )
            assert not np.array_equal(some[name].eigenvalues, other[name].eigenvalues)
            sigma = np.cov(activities(model, data[0][:120])[name], rowvar=False)
            np.testing.assert_allclose(
                first[name].eigenvalues, np.linalg.eigvalsh(sigma)[::-1], atol=1e-6
            )

    def test_shared_layer_pools_all_its_calls(self):
        one, two = keras.Input((5,)), keras.Input((5,))
        shared = layers.Dense(
            8, activity_regularizer=kp.SpectralActivityRegularizer(tau=1), name="shared"
        )
        model = keras.Model([one, two], layers.Add()([shared(one), shared(two)]))
        rng = np.random.default_rng(1)
        x = [rng.normal(size=(90, 5)).astype("float32") for _ in range(2)]
        found = kp.refresh_eigenbasis(model, x)["shared"].eigenvalues
        pooled = ops.convert_to_numpy(shared(np.concatenate(x)))
        expected = np.linalg.eigvalsh(np.cov(pooled, rowvar=False))[::-1]
        np.testing.assert_allclose(found, expected, atol=1e-6)

    def test_subclassed_model(self, data):
        regularizer = kp.SpectralActivityRegularizer(tau=2)
        model = Subclassed(layers.Flatten(), hidden(9, regularizer))
        found = kp.refresh_eigenbasis(model, data[0])
        assert len(found["hidden"].eigenvalues) == 9

    def test_shows_progress_only_when_asked_or_slow(
        self, model, data, capsys, monkeypatch
    ):
        kp.refresh_eigenbasis(model, data[0], verbose="auto")
        assert capsys.readouterr().out == ""
        with monkeypatch.context() as patch:
            patch.setattr(time, "monotonic", hours())
            kp.refresh_eigenbasis(model, data[0], verbose=0)
            assert capsys.readouterr().out == ""
            kp.refresh_eigenbasis(model, data[0], verbose="auto")
            assert "Eigenbasis" in capsys.readouterr().out
        kp.refresh_eigenbasis(model, data[0], batch_size=100, verbose=1)
        printed = capsys.readouterr().out
        assert "Eigenbasis" in printed and "3/3" in printed


class TestCallback:
    def fit(self, model, data, refresh, epochs=3, **settings):
        """Returns the epochs and steps at which the basis changed."""
        changes = []

        class Watch(keras.callbacks.Callback):
            """Listed after the refresh, so it sees a batch's basis before its step."""

            before = None

            def on_epoch_begin(self, epoch, logs=None):
                self.epoch = epoch

            def on_train_batch_begin(self, batch, logs=None):
                within_fit(model)
                basis = to_numpy(model.get_layer("hidden").activity_regularizer.basis)
                if self.before is None or not np.array_equal(basis, self.before):
                    changes.append((self.epoch, batch))
                self.before = basis

        model.fit(
            *data,
            batch_size=46,  # five steps an epoch
            epochs=epochs,
            verbose=0,
            callbacks=[refresh, Watch()],
            **settings,
        )
        return changes

    def test_every_epoch_and_every_20_steps_by_default(self, model, data):
        changes = self.fit(model, data, kp.EigenbasisRefresh(data[0]))
        assert changes == [(0, 0), (1, 0), (2, 0)]
        x, y = (np.concatenate([each] * 6) for each in data)  # thirty steps an epoch
        changes = self.fit(model, (x, y), kp.EigenbasisRefresh(x), epochs=2)
        assert changes == [(0, 0), (0, 20), (1, 0), (1, 20)]

    def test_five_examples_per_unit_of_the_widest_layer_by_default(
        self, model, data, monkeypatch
    ):
        x, y = (np.concatenate([each] * 6) for each in data)
        for settings, fewest, expected in (
            ({}, 100, 5 * max(UNITS.values())),
            ({}, 700, 700),
            ({"max_samples": None}, 100, len(x)),
            ({"max_samples": 90}, 100, 90),
        ):
            refresh = kp.EigenbasisRefresh(x, every_epochs=1, **settings)
            with monkeypatch.context() as patch:
                patch.setattr(sources, "FEWEST_EXAMPLES", fewest)
                seen = count_examples(patch)
                model.fit(x, y, epochs=1, verbose=0, callbacks=[refresh])
            assert sum(seen) == expected * len(UNITS)

    def test_refuses_two_intervals(self, data):
        with pytest.raises(ValueError, match="not both. Received: every_epochs=1, ev"):
            kp.EigenbasisRefresh(data[0], every_epochs=1, every_steps=3)

    def test_every_so_many_epochs(self, model, data):
        refresh = kp.EigenbasisRefresh(data[0], every_epochs=2)
        assert self.fit(model, data, refresh, epochs=4) == [(0, 0), (2, 0)]

    def test_at_the_start_of_a_later_fit(self, model, data):
        refresh = kp.EigenbasisRefresh(data[0], every_epochs=2)
        changes = self.fit(model, data, refresh, epochs=4, initial_epoch=1)
        assert changes == [(1, 0), (2, 0)]

    def test_every_so_many_steps(self, model, data):
        refresh = kp.EigenbasisRefresh(data[0], every_steps=3)
        changes = self.fit(model, data, refresh)
        assert changes == [(0, 0), (0, 3), (1, 1), (1, 4), (2, 2)]

    def test_next_step_uses_the_new_basis(self, model, data):
        x, y = data
        reported = []

        class Watch(keras.callbacks.Callback):
            def on_train_batch_begin(self, batch, logs=None):
                within_fit(model)
                logits = model(x, training=True)
                penalty = sum(float(loss) for loss in model.losses)
                reported.append(float(model.loss(y, logits)) + penalty)

        refresh = kp.EigenbasisRefresh(x)
        history = model.fit(
            x, y, batch_size=230, epochs=3, verbose=0, callbacks=[refresh, Watch()]
        )
        np.testing.assert_allclose(history.history["loss"], reported, rtol=1e-5)

    def test_exponent_is_logged(self, model, data, tmp_path, capsys):
        tensorflow()  # which writes what TensorBoard shows
        logger = keras.callbacks.CSVLogger(tmp_path / "log.csv")
        board = keras.callbacks.TensorBoard(tmp_path / "board")
        refresh = kp.EigenbasisRefresh(data[0])
        history = model.fit(
            *data, epochs=2, verbose=2, callbacks=[refresh, logger, board]
        ).history
        printed = capsys.readouterr().out
        for name in UNITS:
            assert len(history[f"{name}_exponent"]) == 2
            assert f"{name}_exponent" in printed
            with open(tmp_path / "log.csv") as file:
                logged = [
                    float(row[f"{name}_exponent"]) for row in csv.DictReader(file)
                ]
            np.testing.assert_allclose(logged, history[f"{name}_exponent"])
            assert history[f"{name}_exponent"][1] == refresh.spectra[name].exponent
        events = b"".join(p.read_bytes() for p in (tmp_path / "board").rglob("*tfev*"))
        assert all(f"epoch_{name}_exponent".encode() in events for name in UNITS)

    def test_staleness_is_the_share_of_the_penalty_that_the_old_basis_hides(self):
        model, x, turn = turning_model(alpha=0.0)
        callback = begin(kp.EigenbasisRefresh(x, max_samples=None), model)
        callback.on_epoch_begin(0)
        assert np.isnan(callback.staleness["hidden"])
        callback.on_epoch_begin(1)
        assert callback.staleness["hidden"] < 1e-3  # nothing has moved

        old = to_numpy(model.get_layer("hidden").activity_regularizer.basis)
        turn(np.kron(np.eye(8), scipy.linalg.hadamard(8) / np.sqrt(8)))
        callback.on_epoch_begin(2)
        activity = to_numpy(model(x))
        eigenvalues = np.linalg.eigvalsh(np.cov(activity, rowvar=False))[::-1]
        settings = {"alpha": 0.0, "tau": 1, "beta": 1.0, "form": "paper"}
        shown = reference.penalty(reference.variances(activity, old), **settings)
        true = reference.penalty(eigenvalues, **settings)
        assert 0.1 < 1 - shown / true < 1
        np.testing.assert_allclose(
            callback.staleness["hidden"], 1 - shown / true, rtol=1e-4
        )
        logs = {}
        callback.on_epoch_end(2, logs)
        assert logs["hidden_staleness"] == callback.staleness["hidden"]

    @pytest.mark.parametrize("steps", [40, 20])
    def test_warns_after_200_steps_of_a_penalty_satisfied_in_a_stale_basis(
        self, steps, recwarn
    ):
        model, x, turn = turning_model(alpha=0.0)
        callback = begin(kp.EigenbasisRefresh(x, max_samples=None), model)
        epochs = 200 // steps
        for epoch in range(epochs):
            turn(FLATTENING if epoch % 2 else np.eye(64))
            pass_epoch(callback, epoch, steps)
        assert not stale_basis_warnings(recwarn)
        turn(FLATTENING if epochs % 2 else np.eye(64))
        match = "layer 'hidden' is satisfied in a stale basis: for 200 steps"
        with pytest.warns(UserWarning, match=match):
            callback.on_epoch_begin(epochs)

    @pytest.mark.parametrize("turns, alpha", [(False, 0.0), (True, 2.0)])
    def test_does_not_warn_while_the_basis_is_fresh_or_alpha_near(
        self, turns, alpha, recwarn
    ):
        model, x, turn = turning_model(alpha)
        callback = begin(kp.EigenbasisRefresh(x, max_samples=None), model)
        for epoch in range(8):
            turn(FLATTENING if turns and epoch % 2 else np.eye(64))
            pass_epoch(callback, epoch, steps=100)
        assert not stale_basis_warnings(recwarn)

    @pytest.mark.parametrize("beta", [1.0, 0.0])
    def test_warns_at_the_end_of_a_spectrum_that_has_stayed_away(self, beta, recwarn):
        model, x, _ = turning_model(alpha=0.0)  # the exponent is 2, and stays there
        model.get_layer("hidden").activity_regularizer.beta = beta
        callback = begin(kp.EigenbasisRefresh(x), model)
        for epoch in range(6):
            pass_epoch(callback, epoch, steps=40)
        callback.on_train_end()
        begin(callback, model).on_train_end()  # a training without a refresh
        expected = (
            "The penalty of layer 'hidden' has not brought its spectrum near alpha=0: "
            "in 200 steps, its distance, the median of |log λ/γ|, went from 5.61 to "
            "5.61, and the exponent from 2.00 to 2.00. "
        )
        texts = [str(w.message) for w in recwarn.list if w.category is UserWarning]
        assert [text.startswith(expected) for text in texts] == [True] * bool(beta)

    @pytest.mark.parametrize("verbose", [0, 2])
    def test_is_silent_when_fit_is(self, model, data, verbose, capsys, monkeypatch):
        """Even when it is slow."""
        refresh = kp.EigenbasisRefresh(data[0])
        with monkeypatch.context() as patch:
            patch.setattr(time, "monotonic", hours())
            model.fit(*data, verbose=verbose, callbacks=[refresh])
        assert ("Eigenbasis" in capsys.readouterr().out) == (verbose > 0)

    @pytest.mark.parametrize("name", ["every_epochs", "every_steps"])
    @pytest.mark.parametrize("bad", [0, -1, 1.5, "epoch"])
    def test_refuses_other_intervals(self, name, bad):
        with pytest.raises(ValueError, match=f"argument `{name}`. Expected .*an int"):
            kp.EigenbasisRefresh(np.zeros((3, 2)), **{name: bad})


def endless(x, y):
    return tf_dataset(x, y, size=46).repeat()


class TestDataSets:
    def test_are_read_once_an_epoch(self, model, data):
        """However often the basis is renewed."""
        batches = Batches(*data, size=23)
        refresh = kp.EigenbasisRefresh(batches, every_steps=2, max_samples=46)
        model.fit(
            *data,
            batch_size=23,
            epochs=3,
            verbose=0,
            callbacks=[refresh],
            shuffle=False,
        )
        assert refresh._refreshes == 15
        assert len(batches.delivered) == 3 * 2

    @pytest.mark.parametrize("every", [{}, {"every_steps": 3}])
    @pytest.mark.parametrize("repeated", [False, True])
    def test_with_a_file_cache(self, model, data, every, repeated, tmp_path):
        """TensorFlow spoils the file when two iterators read the data set at once."""
        batches = tf_dataset(*data, size=23).cache(str(tmp_path / "cache"))
        batches = batches.repeat() if repeated else batches
        refresh = kp.EigenbasisRefresh(batches, max_samples=46, **every)
        model.fit(
            batches,
            epochs=4,
            steps_per_epoch=7 if repeated else None,
            verbose=0,
            callbacks=[refresh],
        )
        assert list(tmp_path.glob("cache.index"))

    def test_without_end(self, model, data):
        batches = endless(*data)
        refresh = kp.EigenbasisRefresh(batches)
        model.fit(batches, epochs=2, steps_per_epoch=3, verbose=0, callbacks=[refresh])
        assert set(refresh.spectra) == set(UNITS)

    def test_without_end_where_the_width_is_not_known(self, data):
        regularizer = kp.SpectralActivityRegularizer(tau=2)
        model = compiled(Subclassed(layers.Flatten(), hidden(9, regularizer)))
        batches = endless(*data)
        refresh = kp.EigenbasisRefresh(batches)
        model.fit(batches, steps_per_epoch=3, verbose=0, callbacks=[refresh])
        assert len(refresh.spectra["hidden"].eigenvalues) == 9


class TestBadInput:
    BAD = {
        "empty": (lambda x: x[:0], "two examples.* Received: x=0 example"),
        "one example": (lambda x: x[:1], "two examples.* Received: x=1 example"),
        "another shape": (
            lambda x: x[:, :7],
            r"shape \(None, 8, 8, 1\).*\(230, 7, 8, 1",
        ),
        "too many inputs": (lambda x: [x, x], "Expected batches of shape"),
        "other lengths": (lambda x: [x, x[:9]], "the same number of examples"),
        "a generator": (lambda x: (row for row in [x]), "not a generator"),
        "a number": (lambda x: 3, "Expected an array"),
        "a list of numbers": (lambda x: [1.0, 2.0], "Expected an array"),
    }

    @pytest.mark.parametrize("bad, message", BAD.values(), ids=BAD.keys())
    def test_x(self, model, data, bad, message):
        with pytest.raises(ValueError, match=message) as error:
            refresh = kp.EigenbasisRefresh(bad(data[0]))
            model.fit(*data, verbose=0, callbacks=[refresh])
        assert "argument `x`" in str(error.value)

    def test_all_of_an_endless_data_set(self, model, data):
        refresh = kp.EigenbasisRefresh(endless(*data), max_samples=None)
        with pytest.raises(
            ValueError, match="argument `x`. Expected a finite data set"
        ):
            model.fit(*data, verbose=0, callbacks=[refresh])

    def test_x_with_nan(self, model, data):
        x = data[0].copy()
        x[7, 0, 0, 0] = np.nan
        with pytest.raises(ValueError, match="argument `x`.* NaN or infinity in 1 of"):
            kp.refresh_eigenbasis(model, x)

    def test_nan_activations(self, model, data):
        model.get_layer("hidden").kernel.assign(np.full((72, 24), np.nan))
        with pytest.raises(
            ValueError, match="activations of layer 'hidden'.* NaN or inf"
        ):
            kp.refresh_eigenbasis(model, data[0])

    def test_a_failed_refresh_keeps_the_old_basis(self, model, data):
        kp.refresh_eigenbasis(model, data[0])
        regularizer = model.get_layer("map").activity_regularizer
        basis = to_numpy(regularizer.basis)
        model.get_layer("hidden").kernel.assign(np.full((72, 24), np.nan))
        with pytest.raises(ValueError, match="activations of layer 'hidden'"):
            kp.refresh_eigenbasis(model, data[0])
        np.testing.assert_array_equal(to_numpy(regularizer.basis), basis)
        assert model.get_layer("map").activity_regularizer is regularizer

    def test_constant_units(self, data):
        regularizer = kp.SpectralActivityRegularizer(tau=2)
        model = network(
            layers.Flatten(), hidden(20, regularizer, "dead"), shape=(8, 8, 1)
        )
        dead = model.get_layer("dead")
        dead.kernel.assign(np.zeros((64, 20)))
        with pytest.raises(ValueError, match="'dead' vary in only 0 of 20"):
            kp.refresh_eigenbasis(model, data[0])

    def test_fewer_examples_than_tau(self, model, data):
        model = kp.add_spectral_regularizer(model, "hidden", tau=10)
        with pytest.raises(ValueError, match="only 5 of 24 directions"):
            kp.refresh_eigenbasis(model, data[0][:6])

    def test_nothing_to_refresh(self):
        model = keras.Sequential([keras.Input((3,)), layers.Dense(2)], name="plain")
        with pytest.raises(ValueError, match="'plain', which has none"):
            kp.refresh_eigenbasis(model, np.zeros((9, 3)))

    @pytest.mark.parametrize("name", ["max_samples", "batch_size"])
    @pytest.mark.parametrize("bad", [0, -1, 1.5, "all"])
    def test_sizes(self, model, data, name, bad):
        with pytest.raises(ValueError, match=f"argument `{name}`. Expected"):
            kp.refresh_eigenbasis(model, data[0], **{name: bad})
