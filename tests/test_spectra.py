"""The mathematics, against NumPy in float64 and closed forms."""

import numpy as np
import pytest
import reference
from backend import value_and_gradient
from keras import ops

from keras_powerlaw import Spectrum
from keras_powerlaw.penalty import (
    covariance,
    exact_variances,
    projected_variances,
    spectral_penalty,
)
from keras_powerlaw.spectrum import Covariance, fit_power_law

ALPHAS = [0.5, 1.0, 1.5, 2.0]
FORMS = ["nearest", "paper", "log"]


def numpy(tensor):
    return ops.convert_to_numpy(tensor)


class TestPenalty:
    @pytest.mark.parametrize("alpha", ALPHAS)
    @pytest.mark.parametrize("tau", [1, 10])
    def test_equals_equation_2(self, alpha, tau):
        variances = np.sort(np.random.default_rng(0).gamma(1.0, size=60))[::-1]
        value = spectral_penalty(
            ops.convert_to_tensor(variances[tau - 1 :]), alpha, tau, 3.0, "paper"
        )
        expected = reference.penalty(variances, alpha, tau, 3.0, "paper")
        np.testing.assert_allclose(numpy(value), expected, rtol=1e-6)

    @pytest.mark.parametrize("alpha", ALPHAS)
    def test_is_the_authors_form_at_tau_11_on_sorted_estimates(self, alpha):
        estimates = np.random.default_rng(1).gamma(1.0, size=80)
        ordered = np.sort(estimates)[::-1]
        value = spectral_penalty(
            ops.convert_to_tensor(ordered[10:]), alpha, 11, 2.0, "paper"
        )
        expected = reference.authors_penalty(estimates, alpha, beta=2.0)
        np.testing.assert_allclose(numpy(value), expected, rtol=1e-6)

    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize("alpha", ALPHAS)
    def test_is_zero_on_an_exact_power_law(self, alpha, form):
        n = np.arange(10, 501)
        tail = ops.convert_to_tensor((7.0 * n**-alpha).astype("float32"))
        assert abs(float(spectral_penalty(tail, alpha, form=form))) < 1e-6

    def test_counts_too_slow_a_decay_twice(self):
        # λ/γ = 1 + d against 1 − d, for n > τ: d² + d against d².
        n, d = np.arange(10, 101), 0.25
        above, below = 1.0 / n, 1.0 / n
        above[1:] *= 1 + d
        below[1:] *= 1 - d
        slow, fast = (
            float(spectral_penalty(ops.convert_to_tensor(tail), form="paper"))
            for tail in (above, below)
        )
        np.testing.assert_allclose(slow, 90 / 100 * (d**2 + d), rtol=1e-5)
        np.testing.assert_allclose(fast, 90 / 100 * d**2, rtol=1e-5)

    @pytest.mark.parametrize("alpha", ALPHAS)
    def test_log_ratio_in_closed_form(self, alpha):
        # A power law of another exponent: log λₙ/γₙ = (α − 1.7) log n/τ.
        n = np.arange(10, 101)
        value = spectral_penalty(
            ops.convert_to_tensor(3.0 * n**-1.7), alpha, 10, beta=2.0, form="log"
        )
        logs = (alpha - 1.7) * np.log(n)
        expected = 2.0 / 100 * np.sum((logs - logs[:31].mean()) ** 2)
        np.testing.assert_allclose(numpy(value), expected, rtol=1e-5)

    @pytest.mark.parametrize("alpha", ALPHAS)
    def test_nearest_is_one_minus_a_squared_cosine(self, alpha):
        # Between the variances over those of the power law, and a constant.
        variances = np.random.default_rng(0).gamma(1.0, size=91)
        value = spectral_penalty(ops.convert_to_tensor(variances), alpha, 10, 1.0)
        ratios = variances * np.arange(10, 101) ** alpha
        cosine = ratios.sum() / np.linalg.norm(ratios) / np.sqrt(91)
        np.testing.assert_allclose(float(value), 0.91 * (1 - cosine**2), rtol=1e-5)

    @pytest.mark.parametrize(
        ("form", "slope"),
        [
            ("paper", lambda r: 2 * r * (r - 1)),
            ("log", lambda r: 2 * np.log(r)),
            ("nearest", lambda r: 2 * r * (r - 1)),
        ],
    )
    def test_gradient_for_a_small_eigenvalue(self, form, slope):
        # With respect to log λ, at λ/γ = r. That with respect to an activity is larger
        # by 2/√λ: it is unbounded with the logarithm, and vanishes in the others.
        small, tau = 1e-3, 1
        tail = 1 / np.arange(1, 6)
        tail[4] *= small
        _, gradient = value_and_gradient(
            lambda tail: spectral_penalty(tail, 1.0, tau, 1.0, form), tail
        )
        levels = tail * np.arange(1, 6)
        kappa = np.sum(levels**2) / np.sum(levels)
        r = small / kappa if form == "nearest" else small
        np.testing.assert_allclose(gradient[4] * tail[4], slope(r) / 5, rtol=1e-4)

    def test_near_the_target_all_forms_are_the_same_square(self):
        n = np.arange(10, 101)
        # Departures that leave κ where it is, to first order, in every form.
        wave = 1e-3 * np.sin(2 * np.pi * (n - 10) / 30) * (n < 40)
        tail = ops.convert_to_tensor((1 + wave) / n)
        expected = np.sum(wave**2) / 100
        log, nearest = (
            float(spectral_penalty(tail, form=form)) for form in ("log", "nearest")
        )
        np.testing.assert_allclose([log, nearest], expected, rtol=2e-2)

    @pytest.mark.parametrize("scale", [1e-25, 1e-6, 1e6, 1e25])
    def test_nearest_knows_no_scale(self, scale):
        tail = np.random.default_rng(3).gamma(1.0, size=91)
        value, gradient = value_and_gradient(spectral_penalty, tail)
        scaled, smaller = value_and_gradient(spectral_penalty, scale * tail)
        np.testing.assert_allclose(scaled, value, rtol=1e-5)
        np.testing.assert_allclose(scale * smaller, gradient, rtol=1e-3, atol=1e-7)
        # Nothing pushes all eigenvalues up or down together.
        assert abs(np.sum(gradient * tail)) < 1e-4 * np.sum(np.abs(gradient * tail))

    def test_log_ratio_of_a_dead_direction_is_finite(self):
        value, gradient = value_and_gradient(
            lambda tail: spectral_penalty(tail, 0.0, 1, form="log"),
            np.array([1.0, 1.0, 1.0, 1.0, 0.0]),
        )
        np.testing.assert_allclose(value, np.log(1e-7) ** 2 / 5, rtol=1e-5)
        assert gradient[4] == 0

    def test_log_ratio_leaves_the_scale_alone(self):
        # In every batch, the gradients for log λₙ over the band of κ sum to zero.
        tail = np.random.default_rng(13).gamma(2.0, size=31)
        _, gradient = value_and_gradient(
            lambda tail: spectral_penalty(tail, 1.3, 10, form="log"), tail
        )
        assert abs(np.sum(gradient * tail)) < 1e-5 * np.sum(np.abs(gradient * tail))

    @pytest.mark.parametrize("form", FORMS)
    def test_is_zero_without_a_target(self, form):
        value, gradient = value_and_gradient(
            lambda tail: spectral_penalty(tail, tau=3, form=form), np.zeros(5)
        )
        assert value == 0.0 and not gradient.any()

    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize("tail", [[np.nan, 1.0], [1.0, np.nan], [np.nan, 0.0]])
    def test_passes_nan_on(self, tail, form):
        tail = ops.convert_to_tensor(np.array(tail, "float32"))
        value = spectral_penalty(tail, tau=3, form=form)
        assert np.isnan(float(value))


