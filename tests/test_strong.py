"""Strong attacks, what they save, and what they find where gradients mislead."""

import gc
import importlib
import re
import sys
import weakref

import keras
import numpy as np
import pytest
from backend import BACKEND, only, to_numpy
from models import hidden, linear, network
from problems import problem_of

from keras_powerlaw.robustness import compilation, losses
from keras_powerlaw.robustness.attacks import (
    autopgd,
    fgsm,
    pgd,
    restarted_pgd,
    square,
)
from keras_powerlaw.robustness.attacks.restarted_pgd import broken_by_pgd
from keras_powerlaw.robustness.attacks.steps import ball_points
from keras_powerlaw.robustness.attacks.table import BY_NAME
from keras_powerlaw.robustness.classification import is_correct
from keras_powerlaw.robustness.evaluate import evaluate_robustness
from keras_powerlaw.robustness.logits import classifier_of
from keras_powerlaw.robustness.report import RobustnessReport

STRONG = ["pgd_ce", "pgd_dlr"]
EPSILONS = [0.02, 0.05, 0.1, 0.2]


@pytest.fixture(scope="module")
def images(digits):
    return digits[1][0][:100]


@pytest.fixture(scope="module")
def labels(digits):
    return digits[1][1][:100]


# JAX compiles for every power of two up to the batch size; the others take longer for
# many small batches.
BATCH_SIZE = 16 if BACKEND == "jax" else 50


def evaluate(model, x, y, attacks=STRONG, epsilons=EPSILONS, **options):
    defaults = {
        **{"checks": False, "verbose": 0, "batch_size": BATCH_SIZE},
        **{"pgd_steps": 12, "pgd_step_size": 0.03},
    }
    return evaluate_robustness(
        model, x, y, epsilons, attacks, **{**defaults, **options}
    )


def problem(model, x, y, norm=np.inf, batch_size=BATCH_SIZE):
    return problem_of(model, x, y, norm=norm, batch_size=batch_size)


class TestLosses:
    @pytest.mark.parametrize("classes", [2, 3, 10])
    def test_are_those_of_their_papers(self, classes):
        rng = np.random.default_rng(0)
        z = rng.normal(size=(20, classes)).astype("float32") * 5
        y = rng.integers(classes, size=20)
        margins = []
        for row, label in zip(z.astype(float), y, strict=True):
            ordered = np.sort(row)[::-1]
            margin = max(np.delete(row, label)) - row[label]
            margins.append(
                margin if classes == 2 else margin / (ordered[0] - ordered[2])
            )
        entropies = np.log(np.exp(z.astype(float)).sum(axis=1)) - z[np.arange(20), y]
        logits = keras.ops.convert_to_tensor(z)
        targets = keras.ops.convert_to_tensor(y)
        for loss, expected in (
            (losses.logit_ratio, margins),
            (losses.cross_entropy, entropies),
        ):
            found = to_numpy(loss(logits, targets))
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)

    def test_the_margin_survives_where_cross_entropy_saturates(self):
        x = np.ones((1, 3), "float32")
        model = linear(np.diag([1.0, 2.0, 5.0]) * 1e3)
        classifier = classifier_of(model, x)
        found = {}
        for name, loss in losses.LOSSES.items():

            def gradient(forward, images, labels, loss=loss):
                return losses.logits_and_gradient(forward, images, labels, loss)[1]

            found[name] = compilation.compiled(classifier, name, gradient)(
                x, np.array([2])
            )
        assert not found["ce"].any()
        # −(5000 x₃ − 2000 x₂) / (5000 x₃ − 1000 x₁), differentiated by hand.
        np.testing.assert_allclose(
            found["dlr"], [[-3000 / 16000, 0.5, 0.5 * -1 + 3 / 16]], rtol=1e-4
        )


