"""What a report says and how it is stored, and reports combined."""

import re

import numpy as np
import pytest

from keras_powerlaw import RobustnessReport, combine_reports


@pytest.fixture
def report():
    return RobustnessReport(
        epsilons=np.array([0.1 + 0.2, 1 / 3]),
        clean_correct=np.array([True, True, True, False]),
        correct={
            "fgsm": np.array([[1, 1, 0, 0], [0, 0, 0, 0]], dtype=bool),
            "noise": np.array([[1, 1, 1, 0], [1, 1, 0, 0]], dtype=bool),
        },
        settings={"pgd_steps": 40, "clip": [0.0, 1.0]},
        draw_accuracy={"noise": np.array([[0.75, 0.5], [1.0, 0.75]])},
        checks={"zero_gradients": 0.5, "limits": {"zero_gradients": 0.0}},
    )


class TestReport:
    def test_accuracy_is_the_mean_over_images_and_draws(self, report):
        assert report.clean_accuracy == 0.75
        np.testing.assert_array_equal(report.accuracy["fgsm"], [0.5, 0.0])
        np.testing.assert_array_equal(report.accuracy["noise"], [0.875, 0.625])

    def test_json_round_trip_is_exact(self, report):
        restored = RobustnessReport.from_json(report.to_json())
        assert restored.to_json() == report.to_json()
        np.testing.assert_array_equal(restored.epsilons, report.epsilons)
        np.testing.assert_array_equal(restored.clean_correct, report.clean_correct)
        for name, rows in report.correct.items():
            assert restored.correct[name].dtype == bool
            np.testing.assert_array_equal(restored.correct[name], rows)
        assert restored.settings == report.settings
        assert restored.flags == report.flags != []

    def test_results_make_reports_differ(self, report):
        other = RobustnessReport.from_json(report.to_json())
        other.correct["fgsm"][0, 0] = False
        assert other != report
        assert report != report.to_json()

    @pytest.mark.parametrize("text", ["", "[]", "{}", '{"epsilons": [0.1]}'])
    def test_other_text_is_refused(self, text):
        message = "Invalid value for argument `text`. Expected the text returned by "
        with pytest.raises(ValueError, match=message):
            RobustnessReport.from_json(text)

    def test_prints_as_a_table_with_flags(self, report):
        *table, empty, flags, flag = str(report).split("\n")
        assert table == [
            "Accuracy in % on 4 images",
            "   epsilon    fgsm   noise",
            "     clean    75.0    75.0",
            "       0.3    50.0    87.5",
            "  0.333333     0.0    62.5",
        ]
        assert (empty, flags) == ("", "Flags:")
        assert flag == f"- {report.flags[0]}"

    def test_the_worst_case_is_the_mean_of_the_minimum_not_the_minimum_of_the_means(
        self,
    ):
        report = RobustnessReport(
            epsilons=np.array([0.1, 0.2]),
            clean_correct=np.array([True, True, True, False]),
            correct={
                "fgsm": np.array([[1, 0, 1, 1], [1, 1, 1, 1]], dtype=bool),
                "pgd": np.array([[0, 1, 1, 1], [1, 1, 1, 1]], dtype=bool),
                "noise": np.zeros((2, 4), dtype=bool),
            },
        )
        # Gaussian noise leaves the ball; what fell at 0.1 has fallen at 0.2.
        np.testing.assert_array_equal(
            report.worst_case, [[False, False, True, False]] * 2
        )
        np.testing.assert_array_equal(report.worst_case_accuracy, [0.25, 0.25])


def random_report(seed, **settings):
    rng = np.random.default_rng(seed)
    clean = np.array([True, True, True, False])
    return RobustnessReport(
        epsilons=np.array([0.1, 0.2]),
        clean_correct=clean,
        correct={
            name: (rng.random((2, 4)) < 0.5) & clean for name in ("fgsm", "pgd_ce")
        },
        settings={"seed": seed, **settings},
    )


class TestCombining:
    def test_gives_mean_and_sample_standard_deviation(self):
        reports = [random_report(seed) for seed in range(3)]
        summary = combine_reports(reports)
        assert summary.count == 3
        assert summary.clean == (0.75, 0.0)
        for name in ("fgsm", "pgd_ce"):
            rows = np.array([r.correct[name].mean(axis=1) for r in reports])
            np.testing.assert_allclose(summary.mean[name], rows.sum(axis=0) / 3)
            deviation = np.sqrt(((rows - rows.mean(axis=0)) ** 2).sum(axis=0) / 2)
            np.testing.assert_allclose(summary.std[name], deviation)
        worst = np.array([r.worst_case_accuracy for r in reports])
        np.testing.assert_allclose(summary.mean["worst case"], worst.mean(axis=0))

    def test_prints_as_a_table_in_text_and_markdown(self):
        reports = [
            RobustnessReport(
                epsilons=np.array([0.05]),
                clean_correct=np.array([True, seed == 0]),
                correct={"pgd": np.array([[seed == 0, False]])},
            )
            for seed in range(2)
        ]
        summary = combine_reports(reports)
        assert str(summary) == "\n".join(
            [
                "Accuracy in %, mean ± standard deviation of 2 reports",
                "   epsilon           pgd",
                "     clean   75.0 ± 35.4",
                "      0.05   25.0 ± 35.4",
            ]
        )
        assert summary.to_markdown() == "\n".join(
            [
                "| ε | pgd |",
                "| --- | --- |",
                "| clean | 75.0 ± 35.4 |",
                "| 0.05 | 25.0 ± 35.4 |",
            ]
        )

    def test_refuses_what_cannot_be_combined(self):
        other = random_report(1)
        other.epsilons[0] = 0.05
        for reports, message in (
            ([random_report(0)], "at least two reports. Received: reports=1"),
            ([random_report(0), other], "reports with the same epsilons"),
            (
                [random_report(0), random_report(1, norm=2)],
                "the same settings other than the seed",
            ),
        ):
            with pytest.raises(ValueError, match=re.escape(message)):
                combine_reports(reports)
