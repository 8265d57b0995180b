"""Each flag, on a network built to raise it, and none on an ordinary network."""

import dataclasses

import keras
import numpy as np
import pytest
from datasets import report_with

from keras_powerlaw import evaluate_robustness
from keras_powerlaw.robustness import flags

EPSILONS = [0.02, 0.05, 0.1, 0.2]


@pytest.fixture(scope="module")
def data(digits):
    return digits[1]


def evaluate(model, data, attacks=("pgd_ce",), epsilons=EPSILONS, **options):
    options = {"pgd_steps": 20, "pgd_step_size": 0.02, "restarts": 1, **options}
    return evaluate_robustness(model, *data, epsilons, attacks, **options)


def named(report):
    return {flag.name: flag for flag in report.flags}


def behind(layer, model):
    """The model with a layer before it."""
    return keras.Sequential([keras.Input((8, 8, 1)), layer, model])


def results(**accuracies):
    return report_with(0.95, images=10_000, **accuracies)


class TestMeasuredFlags:
    @pytest.mark.parametrize("norm, scale", [(np.inf, 1), (2, 5)])
    def test_an_ordinary_network_raises_none(self, trained, data, norm, scale):
        attacks = ["pgd", "noise", "uniform_noise", "pgd_ce", "pgd_dlr"]
        attacks += ["fgsm"] if norm == np.inf else []
        report = evaluate(
            *(trained, data, attacks, [scale * e for e in [0.0, *EPSILONS]]),
            **{"norm": norm, "pgd_steps": 40, "pgd_step_size": 0.01 * scale},
        )
        assert report.accuracy["pgd_dlr"][-1] < 0.1
        assert report.flags == []
        assert str(report).endswith("No flags.")

    def test_saturated_outputs_have_no_gradient(self, trained, data):
        saturated = behind(keras.layers.Identity(), trained)
        kernel, bias = trained.layers[-1].get_weights()
        trained.layers[-1].set_weights([1e4 * kernel, 1e4 * bias])
        try:
            report = evaluate(saturated, data, ["pgd_ce", "pgd_dlr"])
        finally:
            trained.layers[-1].set_weights([kernel, bias])
        flag = named(report)["zero gradients"]
        assert flag.value > 0.5
        assert f"{100 * flag.value:.1f} % of the images" in flag.finding
        assert "pgd_dlr" in flag.advice and str(flag) in str(report)
        # PGD on cross-entropy does not move; the margin does.
        assert "large ε leaves accuracy" in named(report)
        assert report.accuracy["pgd_ce"][-1] > 0.5 > report.accuracy["pgd_dlr"][-1]

    def test_rounded_inputs_have_no_gradient(self, trained, data):
        rounded = behind(
            keras.layers.Lambda(lambda x: keras.ops.round(x * 4) / 4), trained
        )
        found = named(evaluate(rounded, data, ["fgsm", "pgd", "noise"]))
        assert found["zero gradients"].value == 1.0
        assert found["large ε leaves accuracy"].value > 0.5
        # Noise moves images that the gradient leaves where they are.
        assert found["noise beats pgd"].value > 0.002

    def test_a_random_network_changes_its_outputs(self, trained, data):
        class Noise(keras.layers.Layer):
            def __init__(self):
                super().__init__()
                self.generator = keras.random.SeedGenerator(0)

            def call(self, x):
                noise = keras.random.normal((8, 8, 1), seed=self.generator)
                return x + 0.1 * noise

        found = named(evaluate(behind(Noise(), trained), data, ["noise"]))
        assert found["outputs change"].value > 0.01
        assert "expectation over transformation" in found["outputs change"].advice
        assert "batch dependence" not in found

    def test_whitening_on_batch_statistics_depends_on_the_batch(self, trained, data):
        class BatchWhitening(keras.layers.Layer):
            def call(self, x):
                mean = keras.ops.mean(x, axis=0, keepdims=True)
                return (x - mean) / (keras.ops.std(x, axis=0, keepdims=True) + 1e-3)

        found = named(evaluate(behind(BatchWhitening(), trained), data, ["noise"]))
        assert found["batch dependence"].value > 0.01
        assert "running" in found["batch dependence"].advice

    def test_sigmoid_outputs_look_like_probabilities(self, trained, data):
        inputs = keras.Input((8, 8, 1))
        model = keras.Model(inputs, keras.ops.sigmoid(trained(inputs)))
        found = named(evaluate(model, data, ["noise"]))
        assert found["outputs look like probabilities"].value == 1.0

    def test_too_few_steps_leave_something_to_gain(self, trained, data):
        found = named(evaluate(trained, data, pgd_steps=3, pgd_step_size=0.02))
        assert found["more steps help"].value > 0.05
        assert "Raise pgd_steps" in found["more steps help"].advice

    def test_are_not_measured_on_request(self, trained, data):
        assert evaluate(trained, data, ["noise"], checks=False).checks == {}

    def test_look_at_the_first_images_only(self, trained, data, monkeypatch):
        monkeypatch.setattr(flags, "CHECKED", 40)
        garbage = data[0].copy()
        report = evaluate(trained, (garbage, data[1]))
        garbage[40:] = 0.5
        assert evaluate(trained, (garbage, data[1])).checks == report.checks


