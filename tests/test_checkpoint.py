"""Evaluations that are interrupted and resume from a file."""

import json
import re

import keras
import numpy as np
import pytest
from models import hidden, network

from keras_powerlaw import RobustnessReport, evaluate_robustness

ATTACKS = ["noise", "pgd_ce", "pgd_dlr"]
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


@pytest.fixture(scope="module")
def expected(model, data):
    return evaluate(model, data)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "report.json"


def evaluate(model, data, path=None, attacks=ATTACKS, **options):
    options = {"pgd_steps": 10, "pgd_step_size": 0.03, "noise_draws": 2, **options}
    options = {"batch_size": 30, "verbose": 0, **options}
    return evaluate_robustness(
        model, *data, [0.0, 0.1, 0.2], attacks, checkpoint=path, **options
    )


def flip_results(path):
    """Turns every result in a checkpoint into its opposite, and returns them all."""
    state = json.loads(path.read_text(encoding="utf-8"))
    opposite = str.maketrans("01", "10")
    for name, rows in state["correct"].items():
        state["correct"][name] = [row.translate(opposite) for row in rows]
    path.write_text(json.dumps(state), encoding="utf-8")
    return state["correct"]


@pytest.fixture
def interrupt(model, data, path, monkeypatch):
    """Returns a function that evaluates until so many units are finished.

    A unit is one attack at one strength, and two batches, as the bar shows. Every
    third one is at ε = 0, which takes no time, so that nothing can interrupt it.
    """

    def evaluate_until(finished):
        def update(bar, current, **_):
            if current == 2 * finished + 1:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(keras.utils.Progbar, "update", update)
            with pytest.raises(KeyboardInterrupt):
                evaluate(model, data, path, verbose=1)

    return evaluate_until


@pytest.mark.parametrize("finished", [1, 5, 8])
def test_an_interrupted_evaluation_goes_on(
    model, data, path, interrupt, expected, finished
):
    interrupt(finished)
    report = evaluate(model, data, path)
    assert report == expected
    assert report.checks == expected.checks


@pytest.mark.parametrize("finished", [2, 5])
def test_what_is_finished_is_read(model, data, path, interrupt, finished):
    """So whoever changes the file changes the report."""
    interrupt(finished)
    changed = flip_results(path)
    assert sum(len(rows) for rows in changed.values()) == finished
    report = evaluate(model, data, path)
    for name, rows in changed.items():
        for bits, row in zip(rows, report.correct[name], strict=False):
            assert bits == "".join(map(str, row.astype(int)))


def test_a_finished_one_is_a_report_and_is_read(model, data, path, expected):
    assert evaluate(model, data, str(path)) == expected
    text = path.read_text(encoding="utf-8")
    assert RobustnessReport.from_json(text) == expected
    flip_results(path)
    flipped = RobustnessReport.from_json(path.read_text(encoding="utf-8"))
    assert evaluate(model, data, str(path)) == flipped != expected


@pytest.mark.parametrize("finished", [2, 5])
def test_an_unfinished_one_is_no_report(path, interrupt, finished):
    interrupt(finished)
    with pytest.raises(ValueError, match="Invalid value for argument `text`"):
        RobustnessReport.from_json(path.read_text(encoding="utf-8"))
    assert [file.name for file in path.parent.iterdir()] == ["report.json"]


def test_a_model_made_again_in_half_precision_is_the_same(data, path):
    """Keras numbers its layers on, and draws new seeds."""
    reports = []
    for _ in range(2):
        dense = keras.layers.Dense(3, dtype="bfloat16")
        model = keras.Sequential(
            [keras.Input((PIXELS,)), keras.layers.Dropout(0.5), dense]
        )
        dense.set_weights([np.eye(PIXELS, 3), np.zeros(3)])
        reports.append(evaluate(model, data, path, ["noise"]))
    assert reports[0] == reports[1]


class Shift(keras.layers.Layer):
    """A layer whose behaviour hangs on an attribute that no weight shows."""

    by = 0.0

    def call(self, x):
        return x + self.by


@pytest.mark.parametrize("differing", ["seed", "attacks", "x", "y", "model", "outputs"])
def test_another_evaluation_is_refused(data, path, differing):
    model = network(Shift(name="shift"), shape=(PIXELS,), classes=3)
    evaluate(model, data, path, ["noise"])
    (x, y), attacks, options = data, ["noise"], {}
    if differing == "seed":
        options["seed"] = 1
    elif differing == "attacks":
        attacks = ["uniform_noise"]
    elif differing == "model":
        model.set_weights([2 * weight for weight in model.get_weights()])
    elif differing == "outputs":
        model.get_layer("shift").by = 3.0
    other = (1 - x if differing == "x" else x, (y + 1) % 3 if differing == "y" else y)
    message = f"a checkpoint of the same evaluation; ['{differing}'] differ"
    with pytest.raises(ValueError, match=re.escape(message)):
        evaluate(model, other, path, attacks, **options)


@pytest.mark.parametrize("text", ["", "[]", json.dumps({"epsilons": [0.1]})])
def test_another_file_is_refused_and_kept(model, data, path, text):
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match="argument `checkpoint`. Expected the path"):
        evaluate(model, data, path, ["noise"])
    assert path.read_text(encoding="utf-8") == text
