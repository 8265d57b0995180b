"""Attack sweeps, against closed forms on linear models and cleverhans by hand."""

import importlib
import re
import sys
import threading

import keras
import numpy as np
import pytest
import scipy.sparse
from backend import BACKEND, only, to_numpy
from datasets import gaussian
from model_zoo import ZOO, build, can_be_attacked, examples_for, zoo
from models import Subclassed, compiled, hidden, linear, network
from problems import problem_of

import keras_powerlaw as kp
from keras_powerlaw.keras_internals import flatten_layers
from keras_powerlaw.robustness.attacks import fgsm, pgd
from keras_powerlaw.robustness.evaluate import evaluate_robustness

CLASSES, PIXELS, IMAGES = 3, 12, 60
EPSILONS = [0.0, 0.02, 0.05, 0.1, 0.2]
# Of the zoo; all others are slow to test.
FEW = ["batch_norm", "adapted_normalization", "residual", "nested_twice"]


def mlp(*last, activation=None):
    """A small classifier with the same weights every time, and what comes after it."""
    keras.utils.set_random_seed(0)
    model = network(hidden(16), shape=(PIXELS,), classes=CLASSES)
    model.layers[-1].activation = keras.activations.get(activation)
    for layer in last:
        model.add(layer)
    return model


@pytest.fixture(scope="module")
def plain():
    """The small classifier that the tests share, so that it is compiled once."""
    return mlp()


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).random((IMAGES, PIXELS))


@pytest.fixture(scope="module")
def labels(plain, images):
    """What the small classifier itself says, and now and then something else."""
    logits = keras.ops.convert_to_numpy(plain(images.astype("float32")))
    labels = logits.argmax(axis=1)
    labels[::10] = (labels[::10] + 1) % CLASSES
    return labels