class TestFlagsOfResults:
    def test_falling_accuracies_raise_none(self):
        assert results(fgsm=[0.5, 0.3], pgd=[0.4, 0.0], noise=[0.9, 0.8]).flags == []

    def test_accuracy_that_rises_with_epsilon(self):
        [flag] = results(fgsm=[0.2, 0.35], pgd=[0.1, 0.0]).flags
        assert flag.name == "accuracy rises"
        assert flag.value == pytest.approx(0.15)
        assert "Under fgsm, accuracy at ε = 0.2 is 15.0 % above" in flag.finding

    def test_accuracy_that_rises_by_chance_raises_none(self):
        rng = np.random.default_rng(0)
        flagged = 0
        for _ in range(200):  # noise without effect, on 300 images of 80 % accuracy
            clean, *noisy = rng.random((3, 300)) < 0.8
            report = dataclasses.replace(
                results(), clean_correct=clean, correct={"noise": np.array(noisy)}
            )
            flagged += bool(report.flags)
        assert flagged <= 6

    @pytest.mark.parametrize("name", ["fgsm", "noise", "uniform_noise"])
    @pytest.mark.parametrize("pgd", ["pgd", "pgd_ce"])
    def test_a_weaker_attack_that_beats_pgd(self, name, pgd):
        [flag] = results(**{pgd: [0.5, 0.4], name: [0.6, 0.39]}).flags
        assert flag.name == f"{name} beats {pgd}"
        assert flag.value == pytest.approx(0.01)
        assert "At ε = 0.2" in flag.finding and "1.0 %" in flag.finding
        assert results(**{pgd: [0.5, 0.4], name: [0.6, 0.399]}).flags == []

    @pytest.mark.parametrize("name", ["pgd_ce", "pgd_dlr", "autopgd", "square"])
    def test_a_pgd_that_stronger_attacks_beat(self, name):
        found = named(results(pgd=[0.5, 0.4], **{name: [0.49, 0.37]}))
        flag = found["pgd overstates"]
        assert flag.value == pytest.approx(0.03)
        assert (
            "At ε = 0.2, the strong attacks break 3.0 % of the images" in flag.finding
        )
        few = named(results(pgd=[0.5, 0.4], **{name: [0.49, 0.385]}))
        assert "pgd overstates" not in few

    def test_square_that_breaks_what_gradients_leave(self):
        rows = {"pgd_ce": [0.5, 0.4], "autopgd": [0.5, 0.4], "square": [0.5, 0.3]}
        [flag] = results(**rows).flags
        assert flag.name == "square beats autopgd"
        assert flag.value == pytest.approx(0.1)
        assert results(**{**rows, "square": [0.5, 0.399]}).flags == []

    def test_a_few_images_are_chance(self):
        few = report_with(1.0, epsilons=[0.1], images=100, pgd=[0.5], fgsm=[0.48])
        assert few.flags == []

    def test_gaussian_noise_is_not_compared_in_the_euclidean_norm(self):
        report = results(pgd=[0.5, 0.4], noise=[0.1, 0.0])
        assert [flag.name for flag in report.flags] == ["noise beats pgd"]
        report.settings["norm"] = 2
        assert report.flags == []