class TestPrograms:
    def test_a_program_is_compiled_once_for_all_epsilons_of_an_evaluation(
        self, trained, images, labels, monkeypatch
    ):
        traced = []
        original = restarted_pgd.projected_step

        def counting(points, *arguments):
            traced.append(len(traced))
            return original(points, *arguments)

        monkeypatch.setattr(restarted_pgd, "projected_step", counting)
        evaluate(trained, images, labels, ["pgd_ce"])
        # Dozens of batches of many sizes. JAX compiles for 1, 2, 4, 8 and 16 at most;
        # PyTorch compiles nothing.
        most = {"tensorflow": 1, "jax": 5, "torch": np.inf}
        assert 1 <= len(traced) <= most[BACKEND]

    def test_the_weights_may_change_between_calls(self, trained, images, labels):
        weights = trained.get_weights()
        reports = []
        try:
            reports.append(evaluate(trained, images, labels))
            trained.set_weights([np.roll(weight, 1, axis=-1) for weight in weights])
            reports.append(evaluate(trained, images, labels))
        finally:
            trained.set_weights(weights)
        assert reports[0].clean_accuracy > 0.9 and reports[1].clean_accuracy < 0.5
        assert reports[1].accuracy["pgd_ce"][0] <= reports[1].clean_accuracy
        assert evaluate(trained, images, labels) == reports[0]

    @pytest.mark.parametrize("softmax", [False, True])
    def test_an_evaluated_model_does_not_stay_in_memory(self, softmax):
        model = network(hidden(50), shape=(4,), classes=3)
        if softmax:
            model.add(keras.layers.Softmax())
        x, y = np.random.default_rng(0).random((8, 4)), np.arange(8) % 3
        for _ in range(2):
            evaluate(model, x, y, ["fgsm", "pgd", *STRONG], checks=True)
        references = [weakref.ref(model), weakref.ref(model.trainable_variables[0])]
        del model
        for _ in range(3):  # one model's end frees what hangs on it
            gc.collect()
        assert [reference() is None for reference in references] == [True, True]


class TestPaperMode:
    @only("tensorflow", "torch", why="cleverhans does not run with current JAX")
    def test_euclidean_steps_equal_those_of_cleverhans(self, trained, images, labels):
        package = {"tensorflow": "tf2", "torch": "torch"}[BACKEND]
        module = f"cleverhans.{package}.attacks.projected_gradient_descent"
        theirs = importlib.import_module(module).projected_gradient_descent(
            trained,
            keras.ops.convert_to_tensor(images),
            0.5,
            0.1,
            5,
            2,
            clip_min=0.0,
            clip_max=1.0,
            y=keras.ops.convert_to_tensor(labels),
            rand_init=False,
        )
        settings = {"norm": 2, "pgd_steps": 5, "pgd_step_size": 0.1}
        problem = problem_of(trained, images, labels, **settings)
        found = to_numpy(pgd.perturb(problem, 0.5, problem.indices))
        np.testing.assert_array_equal(found, to_numpy(theirs))
        lengths = np.linalg.norm((found - images).reshape(len(images), -1), axis=1)
        assert lengths.max() <= 0.5 + 1e-5

    @only("tensorflow", why="written for JAX, which cleverhans does not run with")
    def test_the_steps_written_out_are_those_of_cleverhans(
        self, trained, images, labels
    ):
        for norm, epsilon, size in ((np.inf, 0.1, 0.02), (2, 0.5, 0.1)):
            settings = {"norm": norm, "pgd_steps": 5, "pgd_step_size": size}
            problem = problem_of(trained, images, labels, **settings)
            for ours, theirs in (
                (fgsm.one_step, fgsm.perturb),
                (pgd.step_by_step, pgd.perturb),
            ):
                np.testing.assert_allclose(
                    to_numpy(ours(problem, epsilon, problem.indices)),
                    to_numpy(theirs(problem, epsilon, problem.indices)),
                    atol=1e-5,
                )