class TestGradientAttacks:
    def test_fgsm_on_a_linear_model_is_known_in_closed_form(self, images):
        rng = np.random.default_rng(2)
        weights = rng.normal(size=(PIXELS, CLASSES))
        y = (images @ weights).argmax(axis=1)
        report = evaluate_robustness(
            linear(weights), images, y, EPSILONS, attacks=["fgsm"]
        )

        logits = images @ weights
        probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        gradient = (probabilities - np.eye(CLASSES)[y]) @ weights.T
        for epsilon, correct in zip(EPSILONS, report.correct["fgsm"], strict=True):
            attacked = np.clip(images + epsilon * np.sign(gradient), 0, 1)
            expected = (attacked @ weights).argmax(axis=1) == y
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

    @only("tensorflow", "torch", why="cleverhans does not run with current JAX")
    def test_equal_those_of_cleverhans_called_by_hand(self, plain, images, labels):
        """Same weights and batch: not one pixel differs."""
        package = {"tensorflow": "tf2", "torch": "torch"}[BACKEND]
        attacks = f"cleverhans.{package}.attacks"
        their_fgsm = importlib.import_module(f"{attacks}.fast_gradient_method")
        their_pgd = importlib.import_module(f"{attacks}.projected_gradient_descent")

        x = keras.ops.convert_to_tensor(images.astype("float32"))
        y = keras.ops.convert_to_tensor(labels)
        problem = problem_of(plain, images, labels, pgd_steps=10, pgd_step_size=0.03)
        ours = {"fgsm": fgsm.perturb, "pgd": pgd.perturb}
        for epsilon in (0.05, 0.2):
            limits = {"clip_min": 0.0, "clip_max": 1.0, "y": y}
            theirs = {
                "fgsm": their_fgsm.fast_gradient_method(
                    plain, x, epsilon, np.inf, **limits
                ),
                "pgd": their_pgd.projected_gradient_descent(
                    plain, x, epsilon, 0.03, 10, np.inf, rand_init=False, **limits
                ),
            }
            report = evaluate_robustness(
                plain,
                images,
                labels,
                [epsilon],
                ["fgsm", "pgd"],
                pgd_steps=10,
                pgd_step_size=0.03,
            )
            for name, perturbed in theirs.items():
                expected = to_numpy(perturbed)
                assert np.abs(expected - to_numpy(x)).max() <= epsilon + 1e-6
                found = ours[name](problem, epsilon, problem.indices)
                np.testing.assert_array_equal(to_numpy(found), expected)
                correct = to_numpy(plain(perturbed)).argmax(axis=1) == labels
                np.testing.assert_array_equal(report.correct[name][0], correct)

    @only("torch", why="gradients are kept with the weights only by PyTorch")
    def test_leave_the_gradients_of_the_weights_alone(self, images, labels):
        model = mlp()  # cleverhans, called by hand, has left gradients with the other
        evaluate_robustness(model, images, labels, [0.1], ["fgsm", "pgd"])
        for weight in model.parameters():
            assert weight.requires_grad and weight.grad is None

    def test_an_epsilon_above_the_range_of_the_pixels(self, plain, images, labels):
        """It is one of the whole range: black and white are the furthest there is."""
        report = evaluate_robustness(
            plain,
            images,
            labels,
            [1.0, 2.0],
            ["fgsm", "pgd"],
            pgd_steps=2,
            pgd_step_size=1.0,
        )
        problem = problem_of(plain, images, labels, pgd_steps=2, pgd_step_size=1.0)
        attacks = {"fgsm": fgsm.perturb, "pgd": pgd.perturb}
        for name, (whole, beyond) in report.correct.items():
            np.testing.assert_array_equal(beyond, whole)
            assert report.accuracy[name][1] < report.clean_accuracy
            whole, beyond = (
                to_numpy(attacks[name](problem, epsilon, problem.indices))
                for epsilon in (1.0, 2.0)
            )
            np.testing.assert_allclose(beyond, whole, atol=1e-6)

    def test_attack_the_true_label_not_the_predicted_one(self):
        """A wrongly classified image is pushed further from its true class."""
        model = linear(np.array([[1.0, -1.0]]), bias=[-0.9, 0.9])
        report = evaluate_robustness(model, [[0.8]], [0], [0.2], ["fgsm", "pgd"])
        assert not report.clean_correct[0]
        assert not report.correct["pgd"][0, 0]
        assert not report.correct["pgd"][0, 0]

    def test_a_step_above_epsilon_is_reduced_to_epsilon(self, plain, images, labels):
        options = {"epsilons": [0.05], "attacks": ["pgd"], "pgd_steps": 3}
        reports = [
            evaluate_robustness(plain, images, labels, pgd_step_size=size, **options)
            for size in (0.05, 0.5)
        ]
        np.testing.assert_array_equal(*[report.correct["pgd"] for report in reports])

    @pytest.mark.parametrize("size", [0.05, 0.5])
    def test_a_step_above_epsilon_does_not_cross_the_ball(self, size):
        """Two steps over a ridge of the loss at 0.5, there and back.

        A step of 0.5 would go back to the other edge of the ball, at 0.43.
        """
        inputs = keras.Input((1,))
        margin = 100 * (inputs - 0.5) ** 2
        model = keras.Model(inputs, keras.ops.concatenate([margin, 0 * margin], -1))
        problem = problem_of(model, [[0.48]], [0], pgd_steps=2, pgd_step_size=size)
        found = pgd.perturb(problem, 0.05, problem.indices)
        np.testing.assert_allclose(to_numpy(found), [[0.48]], atol=1e-6)

    def test_labels_may_stand_in_a_column(self, plain, images, labels):
        flat, column = (
            evaluate_robustness(plain, images, y, [0.1], ["fgsm"])
            for y in (labels, labels[:, np.newaxis])
        )
        assert flat == column

    def test_too_few_steps_to_reach_epsilon_are_warned_about(self, images):
        weights = np.random.default_rng(3).normal(size=(PIXELS, 2))
        y = (images @ weights).argmax(axis=1)
        model = linear(weights)
        message = r"3 PGD steps of 0\.01 change a pixel by at most 0\.03, less than"
        with pytest.warns(UserWarning, match=message):
            pgd = evaluate_robustness(model, images, y, [0.2], ["pgd"], pgd_steps=3)

        fgsm = evaluate_robustness(model, images, y, [0.03, 0.2], ["fgsm"])
        np.testing.assert_array_equal(pgd.correct["pgd"][0], fgsm.correct["fgsm"][0])
        assert np.any(pgd.correct["pgd"][0] != fgsm.correct["fgsm"][1])

    @only("tensorflow", "torch", why="cleverhans does not run with current JAX")
    def test_missing_cleverhans_is_named(self, plain, images, labels, monkeypatch):
        monkeypatch.setitem(sys.modules, "cleverhans", None)
        for name in [name for name in sys.modules if name.startswith("cleverhans.")]:
            monkeypatch.delitem(sys.modules, name)
        message = re.escape("pip install 'keras-powerlaw[robustness]'")
        with pytest.raises(ImportError, match=message):
            evaluate_robustness(plain, images, labels, EPSILONS)
        evaluate_robustness(plain, images, labels, EPSILONS, ["noise"])

    @only("tensorflow", "torch", why="cleverhans does not run with current JAX")
    def test_cleverhans_in_pieces_is_noticed_before_anything_is_computed(
        self, images, labels, monkeypatch
    ):
        package = {"tensorflow": "tf2", "torch": "torch"}[BACKEND]
        for name in [name for name in sys.modules if name.startswith("cleverhans.")]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, f"cleverhans.{package}", None)
        model = mlp()
        monkeypatch.setattr(type(model), "__call__", None)  # calling it fails
        with pytest.raises(ImportError, match="cleverhans is installed, and cannot be"):
            evaluate_robustness(model, images, labels, [0.1], ["noise", "pgd"])