class TestVariances:
    @pytest.mark.parametrize("batch", [20, 200], ids=["B < N", "B > N"])
    def test_projected_are_the_diagonal_of_equation_5(self, batch):
        rng = np.random.default_rng(2)
        activity = rng.normal(size=(batch, 50)) + 3.0
        basis = reference.orthonormal(50, rng)
        value = projected_variances(
            ops.convert_to_tensor(activity), ops.convert_to_tensor(basis)
        )
        expected = reference.variances(activity, basis)
        np.testing.assert_allclose(numpy(value), expected, rtol=1e-5)

    @pytest.mark.parametrize("batch", [20, 200], ids=["B < N", "B > N"])
    def test_exact_are_the_eigenvalues(self, batch):
        activity = np.random.default_rng(3).normal(size=(batch, 50))
        value = numpy(exact_variances(ops.convert_to_tensor(activity)))
        expected = np.linalg.eigvalsh(np.cov(activity, rowvar=False))[::-1]
        np.testing.assert_allclose(value, expected, atol=1e-5 * expected[0])

    def test_projected_are_unbiased_for_any_batch_size(self):
        rng = np.random.default_rng(4)
        true = 1.0 / np.arange(1, 21)
        draws = rng.normal(size=(20000, 4, 20)) * np.sqrt(true)  # batches of four
        eye = ops.eye(20)
        estimates = numpy(
            ops.vectorized_map(
                lambda batch: projected_variances(batch, eye),
                ops.convert_to_tensor(draws.astype("float32")),
            )
        )
        np.testing.assert_allclose(
            estimates[0], draws[0].var(axis=0, ddof=1), rtol=1e-4
        )
        mean = estimates.astype("float64").mean(axis=0)
        # Relative error of one estimate: √(2/(B−1)); of the mean of 20,000: 0.6 %.
        np.testing.assert_allclose(mean, true, rtol=0.03)

    def test_of_a_single_example_are_zero(self):
        one = ops.ones((1, 3))
        assert not numpy(projected_variances(one, ops.eye(3))).any()
        assert not numpy(covariance(one)[1]).any()


