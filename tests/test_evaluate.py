"""Evaluations as a whole: what they measure, and what they leave alone."""

import re
import threading

import keras
import numpy as np
import pytest
import scipy.sparse
from backend import BACKEND, to_numpy
from datasets import Batches, gaussian, tf_dataset
from model_zoo import ZOO, build, can_be_attacked, examples_for, zoo
from models import Subclassed, compiled, hidden, linear, network

import keras_powerlaw as kp
from keras_powerlaw.keras_internals import flatten_layers

CLASSES, PIXELS = 3, 12
# Of the zoo; all others are slow to test.
FEW = ["batch_norm", "residual", "nested_twice"]


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
    return mlp()


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).random((60, PIXELS))


@pytest.fixture(scope="module")
def labels(plain, images):
    """What the small classifier itself says, and now and then something else."""
    labels = to_numpy(plain(images.astype("float32"))).argmax(axis=1)
    labels[::10] = (labels[::10] + 1) % CLASSES
    return labels


def evaluate(
    model, x, y, attacks=("fgsm", "pgd", "noise"), epsilons=(0.05,), **options
):
    """An evaluation that is quick: few steps, without checks."""
    options = {"pgd_steps": 4, "pgd_step_size": 0.03, "checks": False, **options}
    return kp.evaluate_robustness(model, x, y, list(epsilons), attacks, **options)


@pytest.fixture(scope="module")
def expected(plain, images, labels):
    """The report of the small classifier, under attacks of all kinds."""
    return evaluate(plain, images, labels, ["fgsm", "pgd", "noise", "pgd_ce"])


