"""Targets: their levels in closed form, and their configs."""

import json

import keras
import numpy as np
import pytest
from datasets import gaussian
from models import compiled, hidden, network

import keras_powerlaw as kp
from keras_powerlaw.targets import as_target, relative_levels

N = np.arange(1, 101)
BROKEN = kp.BrokenPowerLaw(0.5, 1.2, 20)
MEASURED = kp.Spectrum(np.sort(np.random.default_rng(0).gamma(1.0, size=60))[::-1])
TARGETS = {
    "power law": kp.PowerLaw(1.5),
    "broken": BROKEN,
    "spectrum": MEASURED,
    "leading": kp.Spectrum([3.0, 2.0, 1.0], variance=8.0),
    "cross-validated": kp.CrossValidatedSpectrum([3.0, 1.0, -0.1, 0.5]),
}
ids = pytest.mark.parametrize("target", TARGETS.values(), ids=list(TARGETS))


class TestLevels:
    def test_a_number_is_short_for_a_power_law(self):
        target = as_target(1.5)
        assert target == kp.PowerLaw(1.5) != kp.PowerLaw(1)
        np.testing.assert_allclose(target.levels(np.array([1, 2.5])), [1, 2.5**-1.5])
        assert as_target(target) is target

    def test_a_broken_power_law_has_two_slopes_and_no_step(self):
        assert BROKEN.levels(1.0) == 1
        slopes = np.diff(np.log(BROKEN.levels(N))) / np.diff(np.log(N))
        np.testing.assert_allclose(slopes[:19], -0.5)
        np.testing.assert_allclose(slopes[19:], -1.2)

    def test_those_of_a_spectrum_are_its_eigenvalues(self):
        np.testing.assert_allclose(MEASURED.levels(N[:60]), MEASURED.eigenvalues)

    def test_a_power_law_that_was_measured_goes_on_between_and_beyond(self):
        n = np.array([1.0, 2.5, 100.0, 1000.0])
        measured = kp.Spectrum(7.0 * N**-0.8)
        np.testing.assert_allclose(measured.levels(n), 7.0 * n**-0.8)

    @pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf, "1", None, True])
    def test_what_is_no_target_is_named(self, bad):
        with pytest.raises(ValueError, match="argument `target`. Expected a finite"):
            as_target(bad)
        with pytest.raises(ValueError, match="argument `alpha`. Expected a finite"):
            kp.PowerLaw(bad)

    def test_levels_of_zero_are_refused(self):
        with pytest.raises(ValueError, match="above zero at n = 5 … 8"):
            relative_levels(kp.Spectrum(np.zeros(8)), 5, 8)


class TestConfigs:
    @ids
    def test_round_trip_through_json(self, target):
        config = json.loads(json.dumps(keras.saving.serialize_keras_object(target)))
        copy = keras.saving.deserialize_keras_object(config)
        assert type(copy) is type(target)
        np.testing.assert_array_equal(copy.levels(N), target.levels(N))
        assert copy.get_config() == target.get_config()

    @pytest.mark.parametrize("target", [kp.PowerLaw(1.5), BROKEN, MEASURED], ids=str)
    def test_a_regularizer_keeps_its_target_in_a_file(self, target, tmp_path):
        regularizer = kp.SpectralActivityRegularizer(target=target, tau=3)
        model = network(hidden(20, regularizer))
        model.save(tmp_path / "model.keras")
        loaded = keras.saving.load_model(tmp_path / "model.keras")
        loaded = loaded.get_layer("hidden").activity_regularizer
        np.testing.assert_array_equal(
            relative_levels(loaded.target, 3, 20), relative_levels(target, 3, 20)
        )

    def test_an_exponent_and_a_target_contradict_each_other(self):
        with pytest.raises(ValueError, match="`alpha`. Expected no exponent beside"):
            kp.SpectralActivityRegularizer(1.5, target=BROKEN)


class TestUse:
    def test_a_spectrum_on_its_target_has_no_distance_and_no_penalty(self):
        spectrum = kp.Spectrum(3.0 * BROKEN.levels(N))
        assert spectrum.distance(BROKEN).maximum < 1e-9 < spectrum.distance(1.0).median
        regularizer = kp.SpectralActivityRegularizer(target=BROKEN)
        tail = keras.ops.convert_to_tensor(spectrum.eigenvalues[9:])
        assert abs(float(regularizer.penalty_of(tail))) < 1e-9

    def test_training_pulls_the_spectrum_toward_it(self):
        data, found = gaussian(2000, (30,)), {}
        for name, target in (("flat", 0.2), ("broken", kp.BrokenPowerLaw(0, 3, 12))):
            keras.utils.set_random_seed(0)
            model = network(hidden(30), shape=(30,))
            kp.add_spectral_regularizer(
                model, "hidden", tau=2, beta=5.0, form="log", target=target
            )
            compiled(model, keras.optimizers.Adam(3e-3))
            model.fit(*data, epochs=6, verbose=0, callbacks=[kp.EigenbasisRefresh()])
            found[name] = kp.measure_spectrum(model, data[0], "hidden"), target
        for spectrum, target in found.values():
            distances = [
                spectrum.distance(other, (2, 30)).median for _, other in found.values()
            ]
            assert spectrum.distance(target, (2, 30)).median == min(distances) < 0.3

    def test_layers_have_targets_of_their_own(self):
        model = network(hidden(20, name="first"), hidden(20))
        kp.add_spectral_regularizer(model, ["first", "hidden"], target=[BROKEN, 0.7])
        found = [
            model.get_layer(name).activity_regularizer.target
            for name in ("first", "hidden")
        ]
        assert found == [BROKEN, kp.PowerLaw(0.7)]
