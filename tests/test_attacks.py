"""The attacks one by one, against closed forms on linear models and cleverhans."""

import dataclasses
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
from problems import attacked

from keras_powerlaw import evaluate_robustness
from keras_powerlaw.plotting import plot_robustness
from keras_powerlaw.robustness import attacks, evaluate
from keras_powerlaw.robustness.attacks import ATTACKS, BY_NAME, gradient, toolbox
from keras_powerlaw.robustness.attacks.attack import Attack, ball_points
from keras_powerlaw.robustness.attacks.gradient import (
    Fgsm,
    Pgd,
    PgdOnCrossEntropy,
    step_by_step,
)
from keras_powerlaw.robustness.attacks.toolbox import AutoPgd, Square

PIXELS, CLASSES = 12, 3
EPSILONS = [0.0, 0.02, 0.05, 0.1, 0.2]
with_cleverhans = only(
    "tensorflow", "torch", why="cleverhans does not run with current JAX"
)
# JAX compiles for every power of two up to the batch size; the others take longer for
# many small batches.
BATCH_SIZE = 16 if BACKEND == "jax" else 50


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).random((60, PIXELS))


@pytest.fixture(scope="module")
def digits_100(digits):
    return digits[1][0][:100], digits[1][1][:100]


@pytest.fixture(scope="module")
def on_digits(trained, digits_100):
    return attacked(trained, *digits_100)


def their(name):
    """One of cleverhans's functions, found as its documentation says."""
    package = {"tensorflow": "tf2", "torch": "torch"}[BACKEND]
    module = importlib.import_module(f"cleverhans.{package}.attacks.{name}")
    return getattr(module, name)


def rounding(model):
    """The model behind a layer that leaves no gradient."""
    layer = keras.layers.Lambda(lambda x: keras.ops.round(x * 10) / 10)
    return keras.Sequential([keras.Input(model.input_shape[1:]), layer, model])


