"""Evaluations that are interrupted, and reports that are combined."""

import json
import re

import keras
import numpy as np
import pytest
from backend import only

from keras_powerlaw.plotting import plot_robustness
from keras_powerlaw.robustness.attacks.attack import Attack
from keras_powerlaw.robustness.evaluate import evaluate_robustness
from keras_powerlaw.robustness.report import RobustnessReport
from keras_powerlaw.robustness.summary import combine_reports

ATTACKS = ["noise", "uniform_noise", "pgd_ce", "pgd_dlr"]
EPSILONS = [0.0, 0.1, 0.2]
PIXELS = 12


@pytest.fixture
def model():
    return keras.Sequential(
        [
            keras.Input((PIXELS,)),
            keras.layers.Dense(16, activation="tanh"),
            keras.layers.Dense(3),
        ]
    )


@pytest.fixture
def data(model):
    x = np.random.default_rng(1).random((60, PIXELS))
    logits = keras.ops.convert_to_numpy(model(x.astype("float32")))
    return x, logits.argmax(axis=1)


def evaluate(model, data, path=None, attacks=ATTACKS, **options):
    options = {"pgd_steps": 10, "pgd_step_size": 0.03, "noise_draws": 2, **options}
    return evaluate_robustness(
        model, *data, EPSILONS, attacks, checkpoint=path, verbose=0, **options
    )


class Interrupted(KeyboardInterrupt):
    pass


@pytest.fixture
def units(monkeypatch):
    """The units of work that were done; set `.limit` to be interrupted."""

    class Units(list):
        limit = 1000

    done = Units()
    run = Attack.run.fget

    def counting(attack):
        def run_and_count(problem, epsilon, indices, progress):
            if len(done) == done.limit:
                raise Interrupted
            done.append((attack.name, epsilon))
            return run(attack)(problem, epsilon, indices, progress)

        return run_and_count

    monkeypatch.setattr(Attack, "run", property(counting))
    return done


class TestCheckpoint:
    @pytest.mark.parametrize("finished", [0, 1, 5, 7])
    def test_an_interrupted_evaluation_goes_on(
        self, model, data, tmp_path, units, finished
    ):
        path = tmp_path / "report.json"
        expected = evaluate(model, data)
        units.clear()
        units.limit = finished
        with pytest.raises(Interrupted):
            evaluate(model, data, path)
        units.limit = 1000
        report = evaluate(model, data, path)
        assert report == expected
        assert report.checks == expected.checks
        # Each unit was done once, and none at ε = 0, which changes nothing.
        expected = {(name, epsilon) for name in ATTACKS for epsilon in EPSILONS[1:]}
        assert len(units) == len(expected) and set(units) == expected

    def test_a_finished_one_is_read(self, model, data, tmp_path, units):
        path = str(tmp_path / "report.json")
        report = evaluate(model, data, path)
        units.limit = len(units)
        assert evaluate(model, data, path) == report
        with open(path, encoding="utf-8") as file:
            assert RobustnessReport.from_json(file.read()) == report

    def test_of_a_model_in_half_precision(self, data, tmp_path):
        layers = [keras.Input((PIXELS,)), keras.layers.Dense(3, dtype="bfloat16")]
        model = keras.Sequential(layers)
        path = tmp_path / "report.json"
        report = evaluate(model, data, path, ["pgd_ce", "noise"])
        assert evaluate(model, data, path, ["pgd_ce", "noise"]) == report

    def test_an_unfinished_one_is_no_report(self, model, data, tmp_path, units):
        path = tmp_path / "report.json"
        units.limit = 5
        with pytest.raises(Interrupted):
            evaluate(model, data, path)
        with pytest.raises(ValueError, match="Invalid value for argument `text`"):
            RobustnessReport.from_json(path.read_text(encoding="utf-8"))
        assert [file.name for file in tmp_path.iterdir()] == ["report.json"]

    def test_another_evaluation_is_refused(self, model, data, tmp_path):
        path = tmp_path / "report.json"
        evaluate(model, data, path, ["noise"])
        x, y = data
        message = "a checkpoint of the same evaluation; "
        for differing, options in (
            ("['seed']", {"seed": 1}),
            ("['attacks']", {"attacks": ["uniform_noise"]}),
            ("['x']", {"data": (1 - x, y)}),
            ("['y']", {"data": (x, (y + 1) % 3)}),
        ):
            arguments = {"data": data, "attacks": ["noise"], **options}
            with pytest.raises(ValueError, match=re.escape(message + differing)):
                evaluate(model, path=path, **arguments)
        model.set_weights([2 * weight for weight in model.get_weights()])
        with pytest.raises(ValueError, match=re.escape(message + "['model']")):
            evaluate(model, data, path, ["noise"])

    @pytest.mark.parametrize("text", ["", "[]", json.dumps({"epsilons": [0.1]})])
    def test_another_file_is_refused_and_kept(self, model, data, tmp_path, text):
        path = tmp_path / "report.json"
        path.write_text(text, encoding="utf-8")
        with pytest.raises(
            ValueError, match="argument `checkpoint`. Expected the path"
        ):
            evaluate(model, data, path, ["noise"])
        assert path.read_text(encoding="utf-8") == text


class TestMemory:
    @only("tensorflow", why="measures NumPy's memory, which is the same everywhere")
    def test_does_not_grow_with_the_number_of_images(self):
        import tracemalloc

        model = keras.Sequential([keras.Input((1000,)), keras.layers.Dense(3)])
        peaks = []
        for count in (100, 100, 1000):  # the first call compiles
            x = np.random.default_rng(0).random((count, 1000), dtype="float32")
            y = np.arange(count) % 3
            tracemalloc.start()
            attacks = ["fgsm", "pgd", *ATTACKS]
            evaluate(model, (x, y), attacks=attacks, batch_size=50, pgd_steps=7)
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        # One copy of the further images would be 3.6 MB.
        assert peaks[2] - peaks[1] < 0.5e6


def report(seed, clean=(True, True, True, False), **settings):
    rng = np.random.default_rng(seed)
    correct = {
        name: (rng.random((2, 4)) < 0.5) & np.array(clean)
        for name in ("fgsm", "pgd_ce")
    }
    return RobustnessReport(
        epsilons=np.array([0.1, 0.2]),
        clean_correct=np.array(clean),
        correct=correct,
        settings={"seed": seed, **settings},
    )


class TestCombining:
    def test_gives_mean_and_sample_standard_deviation(self):
        reports = [report(seed) for seed in range(3)]
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
        other = report(1)
        other.epsilons[0] = 0.05
        for reports, message in (
            ([report(0)], "at least two reports. Received: reports=1"),
            ([report(0), other], "reports with the same epsilons"),
            ([report(0), report(1, norm=2)], "the same settings other than the seed"),
        ):
            with pytest.raises(ValueError, match=re.escape(message)):
                combine_reports(reports)

    def test_the_worst_case_is_plotted_over_seeds(self):
        matplotlib = pytest.importorskip("matplotlib.figure")
        reports = [report(seed) for seed in range(3)]
        ax = plot_robustness(
            {"plain": reports}, "worst_case", matplotlib.Figure().subplots()
        )
        [line] = ax.lines
        expected = np.mean([r.worst_case_accuracy for r in reports], axis=0)
        np.testing.assert_allclose(line.get_ydata(), [75, *100 * expected])
        assert ax.get_title() == "worst case"
