"""Eqs. (2) to (5), against NumPy in float64 and closed forms."""

import itertools

import numpy as np
import pytest
import reference
from backend import to_numpy, value_and_gradient
from keras import ops

from keras_powerlaw import Spectrum
from keras_powerlaw.penalty import (
    covariance,
    direction_groups,
    exact_variances,
    gradient_bound,
    projected_variances,
    spectral_distance,
    spectral_penalty,
    steady_anchor,
)
from keras_powerlaw.targets import relative_levels

ALPHAS = [0.5, 1.0, 1.5, 2.0]
FORMS = ["nearest", "paper", "log"]
N = np.arange(10, 101)
TAU, WIDTH = 10, 100
DECAY = TAU / N  # the target for λ_τ = 1


def penalty(tail, *settings, **options):
    return float(spectral_penalty(ops.convert_to_tensor(tail), *settings, **options))


class TestPenalty:
    @pytest.mark.parametrize("form", FORMS)
    def test_the_penalty_of_a_spectrum_that_is_its_own_target_is_zero(self, form):
        measured = Spectrum(np.sort(np.random.default_rng(0).gamma(1.0, size=60))[::-1])
        tail = 7.0 * measured.eigenvalues[9:]
        assert abs(penalty(tail, measured, form=form)) < 1e-6 < penalty(tail, form=form)

    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize("alpha", ALPHAS)
    @pytest.mark.parametrize("tau", [1, 10])
    def test_equals_the_equation_term_by_term(self, alpha, tau, form):
        variances = np.sort(np.random.default_rng(0).gamma(1.0, size=60))[::-1]
        np.testing.assert_allclose(
            penalty(variances[tau - 1 :], alpha, tau, 3.0, form),
            reference.penalty(variances, alpha, tau, 3.0, form),
            rtol=1e-5,
        )

    @pytest.mark.parametrize("alpha", ALPHAS)
    def test_is_the_authors_form_at_tau_11_on_sorted_estimates(self, alpha):
        estimates = np.random.default_rng(1).gamma(1.0, size=80)
        np.testing.assert_allclose(
            penalty(np.sort(estimates)[::-1][10:], alpha, 11, 2.0, "paper"),
            reference.authors_penalty(estimates, alpha, beta=2.0),
            rtol=1e-6,
        )

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
        small = 1e-3
        tail = 1 / np.arange(1, 6)
        tail[4] *= small
        _, gradient = value_and_gradient(
            lambda tail: spectral_penalty(tail, 1.0, 1, 1.0, form), tail
        )
        levels = tail * np.arange(1, 6)
        kappa = np.sum(levels**2) / np.sum(levels)
        r = small / kappa if form == "nearest" else small
        np.testing.assert_allclose(gradient[4] * tail[4], slope(r) / 5, rtol=1e-4)

    @pytest.mark.parametrize("scale", [1e-25, 1e-6, 1e6, 1e25])
    def test_nearest_knows_no_scale(self, scale):
        tail = np.random.default_rng(3).gamma(1.0, size=91)
        value, gradient = value_and_gradient(spectral_penalty, tail)
        scaled, smaller = value_and_gradient(spectral_penalty, scale * tail)
        np.testing.assert_allclose(scaled, value, rtol=1e-5)
        np.testing.assert_allclose(scale * smaller, gradient, rtol=1e-3, atol=1e-7)

    @pytest.mark.parametrize(("form", "alpha"), [("nearest", 1.0), ("log", 1.3)])
    def test_nothing_pushes_all_eigenvalues_up_or_down_together(self, form, alpha):
        # The gradients for log λₙ sum to zero: with "log", over the band of κ.
        tail = np.random.default_rng(13).gamma(2.0, size=31)
        _, gradient = value_and_gradient(
            lambda tail: spectral_penalty(tail, alpha, 10, form=form), tail
        )
        assert abs(np.sum(gradient * tail)) < 1e-5 * np.sum(np.abs(gradient * tail))

    def test_log_ratio_of_a_dead_direction_is_finite(self):
        value, gradient = value_and_gradient(
            lambda tail: spectral_penalty(tail, 0.0, 1, form="log"),
            np.array([1.0, 1.0, 1.0, 1.0, 0.0]),
        )
        np.testing.assert_allclose(value, np.log(1e-7) ** 2 / 5, rtol=1e-5)
        assert gradient[4] == 0

    @pytest.mark.parametrize("form", FORMS)
    def test_is_zero_without_a_target(self, form):
        value, gradient = value_and_gradient(
            lambda tail: spectral_penalty(tail, tau=3, form=form), np.zeros(5)
        )
        assert value == 0.0 and not gradient.any()

    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize("tail", [[np.nan, 1.0], [1.0, np.nan], [np.nan, 0.0]])
    def test_passes_nan_on(self, tail, form):
        assert np.isnan(penalty(np.array(tail, "float32"), tau=3, form=form))

    def test_few_samples_take_the_anchor_from_the_last_refresh(self):
        tail = ops.convert_to_tensor([2.0, 5.0, 1.0])
        anchors = [
            [float(steady_anchor(tail, share, count)) for count in (15, 16)]
            for share in (0.5, 0.0)  # known, unknown
        ]
        assert anchors == [[4.0, 2.0], [2.0, 2.0]]