class TestWhiteNoise:
    def test_is_one_seeded_draw_scaled_by_epsilon_and_clipped(
        self, plain, images, labels
    ):
        report = evaluate_robustness(
            plain, images, labels, [0.2, 0.8], ["noise"], seed=7
        )
        x = images.astype("float32")
        draw = np.random.default_rng(7).standard_normal(x.shape, dtype="float32")
        for row, epsilon in enumerate([0.2, 0.8]):
            logits = plain(np.clip(x + epsilon * draw, 0, 1))
            expected = keras.ops.convert_to_numpy(logits).argmax(axis=1) == labels
            np.testing.assert_array_equal(report.correct["noise"][row], expected)

    def test_depends_on_the_seed_alone(self, plain, images, labels):
        def correct(seed):
            np.random.seed(seed)  # the global generator plays no part
            return evaluate_robustness(
                plain, images, labels, [0.5], ["noise"], seed=seed
            ).correct["noise"]

        np.testing.assert_array_equal(correct(1), correct(1))
        assert np.any(correct(1) != correct(2))


class TestEvaluation:
    def test_epsilon_zero_changes_nothing(self, plain, images, labels):
        report = evaluate_robustness(plain, images, labels, EPSILONS)
        assert 0.0 < report.clean_accuracy < 1.0
        for rows in report.correct.values():
            np.testing.assert_array_equal(rows[0], report.clean_correct)

    @pytest.mark.parametrize("batch_size", [1, 7, 60])
    def test_batch_size_changes_nothing(self, plain, images, labels, batch_size):
        options = {"epsilons": [0.05, 0.1], "pgd_steps": 10}
        report = evaluate_robustness(plain, images, labels, **options)
        batched = evaluate_robustness(
            plain, images, labels, batch_size=batch_size, **options
        )
        assert batched == report

    def test_batch_size_changes_nothing_in_half_precision(self):
        rng = np.random.default_rng(0)
        x = rng.random((6000, PIXELS), "float32")
        half = keras.layers.Dense(CLASSES, dtype="mixed_float16")
        last = keras.layers.Activation("linear", dtype="float32")
        model = keras.Sequential([keras.Input((PIXELS,)), half, last])
        half.set_weights([10 * rng.normal(size=(PIXELS, CLASSES)), np.zeros(CLASSES)])
        logits = np.sort(model.predict(x, verbose=0), axis=1)
        # So sure that a share in the mean loss of 500 images vanishes in float16.
        sure = np.flatnonzero(abs(logits[:, -1] - logits[:, -2] - 13) < 2)[:500]
        x, y = x[sure], model.predict(x[sure], verbose=0).argmax(axis=1)
        few, all_at_once = (
            evaluate_robustness(
                model, x, y, [0.3], ["fgsm", "pgd"], batch_size=size, verbose=0
            )
            for size in (10, 500)
        )
        for attack in ("fgsm", "pgd"):
            np.testing.assert_array_equal(
                few.correct[attack], all_at_once.correct[attack]
            )
            assert few.accuracy[attack][0] < 0.5

    @pytest.mark.parametrize(
        "classifier",
        [
            lambda: mlp(activation="softmax"),
            lambda: mlp(keras.layers.Activation("softmax")),
            lambda: mlp(keras.layers.Softmax()),
        ],
        ids=["activation", "Activation layer", "Softmax layer"],
    )
    def test_a_softmax_at_the_end_changes_nothing(
        self, plain, images, labels, classifier
    ):
        model = classifier()
        outputs = to_numpy(model(images))
        config = model.get_config()
        report = evaluate_robustness(model, images, labels, EPSILONS)

        assert report == evaluate_robustness(plain, images, labels, EPSILONS)
        assert model.get_config() == config
        np.testing.assert_array_equal(to_numpy(model(images)), outputs)

    def test_a_softmax_is_put_back_after_an_error(self, images, labels):
        model = mlp(activation="softmax")
        with pytest.raises(ValueError, match="labels from 0 to 2"):
            evaluate_robustness(model, images, labels + 1, EPSILONS)
        assert model.layers[-1].activation is keras.activations.softmax

    def test_a_softmax_in_the_middle_stays(self, images, labels):
        inputs = keras.Input((PIXELS,))
        gate = keras.layers.Dense(CLASSES, activation="softmax")(inputs)
        model = keras.Model(inputs, keras.ops.log(gate))
        report = evaluate_robustness(model, images, labels, [0.1], ["fgsm"])

        # log(softmax(z)) and z have the same cross-entropy.
        twin = linear(*model.get_weights())
        assert report == evaluate_robustness(twin, images, labels, [0.1], ["fgsm"])

    def test_runs_in_inference_mode_and_leaves_the_state_alone(self, images, labels):
        model = mlp(
            keras.layers.BatchNormalization(activity_regularizer="l2"),
            keras.layers.Dropout(0.5, seed=0),
        )
        before = [variable.numpy() for variable in model.variables]
        report = evaluate_robustness(model, images, labels, [0.05])
        for variable, value in zip(model.variables, before, strict=True):
            np.testing.assert_array_equal(variable.numpy(), value)

        plain = mlp(keras.layers.BatchNormalization())
        assert report == evaluate_robustness(plain, images, labels, [0.05])

    def test_a_subclassed_model_needs_no_declared_shapes(self, plain, images, labels):
        model = Subclassed(plain)
        model(images)
        report = evaluate_robustness(model, images, labels, [0.1])
        assert report == evaluate_robustness(plain, images, labels, [0.1])

    def test_on_handwritten_digits(self, trained, digits):
        _, (x, y) = digits
        report = evaluate_robustness(trained, x, y, [0.0, 0.05, 0.1])
        fgsm, pgd, noise = (report.accuracy[name] for name in ("fgsm", "pgd", "noise"))
        assert report.clean_accuracy > 0.9
        assert np.all(np.diff(fgsm) < 0)
        assert np.all(pgd <= fgsm)
        assert np.all(noise[1:] > fgsm[1:] + 0.1)

    def test_progress_is_shown_on_request(self, plain, images, labels, capsys):
        for verbose, shown in ((0, False), ("auto", False), (1, True)):
            evaluate_robustness(
                plain, images, labels, [0.1, 0.2], ["noise"], verbose=verbose
            )
            assert ("2/2" in capsys.readouterr().out) == shown


