"""What is fitted to a spectrum: its curvature, and its distance from a target."""

import numpy as np
import pytest

from keras_powerlaw import Spectrum
from keras_powerlaw.spectrum import fit_curvature

N = np.arange(1, 501)


class TestCurvature:
    @pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
    def test_of_a_power_law_is_zero(self, alpha):
        spectrum = Spectrum(3.0 * N**-alpha)
        np.testing.assert_allclose(spectrum.curvature, 0, atol=1e-10)
        assert spectrum.follows_power_law

    def test_is_the_change_of_the_local_exponent(self):
        # log λ = −c log² n has the local exponent 2c log n.
        spectrum = Spectrum(np.exp(-0.3 * np.log(N) ** 2))
        np.testing.assert_allclose(spectrum.curvature, 0.6 * np.log(500 / 11))
        np.testing.assert_allclose(spectrum.curvature_interval, spectrum.curvature)

    def test_interval_covers_under_independent_noise(self):
        rng = np.random.default_rng(0)
        covered = 0
        for _ in range(200):
            noisy = N**-1.0 * np.exp(0.1 * rng.normal(size=500))
            _, (low, high) = fit_curvature(noisy, 11, 500)
            covered += low <= 0.0 <= high
        assert 0.85 <= covered / 200 <= 0.99

    @pytest.mark.parametrize(
        "bent",
        [
            np.exp(-N / 300),
            np.exp(-0.15 * np.log(N) ** 2),
            N**-0.7 / (1 + N / 50),
            N**-2.0 + 2e-4,
        ],
        ids=["exponential", "log-normal", "two power laws", "with a floor"],
    )
    def test_tells_what_is_no_power_law_whatever_its_exponent(self, bent):
        spectrum = Spectrum(bent)
        assert not spectrum.follows_power_law
        # Its sign is that of the bend.
        assert (spectrum.curvature > 0) == (bent[499] < bent[499 // 2] ** 2 / bent[124])

    def test_of_too_few_eigenvalues_is_nan(self):
        spectrum = Spectrum(1.0 / N[:13])
        assert np.isfinite(spectrum.exponent) and np.isnan(spectrum.curvature)
        assert not spectrum.follows_power_law


class TestDistance:
    @pytest.mark.parametrize("alpha", [0.5, 1.0])
    def test_of_another_power_law_in_closed_form(self, alpha):
        median, maximum = Spectrum(7.0 * N**-1.5).distance(alpha, (10, 500))
        logs = (1.5 - alpha) * np.log(N[9:] / 10)
        np.testing.assert_allclose(median, np.median(logs))
        np.testing.assert_allclose(maximum, logs[-1])

    def test_range_is_that_of_the_exponent_by_default(self):
        spectrum = Spectrum(1 / N**2.0, fit_range=(20, 80))
        np.testing.assert_allclose(spectrum.distance().maximum, np.log(80 / 20))

    def test_from_a_spectrum_of_another_scale_and_length(self):
        other = Spectrum(50.0 * N[:100] ** -0.8)
        distance = Spectrum(N**-1.0).distance(other)
        np.testing.assert_allclose(distance.maximum, 0.2 * np.log(100 / 11))
        np.testing.assert_allclose(other.distance(other), 0, atol=1e-12)

    def test_where_there_is_nothing_to_compare_is_nan(self):
        assert np.isnan(Spectrum(np.zeros(30)).distance().median)

    @pytest.mark.parametrize("bad", ["1/n", None, np.nan, True])
    def test_refuses_other_targets(self, bad):
        with pytest.raises(ValueError, match="argument `target`. Expected"):
            Spectrum(1.0 / N).distance(bad)

    def test_refuses_a_range_outside_of_it(self):
        with pytest.raises(ValueError, match="argument `fit_range`. Expected two int"):
            Spectrum(1.0 / N).distance(1.0, (10, 501))
