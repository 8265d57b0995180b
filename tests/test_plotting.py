"""What the figures show: line data, markers, shading and labels."""

import dataclasses
import re
import sys

import matplotlib.pyplot as plt
import numpy as np
import pytest
from datasets import report_with

from keras_powerlaw.plotting import plot_robustness, plot_sensitivity, plot_spectrum
from keras_powerlaw.sensitivity import SensitivityMaps
from keras_powerlaw.spectrum import Spectrum

SINGLE = np.random.default_rng(0).normal(size=(2, 3, 4, 5, 1))
MAPS = SensitivityMaps((1, 10), np.array([2.0, 0.1]), SINGLE, SINGLE.sum(1))
REPORT = report_with(0.9, fgsm=[0.5, 0.1])


def power_law(exponent=1.0, units=200, scale=1.0):
    return Spectrum(scale * np.arange(1, units + 1.0) ** -exponent)


# Each draws what it draws by default, or on one of two axes.
PLOTS = {
    "spectrum": lambda axes=None: plot_spectrum(power_law(), axes and axes[0]),
    "robustness": lambda axes=None: plot_robustness(
        {"plain": REPORT}, "fgsm", axes and axes[0]
    ),
    "sensitivity": lambda axes=None: plot_sensitivity(MAPS, axes),
}


@pytest.fixture
def ax():
    return plt.figure().subplots()


def test_missing_matplotlib_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    message = re.escape("pip install 'keras-powerlaw[plots]'")
    with pytest.raises(ImportError, match=message):
        plot_spectrum(power_law())