class TestResults:
    def test_on_handwritten_digits(self, trained, digits):
        x, y = digits[1]
        epsilons = [0.0, 0.05, 0.1]
        names = ["fgsm", "pgd", "noise", "pgd_ce", "pgd_dlr"]
        report = kp.evaluate_robustness(trained, x, y, epsilons, names, checks=False)
        fgsm, pgd, noise = (report.accuracy[name] for name in names[:3])
        assert report.clean_accuracy > 0.9
        assert np.all(np.diff(fgsm) < 0)
        assert np.all(pgd <= fgsm)
        assert np.all(noise[1:] > fgsm[1:] + 0.1)
        # At ε = 0, nothing changes.
        for rows in report.correct.values():
            np.testing.assert_array_equal(rows[0], report.clean_correct)
        # The strong ones are nowhere weaker, and count what those before them broke.
        assert not np.any(report.correct["pgd_ce"] & ~report.correct["pgd"])
        assert not np.any(report.correct["pgd_dlr"] & ~report.correct["pgd_ce"])

    def test_images_broken_before_are_not_attacked_again(self, trained, digits):
        """By an attack before, at a smaller ε, or without any attack."""
        x, y = (array[:100] for array in digits[1])
        y = np.where(np.arange(100) % 7, y, (y + 1) % 10)
        epsilons, names = [0.05, 0.1], ["pgd_ce", "pgd_dlr"]
        report = evaluate(trained, x, y, names, epsilons)
        alone = {
            name: [
                evaluate(trained, x, y, [name], [e]).correct[name][0] for e in epsilons
            ]
            for name in names
        }
        left = report.clean_correct
        np.testing.assert_array_equal(left, evaluate(trained, x, y).clean_correct)
        ce = np.logical_and.accumulate(alone["pgd_ce"], axis=0)
        dlr = np.logical_and.accumulate(alone["pgd_dlr"], axis=0)
        np.testing.assert_array_equal(report.correct["pgd_ce"], ce)
        np.testing.assert_array_equal(report.correct["pgd_dlr"], ce & dlr)
        assert 0 < report.correct["pgd_dlr"][1].sum() < left.sum()

    def test_batch_size_changes_nothing(self, plain, images, labels):
        names = ["fgsm", "pgd", "noise", "uniform_noise", "pgd_ce", "pgd_dlr"]
        options = {"epsilons": [0.05, 0.1], "noise_draws": 2}
        few, all_at_once = (
            evaluate(plain, images, labels, names, batch_size=size, **options)
            for size in (7, 60)
        )
        assert few == all_at_once

    def test_batch_size_changes_nothing_in_half_precision(self):
        rng = np.random.default_rng(0)
        x = rng.random((6000, PIXELS), "float32")
        half = keras.layers.Dense(CLASSES, dtype="mixed_float16")
        last = keras.layers.Activation("linear", dtype="float32")
        model = keras.Sequential([keras.Input((PIXELS,)), half, last])
        half.set_weights([10 * rng.normal(size=(PIXELS, CLASSES)), np.zeros(CLASSES)])
        logits = np.sort(model.predict(x, batch_size=6000, verbose=0), axis=1)
        # So sure that a share in the mean loss of 500 images vanishes in float16.
        sure = np.flatnonzero(abs(logits[:, -1] - logits[:, -2] - 13) < 2)[:500]
        x, y = x[sure], model.predict(x[sure], verbose=0).argmax(axis=1)
        few, all_at_once = (
            evaluate(
                model, x, y, ["fgsm", "pgd"], [0.3], batch_size=size, pgd_step_size=0.1
            )
            for size in (50, 500)
        )
        for attack in ("fgsm", "pgd"):
            np.testing.assert_array_equal(
                few.correct[attack], all_at_once.correct[attack]
            )
            assert few.accuracy[attack][0] < 0.5

    def test_pixels_from_0_to_255_have_larger_steps(self, images, labels):
        scaled = keras.Sequential(
            [keras.Input((PIXELS,)), keras.layers.Rescaling(1 / 255), mlp()]
        )
        of_bytes = kp.evaluate_robustness(
            scaled, 255 * images, labels, [12.75, 25.5], clip=(0, 255)
        )
        expected = kp.evaluate_robustness(mlp(), images, labels, [0.05, 0.1])
        assert of_bytes.settings["pgd_step_size"] == pytest.approx(2.55)
        for name in ("fgsm", "pgd"):
            np.testing.assert_allclose(
                of_bytes.accuracy[name], expected.accuracy[name], atol=0.02
            )
        assert not of_bytes.flags

    def test_the_settings_of_a_report_repeat_the_evaluation(
        self, plain, images, labels
    ):
        options = {"epsilons": [0.5], "attacks": ["noise"], "checks": False}
        report = kp.evaluate_robustness(
            plain, images, labels, seed=3, clip=(-1, 2), **options
        )
        assert report.settings == {
            "norm": "inf",
            "pgd_steps": 40,
            "pgd_step_size": 0.03,
            "restarts": 2,
            "noise_draws": 1,
            "clip": [-1.0, 2.0],
            "seed": 3,
        }
        assert report == kp.evaluate_robustness(
            plain, images, labels, **options, **report.settings
        )

    def test_progress_is_shown_on_request(self, plain, images, labels, capsys):
        for verbose, shown in ((0, False), ("auto", False), (1, True)):
            evaluate(plain, images, labels, ["noise"], [0.1, 0.2], verbose=verbose)
            assert ("2/2" in capsys.readouterr().out) == shown

    @pytest.mark.slow
    def test_memory_does_not_grow_with_the_number_of_images(self):
        import tracemalloc

        model = network(shape=(1000,), classes=3)
        names = ["fgsm", "pgd", "noise", "uniform_noise", "pgd_ce", "pgd_dlr"]
        peaks = []
        for count in (100, 1000, 2000):
            x = np.random.default_rng(0).random((count, 1000), dtype="float32")
            tracemalloc.start()
            evaluate(model, x, np.arange(count) % 3, names, batch_size=50, checks=True)
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        # One copy of the further images would be 4 MB.
        assert peaks[2] - peaks[1] < 0.5e6