class TestStrongPgd:
    @pytest.mark.parametrize("norm", [np.inf, 2])
    @pytest.mark.parametrize("loss", ["ce", "dlr"])
    def test_breaks_a_linear_model_exactly_where_it_can_be_broken(self, norm, loss):
        rng = np.random.default_rng(0)
        weights = rng.normal(size=(6, 2)).astype("float32")
        x = rng.uniform(0.4, 0.6, (80, 6)).astype("float32")
        model = linear(weights, -0.5 * weights.sum(axis=0))
        y = ((x - 0.5) @ weights).argmax(axis=1)
        # Distance to the boundary in the norm, by Hölder's inequality.
        difference = weights[:, 1] - weights[:, 0]
        dual = (
            np.abs(difference).sum() if norm == np.inf else np.linalg.norm(difference)
        )
        distance = np.abs((x - 0.5) @ difference) / dual
        epsilon = float(np.median(distance))
        broken = broken_by_pgd(
            problem(model, x, y, norm), loss, epsilon, 10, epsilon, np.arange(80)
        )
        clear = np.abs(distance - epsilon) > 1e-4
        np.testing.assert_array_equal(broken[clear], (distance < epsilon)[clear])
        assert 0.3 < broken.mean() < 0.7

    def test_is_nowhere_weaker_than_the_papers(self, trained, images, labels):
        report = evaluate(
            trained, images, labels, ["pgd", *STRONG], EPSILONS, restarts=1
        )
        assert not np.any(report.correct["pgd_ce"] & ~report.correct["pgd"])
        assert not np.any(report.correct["pgd_dlr"] & ~report.correct["pgd_ce"])

    def test_restarts_only_break_more(self, trained, images, labels):
        one, many = (
            evaluate(trained, images, labels, restarts=restarts) for restarts in (1, 3)
        )
        assert not np.any(many.worst_case & ~one.worst_case)

    def test_restarts_leave_a_plateau(self):
        """Flat around the image, and steep a little further on one side."""
        inputs = keras.Input((1,))
        slope = 40 * keras.ops.relu(inputs - 0.52)
        outputs = keras.ops.concatenate([1 - slope, 0.5 + 0 * inputs], axis=-1)
        model = keras.Model(inputs, outputs)
        x, y = np.full((60, 1), 0.5), np.zeros(60, int)
        accuracy = [
            evaluate(model, x, y, ["pgd_ce"], [0.1], restarts=restarts).accuracy[
                "pgd_ce"
            ][0]
            for restarts in (1, 2, 8)
        ]
        # A random start lands beyond 0.52 two times in five.
        assert accuracy[0] == 1.0
        assert accuracy[1] == pytest.approx(0.6, abs=0.2)
        assert accuracy[2] == pytest.approx(0.6**7, abs=0.1)

    @pytest.mark.parametrize("norm", [np.inf, 2])
    def test_starts_are_uniform_in_the_ball(self, norm):
        x = np.zeros((4000, 3), "float32")
        points = ball_points(
            problem(None, x, np.zeros(4000), norm), np.arange(4000), [1]
        ).astype(float)
        lengths = np.linalg.norm(points, ord=norm, axis=1)
        assert lengths.max() <= 1
        # Of a three-dimensional ball, an eighth lies within half the radius.
        assert abs((lengths < 0.5).mean() - 1 / 8) < 0.02
        np.testing.assert_allclose(points.mean(axis=0), 0, atol=0.04)

    def test_nan_from_the_model_is_an_error(self, images, labels):
        model = linear(np.full((2, 3), np.nan))
        with pytest.raises(ValueError, match="The model returned NaN"):
            broken_by_pgd(
                problem(model, np.ones((4, 2), "float32"), np.zeros(4, int)),
                "ce",
                0.1,
                3,
                0.1,
                np.arange(4),
            )