class TestCovariance:
    def test_equals_numpy_whatever_the_batches(self):
        data = np.random.default_rng(5).normal(size=(100, 7)) + 100.0
        for sizes in ([100], [1, 99], [33, 33, 34]):
            running = Covariance()
            for batch in np.split(data, np.cumsum(sizes)[:-1]):
                running.update(batch)
            np.testing.assert_allclose(
                running.matrix(), np.cov(data, rowvar=False), rtol=1e-10, atol=1e-12
            )

    def test_keeps_small_eigenvalues_beside_a_large_mean(self):
        # λ_N/λ₁ = 1e-10, and a mean a thousand standard deviations away.
        rng = np.random.default_rng(6)
        units = 20
        true = np.logspace(0, -10, units)
        basis = reference.orthonormal(units, rng)
        scores = rng.normal(size=(400, units))
        scores -= scores.mean(axis=0)
        scores = np.linalg.qr(scores)[0] * np.sqrt(399)  # covariance exactly I
        data = scores * np.sqrt(true) @ basis.T + 1000.0
        running = Covariance()
        for batch in np.split(data, 10):
            running.update(batch)
        eigenvalues, _ = running.eigenvectors()
        np.testing.assert_allclose(eigenvalues, true, rtol=1e-2)


def test_eigendecomposition_sorts_and_reconstructs():
    rng = np.random.default_rng(7)
    data = rng.normal(size=(30, 50))
    sigma, running = np.cov(data, rowvar=False), Covariance()
    running.update(data)
    eigenvalues, vectors = running.eigenvectors()
    assert np.all(np.diff(eigenvalues) <= 0) and eigenvalues[-1] >= 0
    np.testing.assert_allclose(vectors * eigenvalues @ vectors.T, sigma, atol=1e-12)


def test_variances_along_a_basis():
    rng = np.random.default_rng(12)
    activity = rng.normal(size=(90, 30))
    basis = reference.orthonormal(30, rng)
    running = Covariance()
    running.update(activity)
    np.testing.assert_allclose(
        running.variances_along(basis[:, 4:]),
        reference.variances(activity, basis)[4:],
        rtol=1e-5,
    )


