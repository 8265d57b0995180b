"""When a refresh is due, and when the penalty's failure is worth a warning."""

import math

import numpy as np
import pytest

import keras_powerlaw as kp
from keras_powerlaw.spectral.schedule import Schedule, default_steps
from keras_powerlaw.spectral.watch import PenaltyWatch


class TestSchedule:
    def test_default_is_each_epoch_and_every_20_steps(self):
        schedule = Schedule.from_arguments(None, None)
        assert schedule == Schedule(every_epochs=1, every_steps=20)
        assert schedule.due_at_epoch(3, last_refresh=59)
        assert not schedule.due_at_step(78, last_refresh=59)
        assert schedule.due_at_step(79, last_refresh=59)

    def test_one_interval_switches_the_other_off(self):
        epochs = Schedule.from_arguments(2, None)
        assert not epochs.due_at_step(10_000, last_refresh=0)
        assert [epochs.due_at_epoch(epoch, 0) for epoch in range(4)] == [
            *(True, False, True, False)
        ]
        steps = Schedule.from_arguments(None, 7)
        assert not steps.due_at_epoch(0, last_refresh=None)
        assert [
            step for step in range(20) if steps.due_at_step(step, step // 7 * 7)
        ] == []
        assert steps.due_at_step(7, last_refresh=0)

    def test_training_begins_with_a_refresh(self):
        assert Schedule.from_arguments(2, None).due_at_epoch(1, last_refresh=None)
        assert Schedule.from_arguments(None, 7).due_at_step(5, last_refresh=None)

    def test_is_one_interval_at_most(self):
        with pytest.raises(ValueError, match="not both. Received: every_epochs=1, ev"):
            Schedule.from_arguments(1, 1)


@pytest.mark.parametrize(
    ("every_steps", "expected"),
    [(5, [0, 4, 8]), (8, [0, 3, 6]), (20, [*range(9)]), (50, [*range(9)])],
)
def test_measures_about_every_20_steps(every_steps, expected):
    schedule = Schedule(None, every_steps)
    assert [index for index in range(9) if schedule.measures(index)] == expected
    assert all(map(Schedule(2, None).measures, range(9)))


def test_narrow_layers_are_renewed_more_often():
    widths = [2, 125, 150, 250, 500, 501, 4000]
    assert [*map(default_steps, widths)] == [5, 5, 6, 10, 20, 20, 20]


def power_law(exponent):
    """Its median of |log λₙ/γₙ| over n = 10 … 100 is |exponent − α| log 5.5."""
    return kp.Spectrum(np.arange(1.0, 201.0) ** -exponent)


NO_POWER_LAW = kp.Spectrum(np.zeros(200))


class TestStaleBasis:
    """With refreshes every 40 steps, 200 steps are five of them."""

    def warnings(self, staleness=0.9, exponents=(2.0,) * 12, every=40):
        watch = PenaltyWatch(alpha=1.0, tau=10)
        found = {}
        for refresh, exponent in enumerate(exponents):
            first = refresh == 0  # before which there is no basis to be stale
            steps = watch.observe(
                *(every * refresh, math.nan if first else staleness),
                power_law(exponent),
            )
            if steps is not None:
                found[every * refresh] = steps
        return found

    def test_after_200_steps_and_then_anew(self):
        assert self.warnings() == {200: 200, 440: 200}

    def test_not_before_five_refreshes(self):
        assert self.warnings(every=100) == {500: 500, 1100: 500}

    def test_not_of_a_fresh_basis(self):
        assert self.warnings(staleness=0.5) == {}
        assert self.warnings(staleness=math.nan) == {}

    def test_not_where_the_exponent_comes_nearer(self):
        assert self.warnings(exponents=[1 + 0.9**step for step in range(12)]) == {}
        assert self.warnings(exponents=[1.15] * 12) == {}
        watch = PenaltyWatch(alpha=1.0, tau=10)
        steps = [watch.observe(40 * step, 0.9, NO_POWER_LAW) for step in range(12)]
        assert not any(steps)


class TestShortfall:
    """At the end of training, from the first refresh to the last."""

    def shortfall(self, exponents, staleness=0.1, every=40, alpha=1.0, tau=10):
        watch = PenaltyWatch(alpha, tau)
        for refresh, exponent in enumerate(exponents):
            watch.observe(every * refresh, staleness, power_law(exponent))
        return watch.shortfall()

    def test_of_less_than_half_of_the_way(self):
        found = self.shortfall([2.0, *[1.8] * 4, 1.6])
        assert found.steps == 200
        np.testing.assert_allclose(found.exponents, (2.0, 1.6))
        np.testing.assert_allclose(found.distances, np.log(5.5) * np.array([1.0, 0.6]))
        assert self.shortfall([2.0, *[1.8] * 4, 1.49]) is None
        assert self.shortfall([0.0, *[0.2] * 4, 0.4]) is not None
        assert self.shortfall([2.0] * 6, alpha=2.0) is None

    def test_of_more_than_one_half(self):
        assert self.shortfall([1.1] * 5 + [1.29]) is None  # 0.29 log 5.5 = 0.494
        assert self.shortfall([1.1] * 5 + [1.3]) is not None

    def test_in_the_first_half_of_the_spectrum(self):
        watch = PenaltyWatch(alpha=1.0, tau=10)
        eigenvalues = 1 / np.arange(1.0, 201.0)
        eigenvalues[100:] *= 1e-3
        for refresh in range(6):
            watch.observe(40 * refresh, 0.1, kp.Spectrum(eigenvalues))
        assert watch.shortfall() is None

    def test_of_tau_in_the_second_half(self):
        assert self.shortfall([5.0] * 6, tau=150) is not None

    def test_not_before_200_steps_and_five_refreshes(self):
        assert self.shortfall([2.0] * 6, every=39) is None
        assert self.shortfall([2.0] * 5, every=100) is None
        assert self.shortfall([2.0] * 6, every=100).steps == 500

    def test_not_where_the_basis_was_called_stale(self):
        assert self.shortfall([2.0] * 6, staleness=0.9) is None

    @pytest.mark.parametrize("missing, expected", [(0, True), (5, False)])
    def test_of_a_spectrum_that_has_a_distance(self, missing, expected):
        watch = PenaltyWatch(alpha=1.0, tau=10)
        for refresh in range(6):
            spectrum = NO_POWER_LAW if refresh == missing else power_law(2.0)
            watch.observe(40 * refresh, 0.1, spectrum)
        assert (watch.shortfall() is not None) == expected
