"""Layers are found by object, name or class, and told apart where names are equal."""

import keras
import numpy as np
import pytest
from datasets import gaussian
from keras import layers
from models import feature_map, hidden, network

import keras_powerlaw as kp
from keras_powerlaw.layers import (
    find_layer,
    find_layers,
    named_layers,
    regularized_layers,
)


@pytest.fixture
def model():
    regularizer = kp.SpectralActivityRegularizer(tau=2)
    flat = layers.Flatten(name="flat")
    return network(feature_map(3), flat, hidden(20, regularizer), shape=(6, 6, 1))


class TestFinding:
    def test_one_layer_by_itself_or_its_name(self, model):
        layer = model.get_layer("hidden")
        for choice in "hidden", layer:
            assert find_layer(model, choice) is layer
            assert find_layers(model, choice) == ([layer], True)

    @pytest.mark.parametrize(
        "choice, names",
        [
            (["hidden", "map"], ["hidden", "map"]),
            ((layers.Conv2D, layers.Dense), ["map", "hidden", "logits"]),
            (["logits", layers.Dense], ["logits", "hidden"]),
            (layers.Layer, ["map", "flat", "hidden", "logits"]),
        ],
    )
    def test_many_in_the_order_of_the_request_each_once(self, model, choice, names):
        found, is_one = find_layers(model, choice)
        assert ([layer.name for layer in found], is_one) == (names, False)

    @pytest.mark.parametrize("choice", [[], layers.LSTM, ["hidden", "third"], [3], "x"])
    def test_none_is_an_error(self, model, choice):
        with pytest.raises(ValueError, match="argument `layer`. Expected"):
            find_layers(model, choice)

    def test_an_error_lists_the_layers_there_are_and_no_regularizer(self, model):
        listed = "'map', 'flat', 'hidden', 'logits'.. Received: layer='third'"
        with pytest.raises(ValueError, match=listed):
            find_layer(model, "third")

    def test_those_whose_penalty_needs_a_basis(self, model):
        kp.add_spectral_regularizer(model, "map", tau=2, exact=True)
        assert [layer.name for layer in regularized_layers(model)] == ["map", "hidden"]
        assert list(named_layers(model)) == ["hidden"]


def tower(name, layer="hidden"):
    regularized = hidden(20, kp.SpectralActivityRegularizer(tau=3), layer)
    return keras.Sequential([keras.Input((12,)), regularized], name=name)


class Towers(keras.Model):
    """A subclassed model, which knows its layers before they are built."""

    def __init__(self, *towers):
        super().__init__()
        self.towers = list(towers)

    def call(self, x):
        return sum(tower(x) for tower in self.towers)


def names(model):
    return list(named_layers(model))


class TestEqualNames:
    @pytest.mark.parametrize(
        "other, expected",
        [("other", ["hidden", "other"]), ("hidden", ["a/hidden", "hidden"])],
    )
    def test_become_paths_and_others_do_not(self, other, expected):
        lone = hidden(20, kp.SpectralActivityRegularizer(tau=3), name=other)
        assert names(Towers(tower("a"), lone)) == expected

    def test_are_the_same_before_a_model_is_built(self):
        model = Towers(tower("a"), tower("b"))
        before = names(model)
        model(gaussian(5)[0])
        assert before == names(model) == ["a/hidden", "b/hidden"]

    def test_are_the_same_after_loading(self, tmp_path):
        model = keras.Sequential([tower("a"), layers.Dense(12), tower("b")])
        model(gaussian(5)[0])
        model.save(tmp_path / "model.keras")
        loaded = keras.saving.load_model(tmp_path / "model.keras")
        assert names(loaded) == names(model) == ["a/hidden", "b/hidden"]

    @pytest.mark.parametrize(
        "own, expected",
        [
            (["hidden", "hidden", "hidden_1"], ["a/hidden", "a/hidden_1", "hidden_1"]),
            (
                ["hidden", "hidden", "hidden_1", "hidden_1"],
                ["a/hidden", "a/hidden_2", "a/hidden_1", "a/hidden_1_1"],
            ),
        ],
    )
    def test_of_equal_paths_are_numbered_and_take_no_other_path(self, own, expected):
        assert names(Towers(*(tower("a", layer=each) for each in own))) == expected

    def test_of_a_layer_in_two_places_are_the_shortest_path(self):
        model = Towers(tower("a"), tower("b"))
        model.own = model.towers[0].layers[0]
        assert names(model) == ["hidden", "b/hidden"]

    def test_keep_spectra_logs_and_errors_apart(self):
        model = Towers(tower("a"), tower("b"))
        x, _ = gaussian(60)
        model.compile("adam", "mse")
        refresh = kp.EigenbasisRefresh(x)
        logs = model.fit(x, x[:, :1], verbose=0, callbacks=[refresh]).history
        assert set(refresh.spectra) == {"a/hidden", "b/hidden"}
        for name, spectrum in refresh.spectra.items():
            assert logs[f"{name}_exponent"] == [spectrum.exponent]
            assert f"{name}_staleness" in logs
        for name, spectrum in kp.refresh_eigenbasis(model, x).items():
            part = model.towers["ab".index(name[0])]
            alone = kp.measure_spectrum(part, x, "hidden").eigenvalues
            np.testing.assert_allclose(spectrum.eigenvalues, alone, rtol=1e-10)
        model.towers[1].layers[0].kernel.assign(np.zeros((12, 20)))
        with pytest.raises(ValueError, match="'b/hidden' vary in only 0 of 20"):
            kp.refresh_eigenbasis(model, x)