class TestSpectrum:
    @pytest.mark.parametrize("alpha", ALPHAS)
    def test_of_an_exact_power_law(self, alpha):
        n = np.arange(1.0, 1001)
        spectrum = Spectrum(5.0 * n**-alpha)
        assert spectrum.fit_range == (11, 500)
        np.testing.assert_allclose(spectrum.exponent, alpha, rtol=1e-10)
        np.testing.assert_allclose(spectrum.exponent_interval, alpha, rtol=1e-8)

    def test_can_be_compared_as_an_object(self):
        spectrum = Spectrum([2.0, 1.0])
        assert spectrum in [spectrum]
        assert spectrum != Spectrum([2.0, 1.0])

    def test_dimensions_in_closed_form(self):
        flat = Spectrum(np.full(40, 2.0))
        assert flat.dimension_90 == 36
        np.testing.assert_allclose(flat.participation_ratio, 40)
        # Σλ = 10, of which the first two hold 9.
        assert Spectrum([6.0, 3.0, 1.0]).dimension_90 == 2
        np.testing.assert_allclose(
            Spectrum([6.0, 3.0, 1.0]).participation_ratio, 100 / 46
        )

    def test_ranks_in_closed_form(self):
        flat = Spectrum(np.full(40, 2.0))
        np.testing.assert_allclose([flat.effective_rank, flat.stable_rank], 40)
        # Singular values 2, 1, 1: shares ½, ¼, ¼, of entropy 1.5 log 2.
        spectrum = Spectrum([4.0, 1.0, 1.0, 0.0])
        np.testing.assert_allclose(spectrum.effective_rank, 2**1.5)
        np.testing.assert_allclose(spectrum.stable_rank, 6 / 4)
        none = Spectrum(np.zeros(3))
        assert none.effective_rank == none.stable_rank == 0

    def test_of_leading_eigenvalues_knows_what_these_tell(self):
        spectrum = Spectrum([6.0, 3.0], variance=10.0)
        assert spectrum.dimension_90 == 2
        np.testing.assert_allclose(spectrum.stable_rank, 10 / 6)
        assert np.isnan(spectrum.participation_ratio)
        assert np.isnan(spectrum.effective_rank)
        assert np.isnan(Spectrum([6.0, 2.0], variance=10.0).dimension_90)

    def test_exponent_weighs_by_one_over_n(self):
        n = np.arange(1, 101)
        eigenvalues = np.sort(np.random.default_rng(8).gamma(1.0, size=100))[::-1]
        design = np.stack([np.log(n), np.ones(100)], axis=1)
        weighted = design.T / n
        slope = np.linalg.solve(weighted @ design, weighted @ np.log(eigenvalues))[0]
        spectrum = Spectrum(eigenvalues, fit_range=(1, 100))
        np.testing.assert_allclose(spectrum.exponent, -slope, rtol=1e-10)

    def test_interval_covers_under_independent_noise(self):
        rng = np.random.default_rng(9)
        n = np.arange(1, 501)
        covered = 0
        for _ in range(200):
            noisy = n**-1.0 * np.exp(0.1 * rng.normal(size=500))
            _, (low, high) = fit_power_law(noisy, 11, 500)
            covered += low <= 1.0 <= high
        assert 0.85 <= covered / 200 <= 0.99

    def test_interval_is_wide_where_the_spectrum_bends(self):
        n = np.arange(1, 501)
        straight = Spectrum(n**-1.5)
        bent = Spectrum(np.exp(-0.3 * np.log(n) ** 2))
        low, high = bent.exponent_interval
        assert high - low > 0.5
        assert np.ptp(straight.exponent_interval) < 1e-6

    def test_default_range_ends_where_the_spectrum_does(self):
        spectrum = Spectrum(np.r_[1.0 / np.arange(1, 101), np.zeros(50)])
        assert spectrum.rank == 100
        assert spectrum.fit_range == (11, 100)
        np.testing.assert_allclose(spectrum.exponent, 1.0, rtol=1e-10)

    def test_exponent_of_too_few_eigenvalues_is_nan(self):
        assert np.isnan(Spectrum([3.0, 2.0, 1.0]).exponent)
        assert np.isnan(Spectrum(np.zeros(30)).exponent)

    @pytest.mark.parametrize("bad", [[], [1.0, 2.0], [1.0, -1.0], [np.nan], [[1.0]]])
    def test_refuses_what_is_no_spectrum(self, bad):
        with pytest.raises(ValueError, match="argument `eigenvalues`. Expected"):
            Spectrum(bad)

    @pytest.mark.parametrize("bad", [(0, 5), (5, 5), (1, 11), (1.5, 4), 7, "ab"])
    def test_refuses_a_range_outside_of_it(self, bad):
        with pytest.raises(ValueError, match="argument `fit_range`. Expected two int"):
            Spectrum(1.0 / np.arange(1, 11), fit_range=bad)