class TestKindsOfModels:
    @pytest.mark.parametrize(
        "make",
        [
            lambda: mlp(activation="softmax"),
            lambda: called(Subclassed(mlp())),
            lambda: mlp(keras.layers.Dropout(0.5, seed=0)),
        ],
        ids=["softmax", "subclassed", "dropout"],
    )
    def test_are_attacked_as_the_plain_one(self, images, labels, expected, make):
        names = list(expected.correct)
        assert evaluate(make(), images, labels, names) == expected

    def test_their_state_is_left_as_it_was(self):
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

        norm = keras.layers.BatchNormalization(activity_regularizer="l2")
        penalty = kp.SpectralActivityRegularizer(tau=3)
        model = network(Counting(), hidden(8, penalty), norm)
        x, y = gaussian(20)
        kp.refresh_eigenbasis(model, x)
        before = [to_numpy(variable) for variable in model.variables]
        evaluate(model, x, y, ["fgsm", "pgd", "pgd_ce"], clip=None)
        assert all(float(loss) >= 0 for loss in model.losses)  # not those of a graph
        for value, variable in zip(before, model.variables, strict=True):
            np.testing.assert_array_equal(to_numpy(variable), value)

    def test_stateful_layers_are_refused(self):
        recurrent = keras.layers.GRU(5, stateful=True, name="gru")
        model = keras.Sequential([keras.Input(batch_shape=(20, 3, 4)), recurrent])
        x, y = gaussian(20, (3, 4))
        with pytest.raises(ValueError, match=r"`stateful=False`.*layers \['gru'\]"):
            evaluate(model, x, y, clip=None)


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


def called(model):
    model(np.zeros((2, PIXELS), "float32"))
    return model


def evaluate_used_and_fresh(make, change, x, y):
    """The report before a change, after it, and of a fresh model so changed."""
    options = {"attacks": ["fgsm", "pgd", "pgd_ce"], "pgd_steps": 3, "restarts": 1}
    keras.utils.set_random_seed(0)
    used = make()
    keras.utils.set_random_seed(0)
    fresh = make()
    reports = [evaluate(used, x, y, **options)]
    for model in (used, fresh):
        keras.utils.set_random_seed(1)
        change(model)
        reports.append(evaluate(model, x, y, **options))
    return reports


class TestTheModelOfNow:
    """Nothing of a model is kept from one evaluation to the next."""

    def test_a_changed_model_is_as_a_fresh_one(self, images, labels):
        before, used, fresh = evaluate_used_and_fresh(
            lambda: mlp(activation="softmax"), enable_lora, images, labels
        )
        assert used == fresh != before

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
            evaluate(model, images, labels)
        finally:
            done.set()
            thread.join()
        assert seen and all(seen)

    def test_within_fit(self, images, labels):
        """On JAX, the training loop holds the weights meanwhile."""
        reports = []

        class Evaluate(keras.callbacks.Callback):
            def on_train_batch_end(self, batch, logs=None):
                reports.append(evaluate(self.model, images, labels, ["fgsm"]))

        model = compiled(mlp())
        model.fit(images, labels, batch_size=30, verbose=0, callbacks=[Evaluate()])
        assert len(reports) == 2
        assert reports[1] == evaluate(model, images, labels, ["fgsm"])


class TestData:
    def test_data_sets_are_refused_with_a_line_that_helps(self, plain, images, labels):
        data_sets = [Batches(images, labels, size=25), iter([(images, labels)])]
        if BACKEND == "tensorflow":
            data_sets.append(tf_dataset(images, labels, size=25))
        line = "x, y = map(np.concatenate, zip(*data))"
        message = re.escape(f"another iterable, give `{line}`). Received: x=an obj")
        for data in data_sets:
            with pytest.raises(ValueError, match=message):
                evaluate(plain, data, None)
        x, y = map(np.concatenate, zip(*Batches(images, labels, size=25), strict=False))
        np.testing.assert_array_equal(x, images)
        np.testing.assert_array_equal(y, labels)

    def test_arrays_of_other_kinds_are_taken(self, plain, images, labels):
        expected = evaluate(plain, images, labels, ["noise"])
        x = keras.ops.convert_to_tensor(images.astype("float32"))
        y = keras.ops.convert_to_tensor(labels)[:, None]
        for inputs, targets in (
            (x, y),
            (images.tolist(), labels.tolist()),
            (scipy.sparse.csr_matrix(images), y),
        ):
            assert evaluate(plain, inputs, targets, ["noise"]) == expected


