"""The backends agree on the same weights, and read each other's files.

Each other backend that is installed runs `across_backends.py` in a process of its own.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from across_backends import EPSILONS, compiled_model, results
from backend import BACKEND, only, tensorflow
from models import hidden, network

import keras_powerlaw as kp

TESTS = Path(__file__).parent
OTHERS = sorted({"tensorflow", "jax", "torch"} - {BACKEND})


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("across_backends")
    rng = np.random.default_rng(0)
    x = rng.random((200, 16)).astype("float32")
    keras.utils.set_random_seed(0)
    model = compiled_model()
    kp.refresh_eigenbasis(model, x)
    model(x, training=True)  # sets the whitening statistics
    given = {f"weight{i}": weight for i, weight in enumerate(model.get_weights())}
    np.savez(directory / "given.npz", x=x, y=rng.integers(4, size=200), **given)
    return directory


@pytest.fixture(scope="module", params=OTHERS)
def other(request, directory):
    """The name of another backend, whose results are in the directory."""
    if importlib.util.find_spec(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    finished = subprocess.run(
        [sys.executable, TESTS / "across_backends.py", directory],
        env=os.environ | {"KERAS_BACKEND": request.param},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert finished.returncode == 0, finished.stderr
    return request.param


@pytest.fixture(scope="module")
def ours(directory):
    return results(directory)


class TestResults:
    @pytest.fixture
    def pairs(self, ours, other, directory):
        """Ours and those of the other backend, by name."""
        with np.load(directory / f"{other}.npz") as theirs:
            return {name: (ours[1][name], theirs[name]) for name in theirs}

    def test_agree_to_rounding(self, pairs):
        for name in (
            *("losses", "exponents", "eigenvalues", "penalty", "gradient"),
            *("exact", "exact_gradient", "white", "logits"),
        ):
            expected, found = pairs[name]
            atol = 1e-4 * np.abs(expected).max()
            np.testing.assert_allclose(found, expected, 1e-3, atol, err_msg=name)

    @pytest.mark.parametrize("epsilon", EPSILONS)
    @pytest.mark.parametrize("attack", ["fgsm", "pgd"])
    def test_attacks_take_the_same_steps(self, pairs, attack, epsilon):
        """cleverhans on TensorFlow and PyTorch, the steps written out on JAX."""
        expected, found = pairs[f"{attack} {epsilon}"]
        same = np.isclose(found, expected, atol=1e-5)
        # The sign of a gradient within rounding of zero is anyone's.
        assert same.mean() > 0.999
        assert np.abs(found - expected).max() <= 2 * epsilon + 1e-6

    def test_accuracies_agree(self, pairs):
        for attack in ("fgsm", "pgd", "noise"):
            expected, found = pairs[f"correct {attack}"]
            assert np.mean(found == expected) > 0.995


class TestFiles:
    def test_model_of_another_backend_predicts_and_trains_on(
        self, ours, other, directory
    ):
        with np.load(directory / "given.npz") as given:
            x, y = given["x"], given["y"]
        model = keras.saving.load_model(directory / f"{other}.keras")
        if "torch" in (other, BACKEND):
            # Keras writes the optimizer's class into the file, and PyTorch has its own.
            model.compile_from_config(compiled_model().get_compile_config())
        np.testing.assert_allclose(
            model.predict(x, verbose=0), ours[1]["logits"], atol=1e-4
        )
        assert model.get_layer("hidden").activity_regularizer.alpha == 1.2
        options = {"batch_size": 50, "epochs": 3, "shuffle": False, "verbose": 0}
        refresh = kp.EigenbasisRefresh(x)
        history = model.fit(x, y, callbacks=[refresh], **options).history
        np.testing.assert_allclose(history["loss"], ours[1]["losses"], rtol=1e-3)

    def test_weights_of_another_backend(self, ours, other, directory):
        with np.load(directory / "given.npz") as given:
            x = given["x"]
        plain = network(hidden(24), kp.WhiteningLayer(name="white"), shape=(16,))
        for model in (compiled_model(), plain):
            model.load_weights(directory / f"{other}.weights.h5")
            np.testing.assert_allclose(
                model.predict(x, verbose=0), ours[1]["logits"], atol=1e-4
            )


@only("tensorflow", "jax", why="Keras exports it without TensorFlow's SavedModel")
class TestServing:
    def test_exported_graph_has_neither_penalty_nor_basis(self, tmp_path):
        tf = tensorflow()
        x = np.random.default_rng(0).random((200, 16)).astype("float32")
        # JAX's Cholesky factorization is a call that TensorFlow's runtime lacks.
        model = compiled_model(whitened=BACKEND != "jax")
        kp.refresh_eigenbasis(model, x)
        if BACKEND == "jax":  # whose models carry the basis among their variables
            model.save(tmp_path / "model.keras")
            model = keras.saving.load_model(tmp_path / "model.keras")
        model.export(tmp_path / "serving", verbose=False)
        served = tf.saved_model.load(tmp_path / "serving")
        expected = model.predict(x, verbose=0)
        np.testing.assert_allclose(served.serve(x), expected, atol=1e-4)
        shapes = sorted(tuple(variable.shape) for variable in served.variables)
        assert shapes == sorted(weight.shape for weight in model.get_weights())

        kp.remove_spectral_regularizer(model).export(tmp_path / "plain", verbose=False)
        assert operations(tmp_path / "serving") == operations(tmp_path / "plain")


def operations(directory):
    """The operations in an exported inference graph."""
    import tensorflow as tf

    graph = tf.saved_model.load(directory).signatures["serve"].graph.as_graph_def()
    nodes = [*graph.node, *(n for f in graph.library.function for n in f.node_def)]
    return {node.op for node in nodes} - ZERO_LOSS


# What Keras itself makes of the zero that the regularizer returns.
ZERO_LOSS = {"Shape", "StridedSlice", "Cast", "DivNoNan"}