def swap_head(model, *last):
    """Takes off the last layers, and puts others in their place."""
    for _ in last:
        model.pop()
    for layer in last:
        model.add(layer)
    roll_weights(model)


def roll_weights(model):
    weights = model.get_weights()
    model.set_weights(
        [np.roll(weight, 1, axis=-1 if weight.ndim else None) for weight in weights]
    )


def replace_activations(model):
    """In all layers that have one but the last, at any depth."""
    for layer in flatten_layers(model):
        if layer.name != "logits" and callable(vars(layer).get("activation")):
            layer.activation = keras.activations.softsign


def enable_lora(model):
    for layer in model.layers:
        if isinstance(layer, keras.layers.Dense):
            layer.enable_lora(2)
    rng = np.random.default_rng(0)
    model.set_weights([rng.normal(size=weight.shape) for weight in model.weights])


class Gate(keras.layers.Layer):
    """A layer whose behaviour hangs on an attribute that no config mentions."""

    closed = False

    def call(self, x):
        return 0.1 * keras.ops.flip(x, axis=-1) if self.closed else x


CHANGES = {
    "weights": (mlp, roll_weights),
    "another head": (mlp, lambda model: swap_head(model, keras.layers.Dense(CLASSES))),
    "another head with a softmax": (
        lambda: mlp(activation="softmax"),
        lambda model: swap_head(model, keras.layers.Dense(CLASSES, "softmax")),
    ),
    "another head before a softmax": (
        lambda: mlp(keras.layers.Softmax()),
        lambda model: swap_head(
            model, keras.layers.Dense(CLASSES), keras.layers.Softmax()
        ),
    ),
    "one more layer": (mlp, lambda model: model.add(keras.layers.Dense(CLASSES))),
    "activation": (mlp, replace_activations),
    "batch statistics": (
        lambda: network(hidden(4), kp.WhiteningLayer(), shape=(PIXELS,), classes=3),
        lambda model: setattr(model.layers[1], "use_batch_statistics", True),
    ),
    "an attribute of a layer": (
        lambda: network(Gate(name="gate"), shape=(PIXELS,), classes=CLASSES),
        lambda model: setattr(model.get_layer("gate"), "closed", True),
    ),
    "a layer in a subclassed model": (
        lambda: called(Subclassed(mlp())),
        lambda model: replace_activations(model),
    ),
    "lora": (mlp, enable_lora),
    "lora before a softmax": (lambda: mlp(activation="softmax"), enable_lora),
    "int8": (mlp, lambda model: model.quantize("int8")),
}