class TestErrors:
    @pytest.mark.parametrize(
        "argument, value, message",
        [
            (
                "x",
                np.full((60, PIXELS), 255),
                "pixel values within clip=(0.0, 1.0) (for others, give "
                "`clip=(low, high)`, and epsilons in the same units). "
                "Received: x=values from 255 to 255",
            ),
            ("x", np.full((60, PIXELS), np.nan), "x=values from nan to nan"),
            ("y", np.eye(CLASSES)[np.zeros(60, int)], "`y.argmax(axis=1)`). Received:"),
            ("y", np.zeros(59, int), "Received: y=shape (59,)"),
            ("y", np.full(60, 0.5), "labels from 0 to 2, one for each"),
            ("y", np.full(60, CLASSES), "Received: y=labels from 3 to 3"),
            ("y", np.full(60, -1), "Received: y=labels from -1 to -1"),
            *(
                (
                    "epsilons",
                    value,
                    "one or more finite numbers of at least 0, strictly increasing.",
                )
                for value in ([], 0.1, [-0.1], [0.1, 0.1], [float("nan")], [np.inf])
            ),
            *(
                ("attacks", value, 'square\'), or "strong" for all. Received: attacks=')
                for value in (["fgsm", "cw"], "fgsm", [], ["pgd", "pgd"])
            ),
            *(
                ("clip", value, "a pair (low, high) with low < high, or None. Rec")
                for value in ((1.0, 0.0), 1.0, (0.0, float("nan")))
            ),
            *(
                (name, value, f"an integer of at least {minimum}.")
                for name, minimum, value in (
                    *(("pgd_steps", 1, 0), ("restarts", 1, 0), ("noise_draws", 1, 0)),
                    *(("batch_size", 1, None), ("seed", 0, -1)),
                )
            ),
            ("norm", 1, '"inf" or 2. Received: norm=1'),
            ("pgd_step_size", 0.0, "None or a finite number above 0."),
            ("checkpoint", 3, "None or a path. Received: checkpoint=3"),
            ("checkpoint", "missing/a.json", "a file in a folder that exists. Rec"),
        ],
    )
    def test_invalid_arguments_are_named(
        self, plain, images, labels, argument, value, message
    ):
        arguments = {"x": images, "y": labels, "epsilons": [0.1], argument: value}
        with pytest.raises(ValueError) as error:
            kp.evaluate_robustness(plain, **arguments)
        text = str(error.value)
        assert text.startswith(f"Invalid value for argument `{argument}`. Expected ")
        assert message in text

    def test_of_an_unknown_range_of_pixels_the_step_must_be_given(
        self, plain, images, labels
    ):
        message = re.escape(
            "Invalid value for argument `pgd_step_size`. Expected a size with which 40 "
            "steps reach the largest epsilon, 8; without `clip`, there is no range of "
            "pixels to scale the default by. Received: pgd_step_size=None, that is 0.01"
        )
        with pytest.raises(ValueError, match=message):
            kp.evaluate_robustness(plain, images, labels, [8], ["pgd_ce"], clip=None)

    @pytest.mark.parametrize(
        "model", [np.tanh, keras.Sequential([keras.layers.Dense(2)])]
    )
    def test_anything_but_a_built_model_is_refused(self, images, labels, model):
        with pytest.raises(ValueError, match="Expected a built Keras model."):
            evaluate(model, images, labels)

    def test_nan_from_the_model_is_not_counted_as_an_answer(self, images, labels):
        model = linear(np.full((PIXELS, CLASSES), np.nan))
        with pytest.raises(ValueError, match="The model returned NaN"):
            evaluate(model, images, labels)