class TestPaperAttacks:
    def test_fgsm_on_a_linear_model_is_known_in_closed_form(self, images):
        weights = np.random.default_rng(2).normal(size=(PIXELS, CLASSES))
        logits = images @ weights
        y = logits.argmax(axis=1)
        report = evaluate_robustness(linear(weights), images, y, EPSILONS, ["fgsm"])
        probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        slope = (probabilities - np.eye(CLASSES)[y]) @ weights.T
        for epsilon, correct in zip(EPSILONS, report.correct["fgsm"], strict=True):
            moved = np.clip(images + epsilon * np.sign(slope), 0, 1)
            expected = (moved @ weights).argmax(axis=1) == y
            np.testing.assert_array_equal(correct, expected)
        assert 0.0 < report.accuracy["fgsm"][-2] < report.accuracy["fgsm"][0] == 1.0

    @pytest.mark.parametrize("clip", [(0.0, 1.0), None])
    def test_both_find_the_worst_case_of_a_linear_model_of_two_classes(
        self, images, clip
    ):
        weights = np.random.default_rng(3).normal(size=(PIXELS, 2))
        y = (images @ weights).argmax(axis=1)
        report = evaluate_robustness(
            linear(weights), images, y, EPSILONS, ["fgsm", "pgd"], clip=clip
        )
        # Every pixel moves as far as it may against the true class.
        towards_truth = (2 * y - 1)[:, None] * (weights[:, 1] - weights[:, 0])
        for row, epsilon in enumerate(EPSILONS):
            worst = images - epsilon * np.sign(towards_truth)
            if clip is not None:
                worst = np.clip(worst, *clip)
            expected = (worst * towards_truth).sum(axis=1) > 0
            np.testing.assert_array_equal(report.correct["fgsm"][row], expected)
            np.testing.assert_array_equal(report.correct["pgd"][row], expected)

    @with_cleverhans
    @pytest.mark.parametrize("norm, scale", [(np.inf, 1), (2, 5)])
    def test_equal_those_of_cleverhans_called_by_hand(
        self, trained, on_digits, norm, scale
    ):
        """Same weights and batch: not one pixel differs."""
        classifier, data = on_digits
        x, y = map(keras.ops.convert_to_tensor, data[:2])
        limits = {"clip_min": 0.0, "clip_max": 1.0, "y": y}
        epsilon, size = 0.1 * scale, 0.02 * scale
        for attack, theirs in (
            (
                Fgsm(norm=norm),
                their("fast_gradient_method")(trained, x, epsilon, norm, **limits),
            ),
            (
                Pgd(norm=norm, pgd_steps=10, pgd_step_size=size),
                their("projected_gradient_descent")(
                    trained, x, epsilon, size, 10, norm, rand_init=False, **limits
                ),
            ),
        ):
            expected = to_numpy(theirs)
            found = to_numpy(attack.perturb(classifier, data, epsilon))
            np.testing.assert_array_equal(found, expected)
            change = (found - data.images).reshape(len(found), -1)
            lengths = np.linalg.norm(change, ord=norm, axis=1)
            assert 0.5 * epsilon < lengths.max() <= epsilon + 1e-5
            correct = to_numpy(trained(theirs)).argmax(axis=1) == data.labels
            np.testing.assert_array_equal(
                attack.run(classifier, data, epsilon), correct
            )

    @only("tensorflow", why="written for JAX, which cleverhans does not run with")
    @pytest.mark.parametrize(
        "norm, epsilon, size", [(np.inf, 0.1, 0.02), (2, 0.5, 0.1)]
    )
    def test_the_steps_written_out_are_those_of_cleverhans(
        self, on_digits, norm, epsilon, size
    ):
        pgd = Pgd(norm=norm, pgd_steps=5, pgd_step_size=size)
        for theirs, steps in ((Fgsm(norm=norm), (epsilon, 1)), (pgd, (size, 5))):
            np.testing.assert_allclose(
                to_numpy(step_by_step(theirs, *on_digits, epsilon, *steps)),
                to_numpy(theirs.perturb(*on_digits, epsilon)),
                atol=1e-5,
            )

    def test_an_epsilon_above_the_range_of_the_pixels_is_one_of_the_whole_range(
        self, on_digits
    ):
        for attack in (Fgsm(), Pgd(pgd_steps=2, pgd_step_size=1.0)):
            whole, beyond = (attack.perturb(*on_digits, epsilon) for epsilon in (1, 2))
            np.testing.assert_allclose(to_numpy(beyond), to_numpy(whole), atol=1e-6)

    def test_attack_the_true_label_not_the_predicted_one(self):
        """A wrongly classified image is pushed further from its true class."""
        model = linear(np.array([[1.0, -1.0]]), bias=[-0.9, 0.9])
        classifier, data = attacked(model, [[0.8]], [0])
        for attack in (Fgsm(), Pgd()):
            found = attack.perturb(classifier, data, 0.2)
            np.testing.assert_allclose(to_numpy(found), [[0.6]], atol=1e-6)

    def test_a_step_above_epsilon_is_reduced_to_epsilon(self):
        """Two steps over a ridge of the loss at 0.5, there and back.

        A step of 0.5 would go back to the other edge of the ball, at 0.43.
        """
        inputs = keras.Input((1,))
        margin = 100 * (inputs - 0.5) ** 2
        model = keras.Model(inputs, keras.ops.concatenate([margin, 0 * margin], -1))
        pgd = Pgd(pgd_steps=2, pgd_step_size=0.5)
        found = pgd.perturb(*attacked(model, [[0.48]], [0]), 0.05)
        np.testing.assert_allclose(to_numpy(found), [[0.48]], atol=1e-6)

    @only("torch", why="gradients are kept with the weights only by PyTorch")
    def test_leave_the_gradients_of_the_weights_alone(self, images):
        model = network(hidden(16), shape=(PIXELS,), classes=CLASSES)
        classifier, data = attacked(model, images, np.zeros(60))
        for attack in (Fgsm(), Pgd(pgd_steps=2)):
            attack.run(classifier, data, 0.1)
        for weight in model.parameters():
            assert weight.requires_grad and weight.grad is None

    def test_too_few_steps_to_reach_epsilon_are_warned_about(self):
        message = r"3 PGD steps of 0\.01 change a pixel by at most 0\.03, less than"
        with pytest.warns(UserWarning, match=message):
            Pgd(pgd_steps=3).require((60, PIXELS), 0.2)
        Pgd(pgd_steps=3).require((60, PIXELS), 0.03)

    def test_an_attacked_model_does_not_stay_in_memory(self):
        model = network(hidden(50), shape=(4,), classes=3)
        model.add(keras.layers.Softmax())
        x, y = np.random.default_rng(0).random((8, 4)), np.arange(8) % 3
        names = ["fgsm", "pgd", "pgd_ce", "pgd_dlr"]
        evaluate_robustness(model, x, y, [0.1], names, pgd_steps=10)
        references = [weakref.ref(model), weakref.ref(model.trainable_variables[0])]
        del model
        for _ in range(3):  # one model's end frees what hangs on it
            gc.collect()
        assert [reference() is None for reference in references] == [True, True]

    @only("tensorflow", why="cleverhans compiles nothing elsewhere")
    def test_neither_do_its_weights_in_the_graph_that_cleverhans_keeps(self):
        import tensorflow as tf

        model = network(hidden(50), shape=(4,), classes=3)
        classifier, data = attacked(model, np.zeros((8, 4)), np.zeros(8))
        Fgsm().perturb(classifier, data, 0.1)
        logits = classifier.programs["cleverhans"]  # what cleverhans was given
        graph = tf.function(logits).get_concrete_function(
            tf.TensorSpec([8, 4], tf.float32)
        )
        copies = graph.graph.variables
        assert not {id(v.value) for v in model.variables} & set(map(id, copies))

        def sizes():
            return sorted(copy.read_value().shape.num_elements() for copy in copies)

        assert sizes() == [3, 50, 150, 200]
        classifier.at_end.close()
        assert sizes() == [0, 0, 0, 0]