def called(model):
    model(np.zeros((2, PIXELS), "float32"))
    return model


def evaluate_used_and_fresh(make, change, x, y):
    """The report before a change, after it, and of a fresh model so changed."""
    options = {"epsilons": [0.05], "attacks": ["fgsm", "pgd", "pgd_ce"]}
    options |= {"pgd_steps": 3, "pgd_step_size": 0.02, "restarts": 1, "checks": False}
    reports = []
    keras.utils.set_random_seed(0)
    used = make()
    keras.utils.set_random_seed(0)
    fresh = make()
    reports.append(evaluate_robustness(used, x, y, **options))
    for model in (used, fresh):
        keras.utils.set_random_seed(1)
        change(model)
        reports.append(evaluate_robustness(model, x, y, **options))
    return reports


class TestTheModelOfNow:
    """Nothing of a model is kept from one evaluation to the next."""

    @pytest.mark.parametrize("name", CHANGES)
    def test_a_changed_model_is_as_a_fresh_one(self, images, labels, name):
        before, used, fresh = evaluate_used_and_fresh(*CHANGES[name], images, labels)
        assert used == fresh
        assert used != before or name == "int8"  # which changes little

    @staticmethod
    def check(name):
        def change(model):
            roll_weights(model)
            replace_activations(model)

        inputs, y = examples_for(build(name), 20)
        [x] = keras.tree.flatten(inputs)
        _, used, fresh = evaluate_used_and_fresh(lambda: build(name), change, x, y)
        assert used == fresh

    @zoo(*FEW)
    def test_so_are_some_models_of_the_zoo(self, name):
        self.check(name)

    @pytest.mark.slow
    @zoo(*[name for name in ZOO if name not in FEW])
    def test_so_is_every_other_one_that_can_be_attacked(self, name):
        if not can_be_attacked(build(name)):
            pytest.skip("needs one input of real numbers")
        self.check(name)

    def test_another_thread_sees_it_as_it_is(self, images, labels):
        model = mlp(activation="softmax")
        expected = to_numpy(model(images))
        config = model.get_config()
        seen, done = [], threading.Event()

        def watch():
            while not done.is_set():
                seen.append(
                    model.get_config() == config
                    and np.array_equal(to_numpy(model(images)), expected)
                )

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            evaluate_robustness(model, images, labels, [0.1], pgd_steps=5)
        finally:
            done.set()
            thread.join()
        assert seen and all(seen)

    def test_within_fit(self, images, labels):
        """On JAX, the training loop holds the weights meanwhile."""
        reports = []

        class Evaluate(keras.callbacks.Callback):
            def on_train_batch_end(self, batch, logs=None):
                reports.append(
                    evaluate_robustness(
                        self.model, images, labels, [0.05], ["fgsm"], checks=False
                    )
                )

        model = compiled(mlp())
        model.fit(images, labels, batch_size=30, verbose=0, callbacks=[Evaluate()])
        assert len(reports) == 2
        assert reports[1] == evaluate_robustness(
            model, images, labels, [0.05], ["fgsm"], checks=False
        )


