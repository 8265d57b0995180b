"""Interrupted training goes on as if it had not been, or says why it can't."""

import keras
import numpy as np
import pytest
from backend import to_numpy
from datasets import gaussian
from models import compiled, hidden, network

import keras_powerlaw as kp
from keras_powerlaw.backends import steps_taken
from keras_powerlaw.backup import Course, read_backup, write_backup

DATA = gaussian(150)
SUBSET = {"every_steps": 7, "max_samples": 60}


class Interruption(Exception):
    pass


class Interrupt(keras.callbacks.Callback):
    def __init__(self, step):
        super().__init__()
        self.left = step

    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        if self.left == 0:
            raise Interruption


def train(folder, settings, *more):
    """Six epochs of five steps, or what is left of them: a process of its own."""
    folder.mkdir(exist_ok=True)
    keras.utils.set_random_seed(0)
    regularized = hidden(15, kp.SpectralActivityRegularizer(tau=3))
    model = compiled(network(regularized), keras.optimizers.Adam(1e-2))
    backup = folder / "backup"
    callbacks = [
        kp.EigenbasisRefresh(**settings, backup_dir=backup),
        keras.callbacks.CSVLogger(folder / "log.csv", append=True),
        keras.callbacks.BackupAndRestore(backup),
        *more,
    ]
    options = {"batch_size": 30, "epochs": 6, "shuffle": False, "verbose": 0}
    model.fit(*DATA, **options, callbacks=callbacks)
    basis = model.get_layer("hidden").activity_regularizer.basis
    return [*model.get_weights(), to_numpy(basis)]


class TestInterruptedTraining:
    """Killed in the fourth epoch; no refresh but the first is at an epoch's start."""

    @pytest.mark.parametrize(
        "settings",
        [
            {"every_steps": 4},
            pytest.param({"x": DATA[0], "every_epochs": 4}, marks=pytest.mark.slow),
            pytest.param({"x": DATA[0], **SUBSET}, marks=pytest.mark.slow),
        ],
        ids=["training batches", "every four epochs", "every seven steps, on a subset"],
    )
    def test_ends_with_the_same_weights_basis_and_logs_to_the_last_bit(
        self, settings, tmp_path
    ):
        whole, killed = tmp_path / "whole", tmp_path / "killed"
        expected = train(whole, settings)
        with pytest.raises(Interruption):
            train(killed, settings, Interrupt(18))
        found = train(killed, settings)
        for one, other in zip(expected, found, strict=True):
            np.testing.assert_array_equal(other, one)
        logs = [(folder / "log.csv").read_text() for folder in (whole, killed)]
        assert logs[0] == logs[1]
        assert not (killed / "backup").exists()

    def test_goes_on_without_its_file_and_says_so(self, tmp_path):
        with pytest.raises(Interruption):
            train(tmp_path, {"every_steps": 4}, Interrupt(18))
        path = tmp_path / "backup" / "eigenbasis-backup.npz"
        path.unlink()
        with pytest.warns(UserWarning, match=f"without its eigenbasis: '{path}' is mi"):
            weights = train(tmp_path, {"every_steps": 4})
        assert all(np.all(np.isfinite(each)) for each in weights)


@pytest.fixture
def model():
    """Two regularized layers of one name, and an optimizer that has taken 12 steps."""
    regularized = [
        hidden(units, kp.SpectralActivityRegularizer(tau=2)) for units in (6, 5)
    ]
    inner = keras.Sequential([keras.Input((12,)), regularized[0]], name="inner")
    model = compiled(network(inner, regularized[1]))
    model.optimizer.iterations.assign(12)
    return model


def bases(model):
    layers = model.get_layer("inner").layers[0], model.get_layer("hidden")
    return [layer.activity_regularizer.eigenbasis for layer in layers]


COURSE = Course(steps=10, last_refresh=9, refreshes=4)
FIGURES = {"inner/hidden": (1.5, 0.25), "hidden": (np.nan, np.nan)}


@pytest.fixture
def path(model, tmp_path):
    """A backup that is written, in a folder that was not there."""
    for basis, units in zip(bases(model), (6, 5), strict=True):
        basis.renew(np.eye(units), np.arange(units, 0.0, -1))
    path = tmp_path / "new" / "eigenbasis.npz"
    write_backup(path, model, COURSE, FIGURES)
    return path


class TestFile:
    def test_is_one_and_holds_the_state_of_the_callback_and_layers(self, model, path):
        expected = [basis.to_arrays() for basis in bases(model)]
        for basis in bases(model):
            basis.discard()
        course, figures = read_backup(path, model)
        assert course == COURSE
        np.testing.assert_equal({k: tuple(v) for k, v in figures.items()}, FIGURES)
        assert list(path.parent.iterdir()) == [path]
        for basis, arrays in zip(bases(model), expected, strict=True):
            assert basis.status == "known"
            for name, array in basis.to_arrays().items():
                np.testing.assert_array_equal(array, arrays[name])

    def test_may_come_before_the_first_refresh(self, model, path):
        write_backup(path, model, Course(steps=10), {})
        course, figures = read_backup(path, model)
        assert course == Course(10, -1, 0)
        assert np.all(np.isnan(figures["hidden"]))

    @pytest.mark.parametrize(
        "spoil, reason",
        [
            (lambda path: path.write_bytes(b""), "No data left"),
            (lambda path: path.write_bytes(b"no archive"), "pickled"),
            (lambda path: path.write_bytes(path.read_bytes()[:-50]), "not a zip file"),
            (lambda path: np.savez(path, state=[0, 0, 0]), "weights"),
        ],
        ids=["empty", "of another kind", "truncated", "of other contents"],
    )
    def test_that_can_not_be_read_is_named(self, model, path, spoil, reason):
        spoil(path)
        match = f"'{path}' is missing, damaged.*{reason}"
        with pytest.warns(UserWarning, match=match):
            assert read_backup(path, model) is None

    def test_of_another_step_is_not_taken(self, model, path):
        model.optimizer.iterations.assign(13)
        with pytest.warns(UserWarning, match="not of step 13 .it is of step 12"):
            assert read_backup(path, model) is None
        assert steps_taken(model) == 13