class TestSavings:
    """Each saving leaves the answers as they are."""

    def test_images_that_leave_the_batch(self, trained, images, labels, monkeypatch):
        leaving = evaluate(trained, images, labels)
        monkeypatch.setattr(restarted_pgd, "STEPS_BETWEEN_LOOKS", 1000)
        assert evaluate(trained, images, labels) == leaving

    def test_images_broken_at_a_smaller_epsilon(self, trained, images, labels):
        carried = evaluate(trained, images, labels)
        alone = [
            evaluate(trained, images, labels, epsilons=[epsilon])
            for epsilon in EPSILONS
        ]
        for name in STRONG:
            rows = np.concatenate([report.correct[name] for report in alone])
            expected = np.logical_and.accumulate(rows, axis=0)
            np.testing.assert_array_equal(carried.correct[name], expected)

    def test_images_misclassified_or_broken_by_an_attack_before(
        self, trained, images, labels
    ):
        """A start depends on the image, restart and epsilon, not on the batch."""
        wrong = labels.copy()
        wrong[::7] = (wrong[::7] + 1) % 10
        report = evaluate(trained, images, wrong, epsilons=[0.1])
        every = np.arange(len(images))
        left = evaluate(trained, images, wrong, epsilons=[0.1]).clean_correct
        for name in STRONG:
            settings = {"pgd_steps": 12, "pgd_step_size": 0.03}
            attacked = problem_of(trained, images, wrong, **settings)
            left &= BY_NAME[name].run(attacked, 0.1, every, lambda fraction: None)
            np.testing.assert_array_equal(report.correct[name][0], left)

    @pytest.mark.parametrize("batch_size", [7, 30])
    def test_batches(self, trained, images, labels, batch_size):
        reports = [
            evaluate(
                trained,
                images,
                labels,
                [*STRONG, "uniform_noise"],
                batch_size=size,
                noise_draws=2,
            )
            for size in (BATCH_SIZE, batch_size)
        ]
        assert reports[0] == reports[1]


class TestNoise:
    def test_several_draws_of_noise(self, trained, images, labels):
        one, three = (
            evaluate(
                trained,
                images,
                labels,
                ["noise", "uniform_noise"],
                [0.3, 0.6],
                noise_draws=draws,
                seed=5,
            )
            for draws in (1, 3)
        )
        assert not one.draw_accuracy
        for name in ("noise", "uniform_noise"):
            draws = three.draw_accuracy[name]
            assert draws.shape == (3, 2)
            np.testing.assert_array_equal(draws[0], one.accuracy[name])
            np.testing.assert_allclose(three.accuracy[name], draws.mean(axis=0))
            assert not np.any(three.correct[name] & ~one.correct[name])
            assert np.all(three.correct[name].mean(axis=1) <= draws.min(axis=0))
            assert len(np.unique(draws[:, 1])) > 1
        assert RobustnessReport.from_json(three.to_json()) == three

    def test_uniform_noise_stays_in_the_ball(self, images, labels):
        seen = []

        class Recorder(keras.Model):
            def call(self, x):
                seen.append(to_numpy(x))
                return keras.ops.reshape(x, (-1, 64))[:, :10]

        model = Recorder()
        model(images)
        for norm, epsilon in ((np.inf, 0.1), (2, 0.5)):
            seen.clear()
            evaluate(
                model,
                images,
                labels,
                ["uniform_noise"],
                [epsilon],
                norm=norm,
                batch_size=100,
            )
            change = (seen[-1] - images).reshape(100, -1)
            lengths = np.linalg.norm(change, ord=norm, axis=1)
            assert 0.5 * epsilon < lengths.max() <= epsilon + 1e-6