class TestEndings:
    """What can be left out at the end of a model, and what cannot."""

    @pytest.fixture(scope="class")
    def expected(self, plain, images, labels):
        return evaluate_robustness(plain, images, labels, EPSILONS)

    @pytest.mark.parametrize(
        "classifier",
        [
            lambda: keras.Sequential(
                [keras.Input((PIXELS,)), mlp(activation="softmax")]
            ),
            lambda: keras.Sequential([mlp(), keras.layers.Activation("softmax")]),
            lambda: keras.Model(
                inputs := keras.Input((PIXELS,)), keras.ops.softmax(mlp()(inputs))
            ),
        ],
        ids=["in a nested model", "after a nested model", "operation"],
    )
    def test_a_softmax_anywhere_at_the_end(self, expected, images, labels, classifier):
        assert evaluate_robustness(classifier(), images, labels, EPSILONS) == expected

    def test_a_shared_layer_keeps_its_other_softmax(self, images):
        """Only the last of the calls is without it."""
        inputs = keras.Input((CLASSES,))
        shared = keras.layers.Dense(CLASSES, activation="softmax")
        model = keras.Model(inputs, shared(shared(inputs)))
        kernel, bias = shared.get_weights()
        problem = problem_of(model, images[:, :CLASSES], np.zeros(IMAGES))
        first = np.exp(problem.images @ kernel + bias)
        first /= first.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(
            to_numpy(problem.classifier(problem.images)),
            first @ kernel + bias,
            rtol=1e-4,
            atol=1e-5,
        )

    def test_an_activation_within_a_layer_stays(self):
        """An LSTM has the softmax in every step: its outputs are the logits."""
        model = keras.Sequential(
            [keras.Input((4, 3)), keras.layers.LSTM(3, activation="softmax")]
        )
        x = np.random.default_rng(0).random((10, 4, 3)).astype("float32")
        problem = problem_of(model, x, np.zeros(10))
        np.testing.assert_allclose(
            to_numpy(problem.classifier(x)), to_numpy(model(x)), rtol=1e-5
        )

    @pytest.mark.parametrize("ending", ["activation", "Activation layer", "operation"])
    def test_one_sigmoid_unit_is_two_classes(self, images, ending):
        rng = np.random.default_rng(4)
        weights = rng.normal(size=(PIXELS, 1))
        inputs = keras.Input((PIXELS,))
        if ending == "activation":
            outputs = keras.layers.Dense(1, activation="sigmoid")(inputs)
        else:
            last = keras.layers.Activation("sigmoid")
            last = keras.ops.sigmoid if ending == "operation" else last
            outputs = last(keras.layers.Dense(1)(inputs))
        model = keras.Model(inputs, outputs)
        bias = -0.5 * weights.sum(axis=0)
        model.set_weights([weights, bias])
        y = images @ weights + bias > 0  # boolean, in a column
        twin = linear(np.concatenate([0 * weights, weights], axis=1), [0, *bias])

        attacks = ["fgsm", "pgd", "noise", "pgd_dlr"]
        report, expected = (
            evaluate_robustness(model, images, y, [0.05, 0.1], attacks, restarts=1)
            for model in (model, twin)
        )
        assert report == expected
        assert report.clean_accuracy == 1 and not report.flags

    def test_a_saturated_sigmoid_has_a_gradient(self):
        model = network(shape=(2,), classes=1)
        model.add(keras.layers.Activation("sigmoid"))
        model.set_weights([np.array([[1e3], [-1e3]]), np.zeros(1)])
        report = evaluate_robustness(model, [[0.6, 0.4]], [[1]], [0.2], ["pgd_dlr"])
        assert report.clean_correct[0] and not report.correct["pgd_dlr"][0, 0]


class TestState:
    def test_is_left_as_it_was(self):
        """Of random generators, and of layers that count in inference."""

        class Counting(keras.layers.Layer):
            def build(self, shape):
                self.calls = self.add_weight(initializer="zeros", trainable=False)
                self.seed = keras.random.SeedGenerator(1)

            def call(self, x):
                self.calls.assign_add(1.0)
                return x + 0.01 * keras.random.normal(
                    keras.ops.shape(x), seed=self.seed
                )

        model, (x, y) = network(Counting(), hidden(8)), gaussian(20)
        before = [to_numpy(variable) for variable in model.variables]
        evaluate_robustness(model, x, y, [0.1], ["fgsm", "noise"], clip=None)
        for value, variable in zip(before, model.variables, strict=True):
            np.testing.assert_array_equal(to_numpy(variable), value)

    def test_stateful_layers_are_refused(self):
        recurrent = keras.layers.GRU(5, stateful=True, name="gru")
        model = keras.Sequential([keras.Input(batch_shape=(20, 3, 4)), recurrent])
        x, y = gaussian(20, (3, 4))
        with pytest.raises(ValueError, match=r"`stateful=False`.*layers \['gru'\]"):
            evaluate_robustness(model, x, y, [0.1], clip=None)


class TestScale:
    """A step of the paper is a hundredth of the range of pixels."""

    def test_pixels_from_0_to_255(self, images, labels):
        model = mlp()
        scaled = keras.Sequential(
            [keras.Input((PIXELS,)), keras.layers.Rescaling(1 / 255), model]
        )
        of_bytes = evaluate_robustness(
            scaled, 255 * images, labels, [12.75, 25.5], clip=(0, 255)
        )
        expected = evaluate_robustness(model, images, labels, [0.05, 0.1])
        assert of_bytes.settings["pgd_step_size"] == pytest.approx(2.55)
        for name in ("fgsm", "pgd"):
            np.testing.assert_allclose(
                of_bytes.accuracy[name], expected.accuracy[name], atol=0.02
            )
        assert not of_bytes.flags

    @pytest.mark.parametrize("attack", ["pgd", "pgd_ce", "pgd_dlr"])
    def test_of_an_unknown_range_the_step_must_be_given(self, images, labels, attack):
        message = re.escape(
            "Invalid value for argument `pgd_step_size`. Expected a size with which 40 "
            "steps reach the largest epsilon, 8; without `clip`, there is no range of "
            "pixels to scale the default by. Received: pgd_step_size=None, that is 0.01"
        )
        with pytest.raises(ValueError, match=message):
            evaluate_robustness(mlp(), images, labels, [8], [attack], clip=None)

    def test_small_steps_are_not_taken_for_misleading_gradients(self, images, labels):
        with pytest.warns(UserWarning, match="change a pixel by at most"):
            report = evaluate_robustness(
                mlp(), images, labels, [0.2], ["fgsm", "pgd"], pgd_steps=1, checks=False
            )
        [flag] = report.flags
        assert flag.name == "fgsm beats pgd"
        assert flag.advice == (
            "All PGD steps together change a pixel by at most 0.01: "
            "raise pgd_step_size."
        )


