"""Regularized layers of the same name keep apart, by their paths in the model."""

import keras
import numpy as np
import pytest
from datasets import gaussian
from keras import layers
from models import compiled, hidden

import keras_powerlaw as kp
from keras_powerlaw.layers import regularized_layers, unique_names
from keras_powerlaw.watch import PenaltyWatch


def tower(name, alpha=1.0):
    regularizer = kp.SpectralActivityRegularizer(alpha=alpha, tau=3)
    return keras.Sequential([keras.Input((12,)), hidden(20, regularizer)], name=name)


@pytest.fixture
def model():
    inputs = keras.Input((12,))
    outputs = [tower("a", 1.0)(inputs), tower("b", 2.0)(inputs)]
    logits = layers.Dense(4, name="logits")(layers.Concatenate()(outputs))
    return compiled(keras.Model(inputs, logits))


@pytest.fixture
def data():
    return gaussian(150)


class Towers(keras.Model):
    """A subclassed model, which knows its layers before they are built."""

    def __init__(self, *towers):
        super().__init__()
        self.towers = list(towers)

    def call(self, x):
        return sum(tower(x) for tower in self.towers)


def hidden_of(model, *path):
    for name in path:
        model = model.get_layer(name)
    return model


class TestTwoTowers:
    def test_each_has_its_spectrum(self, model, data):
        spectra = kp.refresh_eigenbasis(model, data[0])
        assert set(spectra) == {"a/hidden", "b/hidden"}
        for name, spectrum in spectra.items():
            layer = hidden_of(model, *name.split("/"))
            np.testing.assert_allclose(
                spectrum.eigenvalues,
                kp.measure_spectrum(model, data[0], layer).eigenvalues,
                rtol=1e-10,
            )

    def test_each_has_its_logs(self, model, data):
        refresh = kp.EigenbasisRefresh(data[0])
        logs = model.fit(*data, verbose=0, callbacks=[refresh]).history
        for name in ("a/hidden", "b/hidden"):
            assert logs[f"{name}_exponent"] == [refresh.spectra[name].exponent]
            assert f"{name}_staleness" in logs
        assert len({*logs["a/hidden_exponent"], *logs["b/hidden_exponent"]}) == 2

    def test_each_is_in_the_backup(self, model, data, tmp_path):
        def callback():
            refresh = kp.EigenbasisRefresh(data[0], backup_dir=tmp_path, verbose=0)
            refresh.set_model(model)
            refresh.on_train_begin()
            return refresh

        before, after = callback(), callback()
        before.on_epoch_begin(0)
        before.on_epoch_end(0, {})
        after.on_epoch_begin(1)
        assert before.spectra.keys() == after.spectra.keys() == {"a/hidden", "b/hidden"}
        for name, spectrum in before.spectra.items():
            assert after.spectra[name].exponent == spectrum.exponent

    def test_each_is_warned_of_against_its_own_alpha(self, model, data, monkeypatch):
        watches = []

        def observe(watch, *_):
            watches.append(watch)
            return 200

        monkeypatch.setattr(PenaltyWatch, "observe", observe)
        with pytest.warns(UserWarning, match="'./hidden' is satisfied in a") as warned:
            model.fit(*data, verbose=0, callbacks=[kp.EigenbasisRefresh(data[0])])
        texts = " ".join(str(warning.message) for warning in warned)
        assert "layer 'a/hidden'" in texts and "layer 'b/hidden'" in texts
        assert len({id(watch) for watch in watches}) == 2
        assert "alpha=1." in texts and "alpha=2." in texts

    def test_an_error_says_which_it_is(self, model, data):
        hidden_of(model, "b", "hidden").kernel.assign(np.full((12, 20), np.nan))
        with pytest.raises(ValueError, match="activations of layer 'b/hidden'"):
            kp.refresh_eigenbasis(model, data[0])
        hidden_of(model, "b", "hidden").kernel.assign(np.zeros((12, 20)))
        with pytest.raises(ValueError, match="'b/hidden' vary in only 0 of 20"):
            kp.refresh_eigenbasis(model, data[0])

    def test_an_error_about_the_training_batches_says_which_it_is(self, model, data):
        kp.refresh_eigenbasis(model)  # from here on, steps keep their activations
        hidden_of(model, "b", "hidden").kernel.assign(np.full((12, 20), np.nan))
        model(data[0], training=True)
        with pytest.raises(ValueError, match="Layer 'b/hidden': There is NaN"):
            kp.refresh_eigenbasis(model)

    def test_names_are_the_same_after_loading(self, model, data, tmp_path):
        model.save(tmp_path / "model.keras")
        loaded = keras.saving.load_model(tmp_path / "model.keras")
        names = kp.refresh_eigenbasis(model, data[0]).keys()
        assert kp.refresh_eigenbasis(loaded, data[0]).keys() == names


class TestNames:
    def names(self, model):
        return unique_names(model, regularized_layers(model))

    def test_a_path_only_where_names_are_equal(self):
        regularizer = kp.SpectralActivityRegularizer(tau=3)
        model = Towers(tower("a"), hidden(20, regularizer, name="other"))
        assert self.names(model) == ["hidden", "other"]
        model = Towers(tower("a"), hidden(20, regularizer))
        assert self.names(model) == ["a/hidden", "hidden"]

    def test_before_a_model_is_built(self, data):
        model = Towers(tower("a"), tower("b"))
        before = self.names(model)
        model(data[0])
        assert before == self.names(model) == ["a/hidden", "b/hidden"]

    def test_equal_paths_are_numbered(self, data):
        other = hidden(20, kp.SpectralActivityRegularizer(tau=3), "hidden_1")
        third = keras.Sequential([keras.Input((12,)), other], name="a")
        model = Towers(tower("a"), tower("a"), third)
        assert self.names(model) == ["a/hidden", "a/hidden_1", "hidden_1"]
        spectra = kp.refresh_eigenbasis(model, data[0])
        assert len({spectrum.exponent for spectrum in spectra.values()}) == 3

    def test_a_number_takes_no_other_path(self):
        extra = [
            hidden(20, kp.SpectralActivityRegularizer(tau=3), name)
            for name in ("hidden", "hidden_1", "hidden_1")
        ]
        towers = [
            keras.Sequential([keras.Input((12,)), layer], name="a") for layer in extra
        ]
        names = self.names(Towers(tower("a"), *towers))
        assert names == ["a/hidden", "a/hidden_2", "a/hidden_1", "a/hidden_1_1"]

    def test_a_layer_in_two_places_has_the_shortest_path(self):
        model = Towers(tower("a"), tower("b"))
        model.own = model.towers[0].layers[0]
        assert self.names(model) == ["hidden", "b/hidden"]