def entries(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def bands(ax):
    """The lower and upper edge of every ±1 standard deviation band."""
    edges = []
    for band in ax.collections:
        x, y = band.get_paths()[0].vertices.T
        edges.append([[f(y[x == n]) for n in np.unique(x)] for f in (np.min, np.max)])
    return np.array(edges)


class TestFigures:
    def test_every_plot_makes_a_figure_of_its_own(self):
        other = plt.figure()
        other.subplots().plot([1, 2])
        drawn = [np.ravel(plot())[0].figure for plot in (*PLOTS.values(),) * 2]
        assert len({id(figure) for figure in [other, *drawn]}) == 7
        assert len(other.axes) == len(other.axes[0].lines) == 1
        assert [len(figure.axes) for figure in drawn] == [1, 1, 2] * 2

    @pytest.mark.parametrize("name", PLOTS)
    def test_axes_that_are_given_are_drawn_on(self, name):
        figure = plt.figure()
        axes = list(figure.subplots(1, 2))
        plt.figure()  # is now the current one
        assert np.ravel(PLOTS[name](axes))[0] is axes[0]
        assert len(figure.axes) == len(plt.get_fignums()) == 2
        assert not plt.gcf().axes


class TestSpectrum:
    def test_draws_variances_relative_to_the_one_at_tau(self, ax):
        spectrum = power_law(1.5, scale=7.0)
        assert plot_spectrum(spectrum, ax, tau=10) is ax

        curve = ax.lines[0]
        n = np.arange(1, 201)
        np.testing.assert_array_equal(curve.get_xdata(), n)
        np.testing.assert_allclose(curve.get_ydata(), (n / 10) ** -1.5)
        assert ax.get_xscale() == ax.get_yscale() == "log"
        assert ax.get_ylabel() == r"variance / $\lambda_{10}$"

    @pytest.mark.parametrize(
        ("target", "n", "name"),
        [(1.5, [10, 200], "$n^{-1.5}$"), (power_law(1.5, scale=7), None, "target")],
        ids=["number", "spectrum"],
    )
    def test_the_dashed_line_is_the_target_through_tau(self, ax, target, n, name):
        plot_spectrum(power_law(), ax, tau=10, alpha=target)
        (shading,), dashed = ax.patches, ax.lines[-1]
        assert (shading.get_x(), shading.get_x() + shading.get_width()) == (1, 10)
        assert dashed.get_linestyle() == "--"
        n = np.arange(10, 201) if n is None else np.array(n)
        np.testing.assert_array_equal(dashed.get_xdata(), n)
        np.testing.assert_allclose(dashed.get_ydata(), (n / 10) ** -1.5)
        assert entries(ax)[-1] == name

    def test_without_tau_nothing_is_shaded_and_the_first_variance_is_one(self, ax):
        plot_spectrum(power_law(scale=3.0), ax, tau=None)
        assert not ax.patches
        assert ax.lines[0].get_ydata()[0] == ax.lines[-1].get_xdata()[0] == 1
        assert entries(ax)[0] == "α = 1.00"  # one spectrum needs no label

    def test_a_star_marks_the_90_percent_dimension(self, ax):
        spectrum = power_law(1.2)
        plot_spectrum(spectrum, ax)
        curve, star, _ = ax.lines
        d = spectrum.dimension_90
        assert (star.get_marker(), star.get_color()) == ("*", curve.get_color())
        np.testing.assert_allclose(star.get_xydata(), [[d, (d / 10) ** -1.2]])

    def test_the_legend_gives_the_exponents(self, ax):
        plot_spectrum({"SpecReg": power_law(0.98), "plain": power_law(1.6)}, ax)
        assert entries(ax) == ["SpecReg (α = 0.98)", "plain (α = 1.60)", "$n^{-1}$"]
        assert ax.lines[0].get_color() != ax.lines[2].get_color()

    def test_several_seeds_give_a_geometric_mean_and_a_band(self, ax):
        exponents = [0.8, 1.0, 1.5]
        plot_spectrum({"SpecReg": [power_law(e) for e in exponents]}, ax)

        n = np.arange(1, 201)
        logarithms = -np.outer(exponents, np.log(n / 10))
        mean, std = logarithms.mean(axis=0), logarithms.std(axis=0, ddof=1)
        np.testing.assert_allclose(ax.lines[0].get_ydata(), np.exp(mean))
        band = np.exp([mean - std, mean + std])
        np.testing.assert_allclose(bands(ax), [band], rtol=1e-6)
        assert entries(ax)[0] == "SpecReg (α = 1.10 ± 0.36)"

    def test_numerically_zero_eigenvalues_are_left_out(self, ax):
        variances = np.concatenate([1 / np.arange(1, 51), np.full(3, 1e-18), [0.0]])
        plot_spectrum(Spectrum(variances), ax)
        drawn = np.isfinite(ax.lines[0].get_ydata())
        np.testing.assert_array_equal(drawn, np.arange(54) < 50)


class TestRobustness:
    def test_draws_accuracy_in_percent_from_the_clean_one_on(self, ax):
        assert plot_robustness({"plain": REPORT}, "fgsm", ax) is ax
        (curve,) = ax.lines
        np.testing.assert_array_equal(curve.get_xdata(), [0.0, 0.1, 0.2])
        np.testing.assert_allclose(curve.get_ydata(), [90.0, 50.0, 10.0])
        assert not ax.collections
        assert ax.get_ylim() == (0, 100)
        assert entries(ax) == ["plain"]

    def test_colours_and_lines_are_those_of_the_axes(self, ax):
        ax.set_prop_cycle(color=["black", "blue"], linestyle=["--", "-"])
        plot_robustness({"plain": REPORT, "SpecReg": REPORT}, "fgsm", ax)
        looks = [(curve.get_color(), curve.get_linestyle()) for curve in ax.lines]
        assert looks == [("black", "--"), ("blue", "-")]

    def test_epsilon_zero_is_not_drawn_twice(self, ax):
        report = report_with(0.9, epsilons=(0.0, 0.2), fgsm=[0.9, 0.1])
        plot_robustness({"plain": report}, "fgsm", ax)
        np.testing.assert_array_equal(ax.lines[0].get_xdata(), [0.0, 0.2])

    def test_several_seeds_give_a_mean_and_the_sample_standard_deviation(self, ax):
        reports = [report_with(0.9, fgsm=[0.5, 0.1]), report_with(0.8, fgsm=[0.7, 0.1])]
        plot_robustness({"plain": REPORT, "SpecReg": reports}, "fgsm", ax)

        mean = np.array([85.0, 60.0, 10.0])
        std = np.array([10.0, 20.0, 0.0]) / np.sqrt(2)
        np.testing.assert_allclose(ax.lines[1].get_ydata(), mean)
        np.testing.assert_allclose(bands(ax), [[mean - std, mean + std]])

    @pytest.mark.parametrize(
        ("attack", "clips", "title", "label"),
        [
            ("pgd", [(0, 255)], "PGD", "ε (max-norm, pixel range 0–255)"),
            ("fgsm", [None], "FGSM", "ε (max-norm)"),
            ("fgsm", [(0, 1), (0, 255)], "FGSM", "ε (max-norm)"),
            ("noise", [(0, 1)], "white noise", "noise standard deviation ε"),
        ],
    )
    def test_names_the_attack_and_what_epsilon_is(
        self, ax, attack, clips, title, label
    ):
        report = report_with(0.9, **{attack: [0.5, 0.1]})
        reports = [dataclasses.replace(report, settings={"clip": c}) for c in clips]
        plot_robustness({"plain": reports}, attack, ax)
        assert (ax.get_title(), ax.get_xlabel()) == (title, label)

    def test_the_worst_case_over_the_attacks_is_a_curve_of_its_own(self, ax):
        reports = [
            report_with(0.75, fgsm=[0.5, 0.25], pgd_ce=[broken, 0.0])
            for broken in (0.25, 0.5, 0.75)
        ]
        plot_robustness({"plain": reports}, "worst_case", ax)
        [line] = ax.lines
        expected = np.mean([report.worst_case_accuracy for report in reports], axis=0)
        np.testing.assert_allclose(line.get_ydata(), [75, *100 * expected])
        np.testing.assert_allclose(expected, [1.25 / 3, 0.0])
        assert ax.get_title() == "worst case"


class TestSensitivity:
    def test_draws_the_sum_over_images_on_a_scale_symmetric_around_zero(self):
        axes = plot_sensitivity(MAPS)
        assert axes.shape == (2,)
        for ax, total, n in zip(axes, MAPS.total, (1, 10), strict=True):
            (image,) = ax.images
            np.testing.assert_array_equal(image.get_array(), total[..., 0])
            low, high = image.get_clim()
            assert -low == high == np.abs(total).max()
            assert f"lambda_{{{n}}}" in ax.get_title()

    def test_draws_one_image_on_axes_of_its_own(self):
        row = plt.figure().subplots(1, 2)
        axes = plot_sensitivity(MAPS, row, image=2)
        assert list(axes) == list(row)
        np.testing.assert_array_equal(
            axes[1].images[0].get_array(), MAPS.maps[1, 2, :, :, 0]
        )


FLAT = SensitivityMaps((1,), np.ones(1), np.ones((1, 3, 9)), np.ones((1, 9)))
OTHERS = [report_with(0.9, epsilons=(x,), fgsm=[0.5]) for x in (0.2, 0.3)]
LENGTHS = [power_law(units=20), power_law(units=30)]
NOT_DRAWN = [
    (lambda: plot_spectrum(power_law(), tau=1.5), "`tau`. Expected None or an int"),
    (lambda: plot_spectrum({}), "Expected at least one spectrum."),
    (lambda: plot_spectrum({"a": 2}), "a Spectrum, or several by label. .*spectra=2"),
    (lambda: plot_spectrum({"a": []}), "spectra of the same length, at least one, for"),
    (lambda: plot_spectrum({"a": LENGTHS}), r"lengths \[20, 30\] for label 'a'"),
    (lambda: plot_spectrum({"a": power_law(units=9)}), "at least 10 .* spectra=9 for"),
    (lambda: plot_robustness({}, "fgsm"), "`reports`. Expected at least one report."),
    (lambda: plot_robustness({"a": []}, "fgsm"), "at least one report for each label."),
    (lambda: plot_robustness({"a": REPORT}, "pgd"), r"reports of 'a': \('fgsm',\)."),
    (lambda: plot_robustness({"a": OTHERS}, "fgsm"), "to have the same epsilons."),
    (lambda: plot_robustness(REPORT, "fgsm"), "by label. Received: reports="),
    (lambda: plot_sensitivity(SINGLE), "Expected SensitivityMaps. Received"),
    (lambda: plot_sensitivity(MAPS, [3, 4]), "Matplotlib's `Axes`. Received"),
    (lambda: plot_sensitivity(MAPS, [3]), "Expected 2 axes, one for each map"),
    (lambda: plot_sensitivity(MAPS, image=3), "None or an integer from 0 to 2"),
    (lambda: plot_sensitivity(FLAT), "Expected maps of images"),
]


@pytest.mark.parametrize(("draw", "message"), NOT_DRAWN)
def test_what_cannot_be_drawn_is_named(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()
    assert not plt.get_fignums()
