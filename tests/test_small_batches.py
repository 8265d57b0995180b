"""What few examples do to the penalty: the closed forms of the page on theory.

They are those of benchmarks/small_batches/, which prints the page's tables; here the
package's functions meet them, on simulated batches.
"""

import numpy as np
import pytest
from backend import to_numpy, value_and_gradient
from keras import ops
from scipy import special

from benchmarks.small_batches import bases, closed_forms, descent
from keras_powerlaw.penalty import projected_variances, spectral_penalty
from keras_powerlaw.spectrum import fit_power_law

TAU, WIDTH = 10, 100
DECAY = TAU / np.arange(TAU, WIDTH + 1)  # the target for λ_τ = 1


def estimates(batch, shape, rng):
    """Of variance 1, as `batch` Gaussian examples give them."""
    return rng.chisquare(batch - 1, shape) / (batch - 1)


def variances(activity):
    """The package's estimates for every unit."""
    activity = ops.convert_to_tensor(activity)
    basis = ops.eye(activity.shape[1], dtype=activity.dtype)
    return to_numpy(projected_variances(activity, basis))


def penalties(tails):
    """Eq. (2) for each row, with β such that it is the sum over the directions."""

    def penalty(tail):
        return spectral_penalty(tail, tau=TAU, beta=WIDTH, form="paper")

    return ops.vectorized_map(penalty, tails)


def forces(tails):
    """The gradient for log λₙ, of every batch."""
    return tails * value_and_gradient(lambda x: ops.sum(penalties(x)), tails)[1]


class TestEstimates:
    @pytest.mark.parametrize(
        "draw, excess_kurtosis",
        [("standard_normal", 0.0), ("random", -1.2), ("standard_exponential", 6.0)],
    )
    def test_standard_deviation_follows_from_the_kurtosis(self, draw, excess_kurtosis):
        rng = np.random.default_rng(0)
        batch, units = 16, 200
        draws = [getattr(rng, draw)((batch, units)) for _ in range(250)]
        values = np.concatenate([variances(x) for x in draws])
        true = np.var(draws)
        expected = np.sqrt(excess_kurtosis / batch + 2 / (batch - 1))
        np.testing.assert_allclose(values.mean(), true, rtol=0.02)
        np.testing.assert_allclose(values.std() / true, expected, rtol=0.05)

    def test_logarithm_and_reciprocal(self):
        batch, units = 16, 200
        rng = np.random.default_rng(1)
        values = np.concatenate(
            [variances(rng.normal(size=(batch, units))) for _ in range(250)]
        )
        half = (batch - 1) / 2
        np.testing.assert_allclose(
            np.log(values).mean(), special.digamma(half) - np.log(half), atol=0.006
        )
        np.testing.assert_allclose(
            np.log(values).std(), np.sqrt(special.polygamma(1, half)), rtol=0.02
        )
        np.testing.assert_allclose((1 / values).mean(), 1 + 2 / (batch - 3), rtol=0.01)


class TestPenaltyOnTarget:
    @pytest.mark.parametrize("batch", [32, 500])
    def test_is_what_the_f_distribution_gives(self, batch):
        rng = np.random.default_rng(2)
        drawn = DECAY * estimates(batch, (10000, 91), rng)
        values = to_numpy(penalties(ops.convert_to_tensor(drawn)))
        square, hinge = closed_forms.expected_penalty(closed_forms.Ratio(batch))
        np.testing.assert_allclose(np.mean(values), 90 * (square + hinge), rtol=0.03)

    def test_noise_of_the_anchor_does_not_average_out(self):
        batch = 64
        ratios = estimates(batch, (4000, 91), np.random.default_rng(3))
        means = np.log(ratios[:, 1:] / ratios[:, :1]).mean(axis=1)
        one = special.polygamma(1, (batch - 1) / 2)
        np.testing.assert_allclose(means.var(), one * (1 + 1 / 90), rtol=0.05)