class TestDataSets:
    def test_are_refused_with_a_line_that_helps(self, plain, images, labels):
        class Batches(keras.utils.PyDataset):
            def __len__(self):
                return 2

            def __getitem__(self, index):
                if index > 1:
                    raise IndexError
                half = slice(30 * index, 30 * index + 30)
                return images[half], labels[half]

        data_sets = [Batches(), iter([(images, labels)])]
        if BACKEND == "tensorflow":
            import tensorflow as tf

            pairs = tf.data.Dataset.from_tensor_slices((images, labels))
            data_sets.append(pairs.batch(25))
        line = "x, y = map(np.concatenate, zip(*data))"
        expected = evaluate_robustness(plain, images, labels, [0.1], ["noise"])
        for data in data_sets:
            message = re.escape(f"another iterable, give `{line}`). Received: x=an obj")
            with pytest.raises(ValueError, match=message):
                evaluate_robustness(plain, data, None, [0.1])
            x, y = map(np.concatenate, zip(*data))  # noqa: B905
            assert evaluate_robustness(plain, x, y, [0.1], ["noise"]) == expected

    def test_rows_of_other_kinds_are_taken(self, plain, images, labels):
        expected = evaluate_robustness(plain, images, labels, [0.1], ["noise"])
        x = keras.ops.convert_to_tensor(images.astype("float32"))
        y = keras.ops.convert_to_tensor(labels)[:, None]
        sparse = scipy.sparse.csr_matrix(images)
        for inputs, targets in (
            (x, y),
            (images.tolist(), labels.tolist()),
            (sparse, y),
        ):
            report = evaluate_robustness(plain, inputs, targets, [0.1], ["noise"])
            assert report == expected