class TestToolbox:
    @pytest.fixture(autouse=True)
    def toolbox(self, monkeypatch):
        pytest.importorskip("art", reason="needs the Adversarial Robustness Toolbox")
        monkeypatch.setattr(autopgd, "STEPS", 25)
        monkeypatch.setattr(square, "QUERIES", 30)

    @pytest.fixture
    def queries(self, monkeypatch):
        """The images at which AutoPGD asks for the loss, in batches."""
        from art.attacks.evasion import AutoProjectedGradientDescent

        seen = []
        generate = AutoProjectedGradientDescent.generate

        def watched(attack, *arguments):
            compute_loss = attack.estimator.compute_loss

            def recording(x, y, **options):
                seen.append(np.array(x))
                return compute_loss(x, y, **options)

            attack.estimator.compute_loss = recording
            return generate(attack, *arguments)

        monkeypatch.setattr(AutoProjectedGradientDescent, "generate", watched)
        return seen

    @pytest.mark.parametrize("norm", [np.inf, 2])
    def test_autopgd_stays_in_the_ball_and_finds_what_pgd_finds(
        self, trained, images, labels, norm, queries
    ):
        epsilon = 0.1 if norm == np.inf else 0.5
        found = problem(trained, images[:40], labels[:40], norm)
        left = np.flatnonzero(is_correct(found, images[:40], np.arange(40)))
        broken = {
            "pgd": broken_by_pgd(found, "ce", epsilon, 10, epsilon / 4, left),
            # Each loss alone: in an evaluation, the second has what the first left.
            "ce": autopgd.broken_by_autopgd(found, "ce", epsilon, 0, left),
            "dlr": autopgd.broken_by_autopgd(found, "dlr", epsilon, 0, left),
        }
        assert len(queries) >= 40
        for points in queries:
            change = (points - images[left]).reshape(len(points), -1)
            assert np.linalg.norm(change, ord=norm, axis=1).max() <= epsilon + 1e-5
            assert points.min() >= -1e-6 and points.max() <= 1 + 1e-6
        assert broken["pgd"].any()
        for loss in ("ce", "dlr"):
            assert broken[loss].sum() >= broken["pgd"].sum() - 1

    def test_all_of_them_leave_the_global_generators_alone(
        self, trained, images, labels
    ):
        np.random.seed(3)
        expected = np.random.random()
        np.random.seed(3)
        reports = [
            evaluate(
                trained, images[:30], labels[:30], "strong", [0.05, 0.1], restarts=1
            )
            for _ in range(2)
        ]
        assert np.random.random() == expected
        assert reports[0] == reports[1]
        assert list(reports[0].correct)[-2:] == ["autopgd", "square"]
        assert "worst case" in str(reports[0])
        worst = reports[0].worst_case
        for name in reports[0].correct:
            if name != "noise":
                assert not np.any(worst & ~reports[0].correct[name])

    def test_square_breaks_what_has_no_gradient(self, trained, images, labels):
        rounded = keras.Sequential(
            [
                keras.Input((8, 8, 1)),
                keras.layers.Lambda(lambda x: keras.ops.round(x * 10) / 10),
                trained,
            ]
        )
        report = evaluate(
            rounded, images, labels, ["pgd_ce", "square"], [0.3], restarts=1
        )
        # Square runs on what the steps of a gradient of zero leave: all.
        np.testing.assert_array_equal(report.correct["pgd_ce"][0], report.clean_correct)
        assert report.accuracy["square"][0] < 0.7 * report.clean_accuracy

    @pytest.mark.parametrize("shape", [(12,), (3, 40, 1), (3, 3, 1)])
    def test_square_needs_images(self, shape):
        model = network(keras.layers.Flatten(), shape=shape, classes=3)
        message = re.escape("about as high as wide and not too small")
        with pytest.raises(ValueError, match=message):
            evaluate(model, np.zeros((2, *shape)), [0, 1], ["square"])

    @pytest.mark.parametrize("name", ["autopgd", "square"])
    def test_its_absence_is_named(self, trained, images, labels, name, monkeypatch):
        for module in [m for m in sys.modules if m.split(".")[0] == "art"]:
            monkeypatch.delitem(sys.modules, module)
        monkeypatch.setitem(sys.modules, "art", None)
        message = re.escape("pip install 'keras-powerlaw[strong]'")
        with pytest.raises(ImportError, match=message):
            evaluate(trained, images, labels, [name])


class TestArguments:
    @pytest.mark.parametrize(
        "argument, value, message",
        [
            ("norm", 1, 'Expected "inf" or 2. Received: norm=1'),
            ("norm", "2", "Expected \"inf\" or 2. Received: norm='2'"),
            ("restarts", 0, "Expected an integer of at least 1."),
            ("noise_draws", 0, "Expected an integer of at least 1."),
        ],
    )
    def test_invalid_ones_are_named(
        self, trained, images, labels, argument, value, message
    ):
        with pytest.raises(ValueError) as error:
            evaluate(trained, images, labels, **{argument: value})
        assert str(error.value).startswith(f"Invalid value for argument `{argument}`. ")
        assert message in str(error.value)
