"""When the failure of a penalty is worth a warning, and what the warning says."""

import math
import warnings

import numpy as np
import pytest

import keras_powerlaw as kp
from keras_powerlaw.targets import PowerLaw
from keras_powerlaw.watch import PenaltyWatch

NO_POWER_LAW = kp.Spectrum(np.zeros(200))
HARMONIC = PowerLaw(1.0)


def power_law(exponent):
    """Its median of |log λₙ/γₙ| over n = 10 … 100 is |exponent − α| log 5.5."""
    return kp.Spectrum(np.arange(1.0, 201.0) ** -exponent)


def warned(spectra, staleness=0.1, every=40, target=HARMONIC, tau=10):
    """The steps at which a watch warns of a stale basis, and what it says at the end.

    With refreshes every 40 steps, 200 steps are five of them.
    """
    watch, steps = PenaltyWatch("hidden", target, tau), []
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        for refresh, spectrum in enumerate(spectra):
            first = refresh == 0  # before which there is no basis to be stale
            watch.observe(every * refresh, math.nan if first else staleness, spectrum)
            if len(found) > len(steps):
                assert "satisfied in a stale basis" in str(found[-1].message)
                steps.append(every * refresh)
        watch.end()
    return steps, "".join(str(each.message) for each in found[len(steps) :])


class TestAStaleBasis:
    def stale(self, exponents=(2.0,) * 12, staleness=0.9, **settings):
        return warned(map(power_law, exponents), staleness, **settings)[0]

    def test_is_reported_after_200_steps_and_then_anew(self):
        assert self.stale() == [200, 440]

    def test_is_not_reported_before_five_refreshes(self):
        assert self.stale(every=100) == [500, 1100]

    @pytest.mark.parametrize("staleness", [0.5, math.nan])
    def test_shows_less_than_half_of_the_penalty(self, staleness):
        assert self.stale(staleness=staleness) == []

    @pytest.mark.parametrize(
        "exponents",
        [[1 + 0.9**step for step in range(12)], [1.15] * 12],
        ids=["nearer", "near"],
    )
    def test_is_none_where_the_exponent_comes_or_is_nearer(self, exponents):
        assert self.stale(exponents) == []

    def test_is_none_of_a_spectrum_without_exponent(self):
        assert warned([NO_POWER_LAW] * 12, 0.9)[0] == []

    def test_is_measured_against_any_target(self):
        target = power_law(2.0)
        assert self.stale(target=target) == []
        assert self.stale([1.0] * 12, target=target) == [200, 440]

    def test_is_named_with_its_layer_steps_exponent_and_target(self):
        watch = PenaltyWatch("hidden", HARMONIC, 10)
        match = "'hidden' is satisfied.*for 200 steps.*2.00.*, PowerLaw.alpha=1.0."
        with pytest.warns(UserWarning, match=match):
            for refresh in range(6):
                watch.observe(40 * refresh, 0.9, power_law(2.0))


class TestAShortfall:
    """At the end of training, from the first refresh to the last."""

    def shortfall(self, exponents, **settings):
        return warned(map(power_law, exponents), **settings)[1]

    def test_is_less_than_half_of_the_way(self):
        assert self.shortfall([2.0, *[1.8] * 4, 1.6]).startswith(
            "The penalty of layer 'hidden' has not brought its spectrum near the "
            "target, PowerLaw(alpha=1.0): in 200 steps, its distance, the median of "
            "|log λ/γ|, went from 1.70 to 1.02, and the exponent from 2.00 to 1.60. "
        )

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
        assert bool(found) == falls_short

    def test_is_measured_against_any_target(self):
        for target in PowerLaw(2.0), power_law(2.0):
            assert not self.shortfall([2.0] * 6, target=target)
            assert self.shortfall([1.0] * 6, target=target)

    def test_is_in_the_first_half_of_the_spectrum(self):
        eigenvalues = 1 / np.arange(1.0, 201.0)
        eigenvalues[100:] *= 1e-3
        assert not warned([kp.Spectrum(eigenvalues)] * 6)[1]

    def test_is_in_all_of_it_for_a_tau_in_the_second_half(self):
        assert self.shortfall([5.0] * 6, tau=150)

    def test_takes_200_steps_and_five_refreshes(self):
        assert not self.shortfall([2.0] * 6, every=39)
        assert not self.shortfall([2.0] * 5, every=100)
        assert "in 500 steps" in self.shortfall([2.0] * 6, every=100)

    def test_is_none_where_the_basis_was_called_stale(self):
        assert not self.shortfall([2.0] * 6, staleness=0.9)

    @pytest.mark.parametrize("missing, falls_short", [(0, True), (5, False)])
    def test_is_of_a_spectrum_that_has_a_distance(self, missing, falls_short):
        spectra = [power_law(2.0)] * 6
        spectra[missing] = NO_POWER_LAW
        assert bool(warned(spectra)[1]) == falls_short
