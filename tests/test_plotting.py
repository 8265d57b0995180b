"""What the figures show: line data, markers, shading and labels."""

import dataclasses
import re
import sys

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
from datasets import report_with
from matplotlib.colors import to_rgba

from keras_powerlaw.plotting import plot_robustness, plot_sensitivity, plot_spectrum
from keras_powerlaw.spectral.sensitivity import SensitivityMaps
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


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture
def ax():
    return plt.figure(figsize=(4, 3), layout="constrained").subplots()


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
    @pytest.mark.parametrize("second", PLOTS)
    @pytest.mark.parametrize("first", PLOTS)
    def test_every_plot_makes_a_figure_of_its_own(self, first, second):
        other = plt.figure()
        other.subplots().plot([1, 2])
        drawn = [np.ravel(PLOTS[name]())[0].figure for name in (first, second)]
        assert len({id(figure) for figure in [other, *drawn]}) == 3
        assert len(other.axes) == len(other.axes[0].lines) == 1
        for name, figure in zip((first, second), drawn, strict=True):
            assert len(figure.axes) == (2 if name == "sensitivity" else 1)

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
        assert ax.get_xlabel() == "principal component n"
        assert ax.get_ylabel() == r"variance / $\lambda_{10}$"

    def test_shades_the_components_that_are_left_free(self, ax):
        plot_spectrum(power_law(), ax, tau=10)
        (shading,) = ax.patches
        assert (shading.get_x(), shading.get_x() + shading.get_width()) == (1, 10)

    def test_the_dashed_line_is_the_power_law_through_tau(self, ax):
        plot_spectrum(power_law(), ax, tau=10, alpha=1.5)
        dashed = ax.lines[-1]
        assert dashed.get_linestyle() == "--"
        np.testing.assert_array_equal(dashed.get_xdata(), [10, 200])
        np.testing.assert_allclose(dashed.get_ydata(), [1.0, 20**-1.5])
        assert entries(ax)[-1] == "$n^{-1.5}$"

    def test_the_dashed_line_follows_another_spectrum(self, ax):
        other = power_law(1.3, units=50, scale=7.0)
        plot_spectrum(power_law(units=50), ax, alpha=other)
        dashed = ax.lines[-1]
        n = np.arange(10, 51)
        np.testing.assert_array_equal(dashed.get_xdata(), n)
        np.testing.assert_allclose(dashed.get_ydata(), (n / 10) ** -1.3)
        assert entries(ax)[-1] == "target"

    def test_without_tau_nothing_is_shaded_and_the_first_variance_is_one(self, ax):
        plot_spectrum(power_law(scale=3.0), ax, tau=None)
        assert not ax.patches
        assert ax.lines[0].get_ydata()[0] == 1.0
        assert ax.lines[-1].get_xdata()[0] == 1
        assert ax.get_ylabel() == r"variance / $\lambda_{1}$"

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

    def test_one_spectrum_needs_no_label(self, ax):
        plot_spectrum(power_law(), ax)
        assert entries(ax)[0] == "α = 1.00"

    def test_several_seeds_give_a_geometric_mean_and_a_band(self, ax):
        exponents = [0.8, 1.0, 1.5]
        plot_spectrum({"SpecReg": [power_law(e) for e in exponents]}, ax)

        n = np.arange(1, 201)
        logarithms = -np.outer(exponents, np.log(n / 10))
        mean, std = logarithms.mean(axis=0), logarithms.std(axis=0, ddof=1)
        np.testing.assert_allclose(ax.lines[0].get_ydata(), np.exp(mean))
        np.testing.assert_allclose(
            bands(ax), [np.exp([mean - std, mean + std])], rtol=1e-6
        )
        assert entries(ax)[0] == "SpecReg (α = 1.10 ± 0.36)"

    def test_numerically_zero_eigenvalues_are_left_out(self, ax):
        variances = np.concatenate([1 / np.arange(1, 51), np.full(3, 1e-18), [0.0]])
        plot_spectrum(Spectrum(variances), ax)
        drawn = np.isfinite(ax.lines[0].get_ydata())
        np.testing.assert_array_equal(drawn, np.arange(54) < 50)

    @pytest.mark.parametrize("option", [{"tau": x} for x in (0, -1, 1.5, True)])
    def test_invalid_tau_is_named(self, option):
        message = "argument `tau`. Expected None or an integer of at least 1"
        with pytest.raises(ValueError, match=message):
            plot_spectrum(power_law(), **option)

    def test_invalid_alpha_is_named(self):
        with pytest.raises(ValueError, match="argument `alpha`. Expected a finite"):
            plot_spectrum(power_law(), alpha="1/n")

    @pytest.mark.parametrize(
        "spectra, message",
        [
            ({}, "Expected at least one spectrum."),
            ({"a": 2}, "Expected a Spectrum, or several by label. Received: spectra=2"),
            ({"a": []}, "Expected spectra of the same length, at least one, for each"),
            (
                {"a": [power_law(units=20), power_law(units=30)]},
                r"Received: spectra=lengths \[20, 30\] for label 'a'",
            ),
            (
                {"a": power_law(units=9)},
                "Expected at least 10 eigenvalues above rounding errors, .* "
                "spectra=9 for label",
            ),
        ],
    )
    def test_spectra_that_cannot_be_drawn_are_named(self, spectra, message):
        with pytest.raises(ValueError, match=message):
            plot_spectrum(spectra)
        assert not plt.get_fignums()