class TestEquilibrium:
    @pytest.mark.parametrize("batch", [32, 500])
    @pytest.mark.parametrize("rho", [0.8, 1.0])
    def test_expected_force(self, batch, rho):
        rng = np.random.default_rng(4)
        tail = DECAY * np.r_[1.0, np.full(90, rho)]
        drawn = forces(tail * estimates(batch, (10000, 91), rng))[:, 1:].mean(axis=1)
        expected = closed_forms.expected_force(closed_forms.Ratio(batch), rho)
        margin = 4 * np.std(drawn) / np.sqrt(len(drawn))
        assert margin < 0.06
        assert abs(np.mean(drawn) - expected) < margin

    @pytest.mark.parametrize("batch, expected", [(64, 0.793), (500, 0.908)])
    def test_of_gradient_descent(self, batch, expected):
        ratio = closed_forms.Ratio(batch)
        np.testing.assert_allclose(closed_forms.equilibrium(ratio), expected, atol=5e-4)
        rng = np.random.default_rng(5)
        log_variances, path = np.tile(np.log(DECAY), (99, 1)), []  # 99 descents
        for _ in range(50):
            drawn = np.exp(log_variances) * estimates(batch, (99, 91), rng)
            log_variances -= 0.08 * forces(drawn)
            path.append(log_variances.mean(axis=0))
        found = np.exp(np.mean(path[25:], axis=0))
        assert found[0] == 1.0  # λ_τ is a constant
        np.testing.assert_allclose(np.mean(found[1:] / DECAY[1:]), expected, atol=0.02)
        # The same step for all n > τ: the exponent stays.
        whole = np.r_[np.ones(TAU - 1), found]
        exponent, _ = fit_power_law(whole, TAU + 1, WIDTH)
        np.testing.assert_allclose(exponent, 1.0, atol=0.02)


class TestAnchors:
    @pytest.mark.parametrize("exponent", [1.0, 1.6])
    def test_expectation_and_spread(self, exponent):
        batch, last = 64, 40
        variances = np.arange(1.0, WIDTH + 1) ** -exponent
        drawn = variances[TAU - 1 :] * estimates(
            batch, (20000, 91), np.random.default_rng(6)
        )
        size = last - TAU + 1
        simulated = {
            "the batch's own": drawn[:, 0],
            "band, ratio of sums": drawn[:, :size].sum(axis=1) / DECAY[:size].sum(),
            "band, geometric mean": np.exp(
                np.log(drawn[:, :size] / DECAY[:size]).mean(axis=1)
            ),
            "last refresh's": drawn.sum(axis=1)
            * variances[TAU - 1]
            / variances[TAU - 1 :].sum(),
        }
        closed = closed_forms.anchors(variances, batch)
        assert closed.keys() == simulated.keys()
        for name, values in simulated.items():
            mean, spread = closed[name]
            np.testing.assert_allclose(
                values.mean() / variances[TAU - 1], mean, rtol=5e-3, err_msg=name
            )
            np.testing.assert_allclose(
                values.std() / values.mean(), spread, rtol=0.03, err_msg=name
            )

    def test_a_band_does_not_hold_a_spectrum_that_the_hinge_pushes_down(self):
        settings = {"batch": 500, "anchor": "geometric", "steps": 1000}
        scale, _ = descent.descend(force=descent.eq2_force, **settings)
        assert scale < 0.1
        scale, ratio = descent.descend(force=descent.log_ratio_force, **settings)
        np.testing.assert_allclose([scale, ratio], 1.0, atol=0.02)

    def test_the_nearest_power_law_stays(self):
        for batch in (8, 64):
            scale, ratio = descent.descend(
                batch, "nearest", descent.nearest_force, steps=1000
            )
            np.testing.assert_allclose([scale, ratio], 1.0, atol=0.03)

    @pytest.mark.parametrize("batch", [2, 4, 64])
    def test_a_batch_scales_the_distance_to_the_nearest_and_adds_to_it(self, batch):
        # E R = c² R(λ) + (1 − c²) β M/N with c² = d/(d + 2), so that the minimum stays.
        units = 2000
        n = np.arange(TAU, units + 1)
        tail = n**-1.6
        d = batch - 1
        c2 = d / (d + 2)
        draws = tail * estimates(batch, (100, len(n)), np.random.default_rng(8))
        *drawn, true = (
            float(spectral_penalty(ops.convert_to_tensor(each)))
            for each in (*draws, tail)
        )
        simulated = np.mean(drawn)
        expected = c2 * true + (1 - c2) * len(n) / units
        np.testing.assert_allclose(simulated, expected, rtol=0.02)


class TestBasisFromFewExamples:
    def test_spreads_the_measured_and_flattens_the_projected(self):
        true = 1 / np.arange(1.0, 201)
        measured, along = bases.sample_eigenvectors(
            true, 3 * 200, np.random.default_rng(7)
        )
        exponents = [
            fit_power_law(values, 11, 200)[0] for values in (measured, true, along)
        ]
        assert exponents[0] > exponents[1] + 0.05 > exponents[2] + 0.1
        # Schur and Horn: the diagonal in any basis is majorized by the eigenvalues.
        np.testing.assert_allclose(along.sum(), true.sum())
        partial = np.cumsum(np.sort(along)[::-1])
        assert np.all(partial <= np.cumsum(true) + 1e-12)