class TestStrongPgd:
    @pytest.mark.parametrize("norm", [np.inf, 2])
    @pytest.mark.parametrize("name", ["pgd_ce", "pgd_dlr"])
    def test_breaks_a_linear_model_exactly_where_it_can_be_broken(self, norm, name):
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
        pgd = BY_NAME[name](norm=norm, pgd_steps=10, pgd_step_size=epsilon)
        broken = ~pgd.run(*attacked(model, x, y), epsilon)
        clear = np.abs(distance - epsilon) > 1e-4
        np.testing.assert_array_equal(broken[clear], (distance < epsilon)[clear])
        assert 0.3 < broken.mean() < 0.7

    def test_restarts_leave_a_plateau(self):
        """Flat around the image, and steep a little further on one side."""
        inputs = keras.Input((1,))
        slope = 40 * keras.ops.relu(inputs - 0.52)
        outputs = keras.ops.concatenate([1 - slope, 0.5 + 0 * inputs], axis=-1)
        on_plateau = attacked(
            keras.Model(inputs, outputs), np.full((60, 1), 0.5), np.zeros(60)
        )
        pgd = PgdOnCrossEntropy(pgd_steps=12, pgd_step_size=0.03, restarts=8)
        unbroken = [pgd.run(*on_plateau, 0.1, start) for start in pgd.starts()]
        # A random start lands beyond 0.52 two times in five.
        assert unbroken[0].all()
        assert unbroken[1].mean() == pytest.approx(0.6, abs=0.2)
        assert np.all(unbroken, axis=0).mean() == pytest.approx(0.6**7, abs=0.1)

    def test_images_that_leave_the_batch_change_nothing(self, on_digits, monkeypatch):
        pgd = PgdOnCrossEntropy(pgd_steps=12, pgd_step_size=0.03)
        leaving = pgd.run(*on_digits, 0.1)
        monkeypatch.setattr(gradient, "STEPS_BETWEEN_LOOKS", 1000)
        np.testing.assert_array_equal(pgd.run(*on_digits, 0.1), leaving)
        assert 0 < leaving.sum() < 100

    def test_nan_from_the_model_is_an_error(self):
        classifier, data = attacked(linear(np.ones((2, 3))), np.ones((4, 2)), [0] * 4)
        classifier.model.set_weights([np.full((2, 3), np.nan), np.zeros(3)])
        with pytest.raises(ValueError, match="The model returned NaN"):
            PgdOnCrossEntropy(pgd_steps=3).run(classifier, data, 0.1)

    def test_a_program_is_compiled_once_for_all_epsilons_of_an_evaluation(
        self, trained, digits_100, monkeypatch
    ):
        traced = []
        original = gradient.projected_step

        def counting(points, *arguments):
            traced.append(len(traced))
            return original(points, *arguments)

        monkeypatch.setattr(gradient, "projected_step", counting)
        evaluate_robustness(
            *(trained, *digits_100, EPSILONS[1:], ["pgd_ce"]),
            **{"pgd_steps": 12, "pgd_step_size": 0.03, "checks": False},
            batch_size=BATCH_SIZE,
        )
        # Dozens of batches of many sizes. JAX compiles for 1, 2, 4, 8 and 16 at most;
        # PyTorch compiles nothing.
        most = {"tensorflow": 1, "jax": 5, "torch": np.inf}
        assert 1 <= len(traced) <= most[BACKEND]