class TestRobustness:
    def test_draws_accuracy_in_percent_from_the_clean_one_on(self, ax):
        assert plot_robustness({"plain": REPORT}, "fgsm", ax) is ax
        (curve,) = ax.lines
        np.testing.assert_array_equal(curve.get_xdata(), [0.0, 0.1, 0.2])
        np.testing.assert_allclose(curve.get_ydata(), [90.0, 50.0, 10.0])
        assert not ax.collections
        assert ax.get_ylim() == (0, 100)
        assert ax.get_ylabel() == "accuracy (%)"
        assert entries(ax) == ["plain"]

    def test_each_label_has_its_own_marker(self, ax):
        labels = ["plain", "eq. (2)", "log"]
        plot_robustness(dict.fromkeys(labels, REPORT), "fgsm", ax)
        assert len({curve.get_marker() for curve in ax.lines}) == 3

    @pytest.mark.parametrize("draw", ["spectrum", "robustness"])
    def test_colours_and_lines_are_those_of_the_axes(self, ax, draw):
        ax.set_prop_cycle(color=["black", "blue"], linestyle=["--", "-"])
        if draw == "spectrum":
            plot_spectrum({"plain": power_law(), "SpecReg": power_law()}, ax)
            curves = ax.lines[:4:2]
        else:
            plot_robustness({"plain": REPORT, "SpecReg": REPORT}, "fgsm", ax)
            curves = ax.lines
        looks = [(curve.get_color(), curve.get_linestyle()) for curve in curves]
        assert looks == [("black", "--"), ("blue", "-")]

    def test_epsilon_zero_is_not_drawn_twice(self, ax):
        report = report_with(0.9, epsilons=(0.0, 0.2), fgsm=[0.9, 0.1])
        plot_robustness({"plain": report}, "fgsm", ax)
        np.testing.assert_array_equal(ax.lines[0].get_xdata(), [0.0, 0.2])

    def test_several_seeds_give_a_mean_and_the_sample_standard_deviation(self, ax):
        reports = [report_with(0.9, fgsm=[0.5, 0.1]), report_with(0.8, fgsm=[0.7, 0.1])]
        plot_robustness(
            {"plain": report_with(1.0, fgsm=[0.2, 0.0]), "SpecReg": reports}, "fgsm", ax
        )

        mean = np.array([85.0, 60.0, 10.0])
        std = np.array([10.0, 20.0, 0.0]) / np.sqrt(2)
        np.testing.assert_allclose(ax.lines[1].get_ydata(), mean)
        np.testing.assert_allclose(bands(ax), [[mean - std, mean + std]])
        (band,) = ax.collections
        color = to_rgba(ax.lines[1].get_color(), alpha=band.get_alpha())
        np.testing.assert_allclose(band.get_facecolor()[0], color)

    @pytest.mark.parametrize(
        "attack, title, label",
        [
            ("fgsm", "FGSM", "ε (max-norm, pixel range 0–1)"),
            ("pgd", "PGD", "ε (max-norm, pixel range 0–1)"),
            ("noise", "white noise", "noise standard deviation ε"),
        ],
    )
    def test_names_the_attack_and_what_epsilon_is(self, ax, attack, title, label):
        plot_robustness({"plain": report_with(0.9, **{attack: [0.5, 0.1]})}, attack, ax)
        assert ax.get_title() == title
        assert ax.get_xlabel() == label

    @pytest.mark.parametrize(
        "clips, label",
        [
            ([[0.0, 255.0]], "ε (max-norm, pixel range 0–255)"),
            ([None], "ε (max-norm)"),
            ([[0.0, 1.0], [0.0, 255.0]], "ε (max-norm)"),
        ],
    )
    def test_names_the_range_of_the_pixels(self, ax, clips, label):
        reports = [
            dataclasses.replace(REPORT, settings={"clip": clip}) for clip in clips
        ]
        plot_robustness({"plain": reports}, "fgsm", ax)
        assert ax.get_xlabel() == label

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

    @pytest.mark.parametrize(
        "reports, attack, message",
        [
            ({}, "fgsm", "argument `reports`. Expected at least one report."),
            ({"a": []}, "fgsm", "Expected at least one report for each label."),
            (
                {"a": REPORT},
                "pgd",
                r"argument `attack`. Expected an attack in the reports of 'a': "
                r"\('fgsm',\). Received: attack='pgd'",
            ),
            (
                {
                    "a": [
                        report_with(0.9, epsilons=(0.2,), fgsm=[0.5]),
                        report_with(0.9, epsilons=(0.3,), fgsm=[0.5]),
                    ]
                },
                "fgsm",
                "Expected reports of one label to have the same epsilons.",
            ),
        ],
    )
    def test_reports_that_cannot_be_drawn_are_named(self, reports, attack, message):
        with pytest.raises(ValueError, match=message):
            plot_robustness(reports, attack)
        assert not plt.get_fignums()

    def test_a_report_without_a_label_is_refused(self):
        for reports in REPORT, {"a": 2}:
            with pytest.raises(ValueError, match="by label. Received: reports="):
                plot_robustness(reports, "fgsm")


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

    @pytest.mark.parametrize(
        ("maps", "options", "message"),
        [
            (SINGLE, {}, "Expected SensitivityMaps. Received"),
            (MAPS, {"axes": [3, 4]}, "Expected Matplotlib's `Axes`. Received"),
            (MAPS, {"axes": [3]}, "Expected 2 axes, one for each map"),
            (MAPS, {"image": 3}, "Expected None or an integer from 0 to 2"),
            (
                SensitivityMaps((1,), np.ones(1), np.ones((1, 3, 9)), np.ones((1, 9))),
                {},
                "Expected maps of images",
            ),
        ],
    )
    def test_what_cannot_be_drawn_is_named(self, maps, options, message):
        with pytest.raises(ValueError, match=message):
            plot_sensitivity(maps, **options)
