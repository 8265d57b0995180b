"""What a report says, evaluations that are interrupted, and reports combined."""

import json
import re

import keras
import numpy as np
import pytest
from backend import only
from models import hidden, network

from keras_powerlaw.robustness.evaluate import evaluate_robustness
from keras_powerlaw.robustness.report import RobustnessReport
from keras_powerlaw.robustness.summary import combine_reports

ATTACKS = ["noise", "uniform_noise", "pgd_ce", "pgd_dlr"]
EPSILONS = [0.0, 0.1, 0.2]
PIXELS = 12


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return network(hidden(16), shape=(PIXELS,), classes=3)


@pytest.fixture(scope="module")
def data(model):
    """Images, and as labels what the model says of them."""
    x = np.random.default_rng(1).random((60, PIXELS))
    logits = keras.ops.convert_to_numpy(model(x.astype("float32")))
    return x, logits.argmax(axis=1)


def evaluate(model, data, path=None, attacks=ATTACKS, **options):
    defaults = {
        **{"pgd_steps": 10, "pgd_step_size": 0.03, "noise_draws": 2},
        **{"batch_size": 30, "verbose": 0},
    }
    return evaluate_robustness(
        model, *data, EPSILONS, attacks, checkpoint=path, **{**defaults, **options}
    )


class TestReport:
    @pytest.fixture
    def report(self):
        return RobustnessReport(
            epsilons=np.array([0.1 + 0.2, 1 / 3]),
            clean_correct=np.array([True, True, True, False]),
            correct={
                "fgsm": np.array([[1, 1, 0, 0], [0, 0, 0, 0]], dtype=bool),
                "noise": np.array([[1, 1, 1, 0], [1, 1, 0, 0]], dtype=bool),
            },
            settings={"pgd_steps": 40, "clip": [0.0, 1.0]},
        )

    def test_accuracy_is_the_mean_over_images(self, report):
        assert report.clean_accuracy == 0.75
        np.testing.assert_array_equal(report.accuracy["fgsm"], [0.5, 0.0])
        np.testing.assert_array_equal(report.accuracy["noise"], [0.75, 0.5])

    def test_json_round_trip_is_exact(self, report):
        restored = RobustnessReport.from_json(report.to_json())
        assert restored == report
        assert restored.to_json() == report.to_json()
        assert restored.epsilons.dtype == np.float64
        np.testing.assert_array_equal(restored.epsilons, report.epsilons)
        np.testing.assert_array_equal(restored.clean_correct, report.clean_correct)
        for name, rows in report.correct.items():
            assert restored.correct[name].dtype == bool
            np.testing.assert_array_equal(restored.correct[name], rows)
        assert restored.settings == report.settings

    def test_json_takes_one_character_per_result(self, report):
        assert '"fgsm": ["1100", "0000"]' in report.to_json()

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

    def test_prints_as_a_table(self, report):
        assert str(report) == "\n".join(
            [
                "Accuracy in % on 4 images",
                "   epsilon    fgsm   noise",
                "     clean    75.0    75.0",
                "       0.3    50.0    75.0",
                "  0.333333     0.0    50.0",
            ]
        )

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

    def test_flags_survive_the_file(self, model, data):
        report = evaluate(model, data, attacks=["pgd_ce"], pgd_steps=1, checks=True)
        restored = RobustnessReport.from_json(report.to_json())
        assert restored.flags == report.flags != []

    def test_settings_repeat_the_evaluation(self, model, data):
        options = {"epsilons": [0.5], "attacks": ["noise"]}
        report = evaluate_robustness(model, *data, seed=3, clip=(-1, 2), **options)
        assert report.settings == {
            "norm": "inf",
            "pgd_steps": 40,
            "pgd_step_size": 0.03,
            "restarts": 2,
            "noise_draws": 1,
            "clip": [-1.0, 2.0],
            "seed": 3,
        }
        again = evaluate_robustness(model, *data, **options, **report.settings)
        assert again == report


def flip_results(path):
    """Turns every result in a checkpoint into its opposite, and returns them all."""
    state = json.loads(path.read_text(encoding="utf-8"))
    opposite = str.maketrans("01", "10")
    for name, rows in state["correct"].items():
        state["correct"][name] = [row.translate(opposite) for row in rows]
    path.write_text(json.dumps(state), encoding="utf-8")
    return state["correct"]