class TestErrors:
    @pytest.mark.parametrize(
        "argument, value, message",
        [
            ("x", np.zeros((0, PIXELS)), "Expected images of shape (M, ...), M > 0."),
            ("x", np.full((IMAGES, PIXELS), "a"), "Expected an array of numbers."),
            ("x", np.full((IMAGES, PIXELS), np.nan), "Expected finite numbers."),
            ("x", [[1.0], [1.0, 2.0]], "Expected an array."),
            (
                "x",
                np.zeros((IMAGES, PIXELS + 1)),
                "Expected images of the model's input shape (12,). "
                "Received: x=images of shape (13,)",
            ),
            (
                "x",
                np.full((IMAGES, PIXELS), 255),
                "Expected pixel values within clip=(0.0, 1.0) (for others, give "
                "`clip=(low, high)`, and epsilons in the same units). "
                "Received: x=values from 255 to 255",
            ),
            (
                "y",
                np.eye(CLASSES)[np.zeros(IMAGES, int)],
                "Expected integer labels of shape (60,); for one-hot labels give "
                "`y.argmax(axis=1)`. Received: y=shape (60, 3)",
            ),
            ("y", np.zeros(IMAGES - 1, int), "Received: y=shape (59,)"),
            ("y", np.eye(1, IMAGES), "Expected integer labels of shape (60,). Rec"),
            ("y", np.full(IMAGES, 0.5), "Expected integer labels."),
            (
                "y",
                np.full(IMAGES, CLASSES),
                "Expected labels from 0 to 2, one for each output of the model. "
                "Received: y=labels from 3 to 3",
            ),
            ("y", np.full(IMAGES, -1), "Received: y=labels from -1 to -1"),
            *(
                (
                    "epsilons",
                    value,
                    "Expected one or more finite numbers of at least 0, strictly "
                    f"increasing. Received: epsilons={value}",
                )
                for value in (
                    [],
                    0.1,
                    np.float32(0.5),
                    [-0.1],
                    [0.2, 0.1],
                    [0.1, 0.1],
                    [float("nan")],
                    [float("inf")],
                    ["0.1"],
                )
            ),
            *(
                (
                    "attacks",
                    value,
                    "Expected a sequence of distinct names out of "
                    "('fgsm', 'pgd', 'noise', 'uniform_noise', 'pgd_ce', 'pgd_dlr', "
                    "'autopgd', 'square'), or \"strong\" for all. "
                    f"Received: attacks={value}",
                )
                for value in (
                    *(["fgsm", "cw"], "fgsm", [], ["pgd", "pgd"]),
                    *(None, 3, [["fgsm"]]),
                )
            ),
            *(
                (
                    "clip",
                    value,
                    "Expected a pair (low, high) with low < high, or None. "
                    f"Received: clip={value}",
                )
                for value in ((1.0, 0.0), (0.0,), 1.0, (0.0, float("nan")))
            ),
            *(
                (
                    argument,
                    value,
                    f"Expected an integer of at least {minimum}. "
                    f"Received: {argument}={value}",
                )
                for argument, minimum, values in (
                    ("pgd_steps", 1, (0, 2.0, True)),
                    ("batch_size", 1, (0, None)),
                    ("seed", 0, (-1, None)),
                )
                for value in values
            ),
            ("pgd_step_size", 0.0, "Expected None or a finite number above 0."),
            (
                "pgd_step_size",
                float("inf"),
                "Expected None or a finite number above 0.",
            ),
            ("verbose", 2, 'Expected "auto", 0 or 1. Received: verbose=2'),
            ("checkpoint", 3, "Expected None or a path. Received: checkpoint=3"),
            ("checkpoint", "missing/a.json", "a file in a folder that exists. Rec"),
            ("checkpoint", ".", "a file in a folder that exists. Received"),
        ],
    )
    def test_invalid_arguments_are_named(
        self, plain, images, labels, argument, value, message
    ):
        arguments = {"x": images, "y": labels, "epsilons": [0.1], argument: value}
        with pytest.raises(ValueError) as error:
            evaluate_robustness(plain, **arguments)
        text = str(error.value)
        assert text.startswith(f"Invalid value for argument `{argument}`. Expected ")
        assert message in text

    @pytest.mark.parametrize(
        "outputs, message",
        [
            (lambda h: [h, h], "a model with one output. Received: model=2 outputs"),
            (lambda h: {"a": h}, "a model with one output"),
            (
                keras.layers.Dense(1),
                "at least 2 classes, with outputs of shape (batch, classes), or one "
                "that ends in a single sigmoid unit (if the output is the logit of "
                "such a unit, give `keras.Sequential([model, "
                'keras.layers.Activation("sigmoid")])`). Received: model=outputs of '
                "shape (60, 1)",
            ),
            (keras.layers.Reshape((3, 4)), "outputs of shape (60, 3, 4)"),
            (
                lambda h: keras.ops.exp(h) / keras.ops.sum(keras.ops.exp(h), 1, True),
                "a model that returns logits; give the model without its softmax",
            ),
        ],
    )
    def test_unsuitable_outputs_are_refused(self, images, labels, outputs, message):
        inputs = keras.Input((PIXELS,))
        model = keras.Model(inputs, outputs(hidden(PIXELS)(inputs)))
        with pytest.raises(ValueError, match="Invalid value for argument `model`. "):
            evaluate_robustness(model, images, labels, EPSILONS, ["noise"])
        with pytest.raises(ValueError, match=re.escape(message)):
            evaluate_robustness(model, images, labels, EPSILONS, ["noise"])

    def test_a_model_of_two_inputs_is_refused(self, images, labels):
        inputs = [keras.Input((PIXELS,)), keras.Input((PIXELS,))]
        model = keras.Model(inputs, keras.layers.Add()(inputs))
        with pytest.raises(ValueError, match="one input. Received: model=2 inputs"):
            evaluate_robustness(model, images, labels, EPSILONS)

    @pytest.mark.parametrize(
        "model", [np.tanh, keras.Sequential([keras.layers.Dense(2)])]
    )
    def test_anything_but_a_built_model_is_refused(self, images, labels, model):
        with pytest.raises(ValueError, match="Expected a built Keras model."):
            evaluate_robustness(model, images, labels, EPSILONS)

    def test_nan_from_the_model_is_not_counted_as_an_answer(self, images, labels):
        model = linear(np.full((PIXELS, CLASSES), np.nan))
        with pytest.raises(ValueError, match="The model returned NaN"):
            evaluate_robustness(model, images, labels, EPSILONS, ["noise"])
