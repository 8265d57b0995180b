"""When the failure of a penalty is worth a warning, and what the warning says."""

import math
import warnings

import numpy as np
import pytest

import keras_powerlaw as kp
from keras_powerlaw.penalty import PowerLaw
from keras_powerlaw.watch import PenaltyWatch

NO_POWER_LAW = kp.Spectrum(np.zeros(200))
HARMONIC = PowerLaw(1.0)


def power_law(exponent):
    """Its median of |log λₙ/γₙ| over n = 10 … 100 is |exponent − α| log 5.5."""
    return kp.Spectrum(np.arange(1.0, 201.0) ** -exponent)


def watch_of(spectra, staleness=0.1, every=40, target=HARMONIC, tau=10):
    """A watch that has seen these spectra, and the steps at which it found a stale one.

    With refreshes every 40 steps, 200 steps are five of them.
    """
    watch, found = PenaltyWatch(target, tau), {}
    for refresh, spectrum in enumerate(spectra):
        first = refresh == 0  # before which there is no basis to be stale
        step = every * refresh
        steps = watch.observe(step, math.nan if first else staleness, spectrum)
        if steps is not None:
            found[step] = steps
    return watch, found


class TestAStaleBasis:
    def stale(self, exponents=(2.0,) * 12, staleness=0.9, **settings):
        return watch_of(map(power_law, exponents), staleness, **settings)[1]

    def test_is_reported_after_200_steps_and_then_anew(self):
        assert self.stale() == {200: 200, 440: 200}

    def test_is_not_reported_before_five_refreshes(self):
        assert self.stale(every=100) == {500: 500, 1100: 500}

    @pytest.mark.parametrize("staleness", [0.5, math.nan])
    def test_shows_less_than_half_of_the_penalty(self, staleness):
        assert self.stale(staleness=staleness) == {}

    @pytest.mark.parametrize(
        "exponents",
        [[1 + 0.9**step for step in range(12)], [1.15] * 12],
        ids=["nearer", "near"],
    )
    def test_is_none_where_the_exponent_comes_or_is_nearer(self, exponents):
        assert self.stale(exponents) == {}

    def test_is_none_of_a_spectrum_without_exponent(self):
        assert watch_of([NO_POWER_LAW] * 12, 0.9)[1] == {}

    def test_is_measured_against_any_target(self):
        target = power_law(2.0)
        assert self.stale(target=target) == {}
        assert self.stale([1.0] * 12, target=target) == {200: 200, 440: 200}


class TestAShortfall:
    """At the end of training, from the first refresh to the last."""

    def shortfall(self, exponents, **settings):
        return watch_of(map(power_law, exponents), **settings)[0].shortfall()

    def test_is_less_than_half_of_the_way(self):
        found = self.shortfall([2.0, *[1.8] * 4, 1.6])
        assert found.steps == 200
        np.testing.assert_allclose(found.exponents, (2.0, 1.6))
        np.testing.assert_allclose(found.distances, np.log(5.5) * np.array([1.0, 0.6]))

    @pytest.mark.parametrize(
        "first, last, falls_short",
        [
            (2.0, 1.49, False),
            (0.0, 0.4, True),
            (1.1, 1.29, False),  # a distance of 0.29 log 5.5 = 0.494
            (1.1, 1.3, True),
        ],
    )
    def test_ends_more_than_one_half_away(self, first, last, falls_short):
        found = self.shortfall([first, *[(first + last) / 2] * 4, last])
        assert (found is not None) == falls_short

    def test_is_measured_against_any_target(self):
        for target in PowerLaw(2.0), power_law(2.0):
            assert self.shortfall([2.0] * 6, target=target) is None
            assert self.shortfall([1.0] * 6, target=target) is not None

    def test_is_in_the_first_half_of_the_spectrum(self):
        eigenvalues = 1 / np.arange(1.0, 201.0)
        eigenvalues[100:] *= 1e-3
        assert watch_of([kp.Spectrum(eigenvalues)] * 6)[0].shortfall() is None

    def test_is_in_all_of_it_for_a_tau_in_the_second_half(self):
        assert self.shortfall([5.0] * 6, tau=150) is not None

    def test_takes_200_steps_and_five_refreshes(self):
        assert self.shortfall([2.0] * 6, every=39) is None
        assert self.shortfall([2.0] * 5, every=100) is None
        assert self.shortfall([2.0] * 6, every=100).steps == 500

    def test_is_none_where_the_basis_was_called_stale(self):
        assert self.shortfall([2.0] * 6, staleness=0.9) is None

    @pytest.mark.parametrize("missing, falls_short", [(0, True), (5, False)])
    def test_is_of_a_spectrum_that_has_a_distance(self, missing, falls_short):
        spectra = [power_law(2.0)] * 6
        spectra[missing] = NO_POWER_LAW
        assert (watch_of(spectra)[0].shortfall() is not None) == falls_short


class TestWarnings:
    def test_of_a_stale_basis_name_layer_steps_exponent_and_target(self):
        watch, _ = watch_of([power_law(2.0)] * 6, 0.9)
        for form, advises in ("nearest", True), ("log", False):
            regularizer = kp.SpectralActivityRegularizer(form=form)
            match = "'hidden' is satisfied.*for 200 steps.*2.00.*, PowerLaw.alpha=1.0."
            with pytest.warns(UserWarning, match=match) as found:
                watch.warn_of_stale_basis("hidden", regularizer, 200)
            assert ('form="log"' in str(found[0].message)) == advises

    @pytest.mark.parametrize("beta", [0.5, 0.0])
    def test_of_a_shortfall_are_of_a_penalty_that_acts(self, beta):
        watch, _ = watch_of([power_law(2.0)] * 6)
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            regularizer = kp.SpectralActivityRegularizer(beta=beta)
            watch.warn_of_shortfall("hidden", regularizer)
        expected = (
            "The penalty of layer 'hidden' has not brought its spectrum near the "
            "target, PowerLaw(alpha=1.0): in 200 steps, its distance, the median of "
            "|log λ/γ|, went from 1.70 to 1.70, and the exponent from 2.00 to 2.00. "
        )
        starts = [str(each.message).startswith(expected) for each in found]
        assert starts == [True] * bool(beta)