class TestCheckpoint:
    @pytest.fixture
    def interrupt(self, monkeypatch):
        """Returns a function that evaluates, and is interrupted in the next unit.

        A unit is one attack at one strength, and two batches, as the bar shows. Every
        third one is at ε = 0, which takes no time, so that nothing can interrupt it.
        """

        def evaluate_until(finished, *arguments):
            def update(bar, current, **_):
                if current == 2 * finished + 1:
                    raise KeyboardInterrupt

            with monkeypatch.context() as patch:
                patch.setattr(keras.utils.Progbar, "update", update)
                with pytest.raises(KeyboardInterrupt):
                    evaluate(*arguments, verbose=1)

        return evaluate_until

    @pytest.mark.parametrize("finished", [1, 2, 5, 11])
    def test_an_interrupted_evaluation_goes_on(
        self, model, data, tmp_path, interrupt, finished
    ):
        path = tmp_path / "report.json"
        interrupt(finished, model, data, path)
        expected = evaluate(model, data)
        report = evaluate(model, data, path)
        assert report == expected
        assert report.checks == expected.checks

    @pytest.mark.parametrize("finished", [1, 5, 11])
    def test_what_is_finished_is_read(self, model, data, tmp_path, interrupt, finished):
        """So whoever changes the file changes the report."""
        path = tmp_path / "report.json"
        interrupt(finished, model, data, path)
        changed = flip_results(path)
        assert sum(len(rows) for rows in changed.values()) == finished
        report = evaluate(model, data, path)
        for name, rows in changed.items():
            for bits, row in zip(rows, report.correct[name], strict=False):
                assert bits == "".join(map(str, row.astype(int)))

    def test_a_finished_one_is_read(self, model, data, tmp_path):
        path = tmp_path / "report.json"
        report = evaluate(model, data, str(path))
        assert RobustnessReport.from_json(path.read_text(encoding="utf-8")) == report
        flip_results(path)
        flipped = RobustnessReport.from_json(path.read_text(encoding="utf-8"))
        assert evaluate(model, data, str(path)) == flipped != report

    def test_of_a_model_in_half_precision(self, data, tmp_path):
        model = keras.Sequential(
            [keras.Input((PIXELS,)), keras.layers.Dense(3, dtype="bfloat16")]
        )
        path = tmp_path / "report.json"
        report = evaluate(model, data, path, ["pgd_ce", "noise"])
        assert evaluate(model, data, path, ["pgd_ce", "noise"]) == report

    def test_an_unfinished_one_is_no_report(self, model, data, tmp_path, interrupt):
        path = tmp_path / "report.json"
        interrupt(5, model, data, path)
        with pytest.raises(ValueError, match="Invalid value for argument `text`"):
            RobustnessReport.from_json(path.read_text(encoding="utf-8"))
        assert [file.name for file in tmp_path.iterdir()] == ["report.json"]

    def test_another_evaluation_is_refused(self, model, data, tmp_path):
        path = tmp_path / "report.json"
        model = keras.models.clone_model(model)
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

    def test_another_structure_with_the_same_weights_is_refused(self, data, tmp_path):
        """Even where the outputs are those of the other."""
        path = tmp_path / "report.json"
        step = keras.layers.Lambda(lambda x: keras.ops.where(x > 5, 0.0, x))
        plain = network(hidden(16), shape=(PIXELS,), classes=3)
        evaluate(plain, data, path, ["noise"])
        for parts in (
            [keras.layers.Rescaling(1.0), hidden(16)],
            [keras.layers.Dense(16, activation="relu")],
            [step, hidden(16)],
        ):
            other = network(*parts, shape=(PIXELS,), classes=3)
            other.set_weights(plain.get_weights())
            message = re.escape("a checkpoint of the same evaluation; ['structure']")
            with pytest.raises(ValueError, match=message):
                evaluate(other, data, path, ["noise"])

    def test_a_model_made_again_is_the_same(self, data, tmp_path):
        """Keras numbers its layers on, and draws new seeds."""
        path = tmp_path / "report.json"
        reports = []
        for trainable in (True, False):
            inputs = keras.Input((PIXELS,))
            left = keras.layers.Dense(8, activation="tanh", trainable=trainable)
            x = keras.layers.Concatenate()([left(inputs), inputs])
            x = keras.layers.Dropout(0.5)(x)
            model = keras.Model(inputs, keras.layers.Dense(3)(x))
            model.set_weights([np.ones(weight.shape) for weight in model.weights])
            reports.append(evaluate(model, data, path, ["noise"]))
        assert reports[0] == reports[1]

    def test_what_no_config_tells_shows_in_the_outputs(self, data, tmp_path):
        class Shift(keras.layers.Layer):
            by = 0.0

            def call(self, x):
                return x + self.by

        path = tmp_path / "report.json"
        shift = Shift()
        model = network(shift, shape=(PIXELS,), classes=3)
        evaluate(model, data, path, ["noise"])
        shift.by = 3.0
        message = re.escape("a checkpoint of the same evaluation; ['outputs']")
        with pytest.raises(ValueError, match=message):
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
    @pytest.mark.slow
    def test_does_not_grow_with_the_number_of_images(self):
        import tracemalloc

        model = network(shape=(1000,), classes=3)
        peaks = []
        for count in (100, 1000, 2000):
            x = np.random.default_rng(0).random((count, 1000), dtype="float32")
            y = np.arange(count) % 3
            tracemalloc.start()
            attacks = ["fgsm", "pgd", *ATTACKS]
            evaluate(model, (x, y), attacks=attacks, batch_size=50, pgd_steps=7)
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        # One copy of the further images would be 4 MB.
        assert peaks[2] - peaks[1] < 0.5e6


def random_report(seed, clean=(True, True, True, False), **settings):
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