class TestNoise:
    def test_is_one_seeded_draw_scaled_by_epsilon_and_clipped(
        self, trained, digits_100
    ):
        x, y = digits_100
        np.random.seed(1)  # the global generator plays no part
        report = evaluate_robustness(trained, x, y, [0.2, 0.8], ["noise"], seed=7)
        draw = np.random.default_rng(7).standard_normal(x.shape, dtype="float32")
        for row, epsilon in enumerate([0.2, 0.8]):
            logits = to_numpy(trained(np.clip(x + epsilon * draw, 0, 1)))
            expected = logits.argmax(axis=1) == y
            np.testing.assert_array_equal(report.correct["noise"][row], expected)

    def test_of_several_draws_the_accuracy_is_the_mean(self, trained, digits_100):
        one, three = (
            evaluate_robustness(
                *(trained, *digits_100, [0.3, 0.6], ["noise", "uniform_noise"]),
                **{"noise_draws": draws, "seed": 5, "checks": False},
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
            assert len(np.unique(draws[:, 1])) > 1

    @pytest.mark.parametrize("norm", [np.inf, 2])
    def test_random_points_are_uniform_in_the_ball(self, norm):
        points = ball_points(norm, (3,), [0, 1], np.arange(4000)).astype(float)
        lengths = np.linalg.norm(points, ord=norm, axis=1)
        assert lengths.max() <= 1
        # Of a three-dimensional ball, an eighth lies within half the radius.
        assert abs((lengths < 0.5).mean() - 1 / 8) < 0.02
        np.testing.assert_allclose(points.mean(axis=0), 0, atol=0.04)


class TestToolbox:
    @pytest.fixture(autouse=True)
    def few_steps(self, monkeypatch):
        pytest.importorskip("art", reason="needs the Adversarial Robustness Toolbox")
        monkeypatch.setattr(AutoPgd, "steps", 25)
        monkeypatch.setattr(Square, "queries", 30)

    @pytest.mark.parametrize("norm, epsilon", [(np.inf, 0.1), (2, 0.5)])
    def test_autopgd_stays_in_the_ball_and_finds_what_pgd_finds(
        self, on_digits, norm, epsilon, monkeypatch
    ):
        seen = []
        make = toolbox.estimator_of

        def recorded(*arguments):
            estimator = make(*arguments)
            compute_loss = estimator.compute_loss
            estimator.compute_loss = lambda x, y, **options: (
                seen.append(np.array(x)) or compute_loss(x, y)
            )
            return estimator

        monkeypatch.setattr(toolbox, "estimator_of", recorded)
        classifier, data = on_digits
        right = np.flatnonzero(classifier.is_correct(data.images, data.labels))[:40]
        left = data.take(right)
        pgd = PgdOnCrossEntropy(norm=norm, pgd_steps=10, pgd_step_size=epsilon / 4)
        by_pgd = ~pgd.run(classifier, left, epsilon)
        assert by_pgd.any()
        for loss in ("ce", "dlr"):
            broken = ~AutoPgd(norm=norm).run(classifier, left, epsilon, (0, loss))
            assert broken.sum() >= by_pgd.sum() - 1
        assert len(seen) >= 40
        for points in seen:
            change = (points - left.images).reshape(len(points), -1)
            assert np.linalg.norm(change, ord=norm, axis=1).max() <= epsilon + 1e-5
            assert points.min() >= -1e-6 and points.max() <= 1 + 1e-6

    def test_all_of_them_leave_the_global_generators_alone(self, trained, digits_100):
        np.random.seed(3)
        expected = np.random.random()
        np.random.seed(3)
        x, y = (array[:30] for array in digits_100)
        reports = [
            evaluate_robustness(
                trained, x, y, [0.05, 0.1], "strong", restarts=1, checks=False
            )
            for _ in range(2)
        ]
        assert np.random.random() == expected
        assert reports[0] == reports[1]
        assert list(reports[0].correct) == list(BY_NAME)
        assert "worst case" in str(reports[0])
        for name, rows in reports[0].correct.items():
            if name != "noise":
                assert not np.any(reports[0].worst_case & ~rows)

    def test_square_breaks_what_has_no_gradient(self, trained, digits_100):
        report = evaluate_robustness(
            *(rounding(trained), *digits_100, [0.3], ["pgd_ce", "square"]),
            restarts=1,
            pgd_steps=12,
            pgd_step_size=0.03,
            checks=False,
        )
        # Square runs on what the steps of a gradient of zero leave: all.
        np.testing.assert_array_equal(report.correct["pgd_ce"][0], report.clean_correct)
        assert report.accuracy["square"][0] < 0.7 * report.clean_accuracy

    @pytest.mark.parametrize("shape", [(12,), (3, 40, 1), (3, 3, 1)])
    def test_square_needs_images(self, shape):
        message = re.escape("about as high as wide and not too small")
        with pytest.raises(ValueError, match=message):
            Square().require((2, *shape), 0.1)


@pytest.mark.parametrize(
    "names, module, extra",
    [
        pytest.param(
            ["fgsm", "pgd"], "cleverhans", "robustness", marks=with_cleverhans
        ),
        (["autopgd", "square"], "art", "strong"),
    ],
)
def test_a_missing_package_is_named_before_anything_is_computed(
    names, module, extra, monkeypatch
):
    for loaded in [name for name in sys.modules if name.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, module, None)
    message = re.escape(f"pip install 'keras-powerlaw[{extra}]'")
    for name in names:
        with pytest.raises(ImportError, match=f'The attack "{name}" needs.*{message}'):
            BY_NAME[name]().require((2, 8, 8, 1), 0.1)


class TestANewAttack:
    """One class, and its place in the list."""

    def test_is_evaluated_reported_and_drawn(self, trained, digits_100, monkeypatch):
        @dataclasses.dataclass(frozen=True, kw_only=True)
        class Inverted(Attack):
            """It turns an image into its negative, whatever ε."""

            name = "inverted"
            title = "negative"
            bounded = False

            def perturb(self, classifier, batch, epsilon, start):
                return 1 - batch.images

        for module in (attacks, evaluate):
            monkeypatch.setattr(module, "ATTACKS", (*ATTACKS, Inverted))
        monkeypatch.setitem(BY_NAME, "inverted", Inverted)
        x, y = digits_100
        report = evaluate_robustness(trained, x, y, [0.1, 0.2], ["inverted", "noise"])
        expected = to_numpy(trained(1 - x)).argmax(axis=1) == y
        np.testing.assert_array_equal(report.correct["inverted"], [expected] * 2)
        assert "inverted" in str(report)
        # It is not bounded by ε, and so is not among the worst cases.
        np.testing.assert_array_equal(report.worst_case[0], report.clean_correct)
        axes = plot_robustness({"net": report}, "inverted")
        assert axes.get_title() == "negative"
