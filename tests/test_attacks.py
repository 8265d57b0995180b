"""The table of attacks, and what an attack is."""

import dataclasses
import re

import keras
import numpy as np
import pytest
from problems import problem_of

import keras_powerlaw as kp
from keras_powerlaw.plotting import plot_robustness
from keras_powerlaw.robustness import evaluate, inputs
from keras_powerlaw.robustness.attacks import noise
from keras_powerlaw.robustness.attacks.attack import Attack, Requirement
from keras_powerlaw.robustness.attacks.table import ATTACKS, BY_NAME, STRONG_ATTACKS


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [keras.Input((6,)), keras.layers.Dense(8), keras.layers.Dense(3)]
    )


@pytest.fixture(scope="module")
def data(model):
    x = np.random.default_rng(0).random((40, 6)).astype("float32")
    return x, keras.ops.convert_to_numpy(model(x)).argmax(axis=1)


class TestTable:
    def test_names_and_titles_are_unique(self):
        assert len({attack.name for attack in ATTACKS}) == len(ATTACKS)
        assert len({attack.title for attack in ATTACKS}) == len(ATTACKS)

    def test_strong_attacks_run_last(self):
        assert tuple(attack.name for attack in ATTACKS[-4:]) == STRONG_ATTACKS

    @pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
    def test_every_function_is_there(self, attack):
        assert callable(attack.run)

    def test_records_and_settings_cannot_be_changed(self, model, data):
        settings = problem_of(model, *data).settings
        for record, name in ((ATTACKS[0], "name"), (settings, "seed")):
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(record, name, "other")


class TestANewAttack:
    """One function, and one row."""

    @pytest.fixture
    def inverted(self, monkeypatch):
        """It turns an image into its negative, whatever ε."""
        row = Attack("inverted", "negative", "noise:inverted", bounded=False)

        def run(problem, epsilon, indices, progress):
            return noise.classify_perturbed(
                problem, indices, lambda batch: 1 - problem.images[batch], progress
            )

        monkeypatch.setattr(noise, "inverted", run, raising=False)
        monkeypatch.setattr(evaluate, "ATTACKS", (*ATTACKS, row))
        for module in (evaluate, inputs):
            monkeypatch.setitem(module.BY_NAME, "inverted", row)
        return row

    def test_is_evaluated_reported_and_drawn(self, model, data, inverted):
        x, y = data
        report = kp.evaluate_robustness(
            model, x, y, [0.1, 0.2], ["inverted", "noise"], verbose=0
        )
        expected = keras.ops.convert_to_numpy(model(1 - x)).argmax(axis=1) == y
        np.testing.assert_array_equal(report.correct["inverted"], [expected] * 2)
        assert "inverted" in str(report)
        # It is not bounded by ε, and so is not among the worst cases.
        np.testing.assert_array_equal(report.worst_case[0], report.clean_correct)
        axes = plot_robustness({"net": report}, "inverted")
        assert axes.get_title() == "negative"


class TestRequirements:
    missing = Requirement("no_such_package", "No Such Package", "extra")

    def prepare(self, requirement, backend="tensorflow"):
        settings = problem_of(None, np.zeros((2, 3)), np.zeros(2)).settings
        attack = Attack("new", "new", "noise:gaussian", requires=requirement)
        attack.prepare((2, 3), settings, backend)

    def test_a_missing_package_is_named_before_anything_is_computed(self):
        message = (
            '"new" needs No Such Package. Install it with: '
            "pip install 'keras-powerlaw[extra]'"
        )
        with pytest.raises(ImportError, match=re.escape(message)):
            self.prepare(self.missing)

    def test_unless_the_backend_does_without(self):
        missing = dataclasses.replace(self.missing, unless_on="jax")
        self.prepare(missing, backend="jax")
        with pytest.raises(ImportError):
            self.prepare(missing, backend="torch")

    def test_an_installed_one_is_fine(self):
        self.prepare(Requirement("numpy", "NumPy", "extra"))


@pytest.mark.parametrize("name", ["noise", "uniform_noise"])
def test_attacks_in_draws_return_a_row_for_each(model, data, name):
    problem = problem_of(model, *data, noise_draws=3)
    shares = []
    correct = BY_NAME[name].run(problem, 0.3, problem.indices, shares.append)
    assert correct.shape == (3, 40) and correct.dtype == bool
    assert not np.array_equal(correct[0], correct[1])
    assert shares == sorted(shares) and shares[-1] == 1