class TestVariances:
    def test_projected_are_unbiased_for_any_batch_size(self):
        true = 1.0 / np.arange(1, 21)
        draws = np.random.default_rng(4).normal(size=(20000, 4, 20)) * np.sqrt(true)
        estimates = to_numpy(
            ops.vectorized_map(
                lambda batch: projected_variances(batch, ops.eye(20)),
                ops.convert_to_tensor(draws.astype("float32")),  # batches of four
            )
        )
        # Relative error of one estimate: √(2/(B−1)); of the mean of 20,000: 0.6 %.
        np.testing.assert_allclose(estimates.mean(axis=0), true, rtol=0.03)

    def test_small_ones_remain_beside_a_large_mean(self):
        activity = np.random.default_rng(6).normal(size=(100, 20)) * 1e-2 + 50.0
        activity = activity.astype("float32")
        found = unit_variances(activity)
        expected = reference.variances(activity, np.eye(20))
        np.testing.assert_allclose(found, expected, rtol=1e-4)

    def test_of_a_single_example_are_zero(self):
        one = ops.ones((1, 3))
        assert not to_numpy(projected_variances(one, ops.eye(3))).any()
        assert not to_numpy(covariance(one)[1]).any()


def penalty_of(activity, basis=None, alpha=1.0, tau=5, beta=2.0, form="nearest"):
    """Of a batch, along a frozen basis or its own eigenvectors."""
    activity = ops.convert_to_tensor(activity)
    if basis is None:
        variances = exact_variances(activity)
    else:
        basis = ops.convert_to_tensor(basis.astype("float32"))
        variances = projected_variances(activity, basis)
    return spectral_penalty(variances[tau - 1 :], alpha, tau, beta, form)


class TestGradientForActivations:
    # The root of an eigenvalue has no derivative at zero, where B < N.
    @pytest.mark.parametrize(
        ("kind", "batch", "form"),
        [
            *itertools.product(["frozen"], [15, 90], FORMS),
            *itertools.product(["exact"], [90], FORMS),
            ("exact", 15, "paper"),
        ],
    )
    @pytest.mark.parametrize("alpha", ALPHAS)
    def test_equals_finite_differences(self, kind, batch, form, alpha):
        rng = np.random.default_rng(1)
        activity = rng.normal(size=(batch, 40))
        basis = reference.orthonormal(40, rng) if kind == "frozen" else None

        def variances(x):
            if basis is not None:
                return reference.variances(x, basis)
            return reference.eigenvalues(x)

        def expected(x):
            return reference.penalty(variances(x), *settings, kappa_from=fixed)

        settings, fixed = (alpha, 5, 2.0, form), variances(activity)
        value, gradient = value_and_gradient(
            lambda x: penalty_of(x, basis, *settings), activity
        )
        np.testing.assert_allclose(value, expected(activity), rtol=1e-5)
        reference.assert_is_gradient(gradient, expected, activity, rng)

    def test_is_unchanged_when_the_activations_are_rotated(self):
        rng = np.random.default_rng(5)
        activity = rng.normal(size=(80, 20)) * np.linspace(1, 2, 20)
        rotation, basis = reference.orthonormal(20, rng), np.eye(20)
        x, rotated = (x.astype("float32") for x in (activity, activity @ rotation))
        for before, after in ((basis, rotation.T @ basis), (None, None)):
            found, expected = penalty_of(rotated, after), penalty_of(x, before)
            np.testing.assert_allclose(float(found), float(expected), rtol=1e-4)


class TestYielding:
    @pytest.mark.parametrize(("step", "most"), [(1, 0.015), (100, 1.5), (999, 3.0)])
    def test_scales_the_gradient_down_to_its_bound_and_keeps_the_value(
        self, step, most
    ):
        rng = np.random.default_rng(2)
        activity = rng.normal(size=(50, 30)) * np.arange(1, 31) ** -1.5
        basis = ops.convert_to_tensor(reference.orthonormal(30, rng).astype("float32"))

        def distance(x, bound):
            decay = ops.cast(relative_levels(0.1, 5, 30), "float32")
            variances = projected_variances(x, basis)[4:]
            return spectral_distance(variances, decay, 1.0, 5, "nearest", bound=bound)

        value, gradient = value_and_gradient(lambda x: distance(x, None), activity)
        found = value_and_gradient(
            lambda x: distance(x, gradient_bound(x, 2.0, step)), activity
        )
        # β/N = 2/30 of the distance is the penalty.
        bound = most / np.linalg.norm(activity - activity.mean(axis=0)) * 30 / 2
        norm = np.linalg.norm(gradient)
        np.testing.assert_allclose(found[0], value, rtol=1e-5)
        np.testing.assert_allclose(
            found[1], gradient * min(1, bound / norm), rtol=1e-3, atol=1e-5 * bound
        )
        assert (norm > bound) == (step < 999)


@pytest.mark.parametrize(
    ("count", "always", "shape"), [(200, 0, (1, 200)), (1991, 31, (8, 245))]
)
def test_groups_share_the_directions_evenly(count, always, shape):
    every, groups = direction_groups(count, always)
    assert groups.shape == shape and always <= every < always + len(groups)
    everything = np.append(np.arange(every), groups)
    np.testing.assert_array_equal(np.sort(everything), np.arange(count))
    assert np.all(np.diff(groups, axis=1) == len(groups))


def unit_variances(activity):
    """The package's estimates for every unit."""
    activity = ops.convert_to_tensor(activity)
    basis = ops.eye(activity.shape[1], dtype=activity.dtype)
    return to_numpy(projected_variances(activity, basis))


class TestFewExamples:
    """What the page on theory says of few examples, on simulated batches."""

    @pytest.mark.parametrize(
        ("draw", "excess_kurtosis"),
        [("standard_normal", 0.0), ("random", -1.2), ("standard_exponential", 6.0)],
    )
    def test_spread_of_estimates_follows_from_the_kurtosis(self, draw, excess_kurtosis):
        rng = np.random.default_rng(0)
        draws = [getattr(rng, draw)((16, 200)) for _ in range(250)]
        values = np.concatenate([unit_variances(x) for x in draws])
        true = np.var(draws)
        expected = np.sqrt(excess_kurtosis / 16 + 2 / 15)
        np.testing.assert_allclose(values.mean(), true, rtol=0.02)
        np.testing.assert_allclose(values.std() / true, expected, rtol=0.05)

    @pytest.mark.parametrize("batch", [2, 4, 64])
    def test_a_batch_scales_the_distance_to_the_nearest_and_adds_to_it(self, batch):
        # E R = c² R(λ) + (1 − c²) β M/N with c² = d/(d + 2), so that the minimum stays.
        tail = np.arange(TAU, 2001) ** -1.6
        c2, freedom = (batch - 1) / (batch + 1), batch - 1
        estimates = np.random.default_rng(8).chisquare(freedom, (100, len(tail)))
        simulated = np.mean([penalty(tail * each / freedom) for each in estimates])
        expected = c2 * penalty(tail) + (1 - c2) * len(tail) / 2000
        np.testing.assert_allclose(simulated, expected, rtol=0.02)
