"""Training on two devices agrees with training on one."""

import contextlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import reference
from backend import BACKEND, only, to_numpy
from datasets import Batches, gaussian
from keras import layers
from models import compiled, feature_map, hidden, network

import keras_powerlaw as kp
from keras_powerlaw.backends import share_of_replica

HAS_AN_ENGINE = only(
    "tensorflow", "jax", why="Keras has no engine for several devices there"
)
VECTORS, IMAGES = gaussian(230), gaussian(92, (6, 6, 1))


def with_descent(model):
    """Unlike Adam, gradient descent tells a scaled gradient."""
    return compiled(model, keras.optimizers.SGD(0.1), metrics=["accuracy"])


def compiled_model(exact=False):
    """Two regularized layers and a whitened one; weights from a fixed seed."""
    keras.utils.set_random_seed(0)
    first, second = (
        kp.SpectralActivityRegularizer(tau=3, beta=2.0, exact=exact) for _ in range(2)
    )
    white = kp.WhiteningLayer(name="white")
    return with_descent(
        network(hidden(20, first, "first"), white, hidden(15, second, "second"))
    )


def with_feature_maps(reduction):
    keras.utils.set_random_seed(0)
    model = network(feature_map(8), layers.Flatten(), shape=(6, 6, 1))
    kp.add_spectral_regularizer(model, "map", tau=2, beta=2.0, reduction=reduction)
    return with_descent(model)


def attached_after_training():
    keras.utils.set_random_seed(0)
    model = with_descent(network(hidden(20)))
    model.fit(*VECTORS, batch_size=46, shuffle=False, verbose=0)
    return kp.add_spectral_regularizer(model, "hidden", tau=3, beta=2.0)


def fit(model, data, refresh=None, size=46):
    """The logs of training and, after it, of evaluation.

    Not of validation within: with two data sets distributed at once, TensorFlow has
    crashed in its own code.
    """
    callbacks = [] if refresh is None else [refresh]
    options = {"epochs": 3, "shuffle": False, "verbose": 0, "callbacks": callbacks}
    logs = model.fit(*data, batch_size=size, **options).history
    evaluated = model.evaluate(*data, batch_size=size, verbose=0, return_dict=True)
    return logs | {f"val_{name}": value for name, value in evaluated.items()}


REFRESH = kp.EigenbasisRefresh
CASES = {
    "every epoch": (compiled_model, lambda x: REFRESH(x)),
    "every other step": (compiled_model, lambda x: REFRESH(x, every_steps=2)),
    "training batches": (compiled_model, lambda x: REFRESH(every_steps=2)),
    "attached": (attached_after_training, lambda x: REFRESH(every_steps=2)),
    "exact": (lambda: compiled_model(exact=True), lambda x: None),
    "channels": (lambda: with_feature_maps("channels"), lambda x: REFRESH(x)),
    "means": (lambda: with_feature_maps("mean"), lambda x: REFRESH(x)),
    "Jacobian": (
        lambda: kp.add_jacobian_regularizer(compiled_model(exact=True), beta=1.0),
        lambda x: None,
    ),
}


@HAS_AN_ENGINE
class TestTwoDevices:
    @pytest.mark.parametrize("build, refresh", CASES.values(), ids=CASES)
    def test_losses_weights_and_logs_agree_with_one(self, strategy, build, refresh):
        found = []
        for scope in (contextlib.nullcontext, strategy):
            with scope():
                model = build()
                data = IMAGES if len(model.input_shape) > 2 else VECTORS
                logs = fit(model, data, refresh(data[0]))
                found.append((model.get_weights(), logs))
        (weights, logs), (weights_of_two, logs_of_two) = found
        assert logs.keys() == logs_of_two.keys()
        for name, values in logs.items():
            # The staleness is one less a ratio, which magnifies a relative error. The
            # order of a sum may decide on the class of an example between two.
            atol = {"staleness": 1e-4, "accuracy": 1.01 / len(data[0])}
            np.testing.assert_allclose(
                *(logs_of_two[name], values),
                rtol=1e-4,
                atol=atol.get(name.rsplit("_")[-1], 0),
            )
        for expected, weight in zip(weights, weights_of_two, strict=True):
            np.testing.assert_allclose(weight, expected, rtol=1e-3, atol=1e-4)

    def test_a_backup_is_written_and_training_may_begin_anew(self, strategy, tmp_path):
        refresh = kp.EigenbasisRefresh(every_steps=2, backup_dir=tmp_path)
        written = []
        seen = keras.callbacks.LambdaCallback(
            on_epoch_end=lambda epoch, logs: written.append(list(tmp_path.iterdir()))
        )
        with strategy():
            model = compiled_model()
            for _ in range(2):
                compiled(model)
                history = model.fit(
                    *VECTORS, batch_size=46, verbose=0, callbacks=[refresh, seen]
                ).history
                assert not list(tmp_path.iterdir())
        assert [len(files) for files in written] == [1, 1]
        assert np.isfinite(history["first_exponent"]).all()

    def test_a_last_batch_may_have_one_or_two_examples_for_each(self, strategy):
        count = 50 if BACKEND == "jax" else 49  # JAX's devices take equal shares
        data = tuple(array[:count] for array in VECTORS)
        with strategy():
            logs = fit(compiled_model(), data, kp.EigenbasisRefresh(data[0]))
        assert np.all(np.isfinite(logs["loss"]))

    def test_a_refresh_reads_the_data_once_and_all_hold_the_basis(self, strategy):
        x = VECTORS[0]
        batches = Batches(x, size=46)
        with strategy():
            model = compiled_model()
            spectra = kp.refresh_eigenbasis(model, batches)
        assert batches.delivered == [0, 1, 2, 3, 4]
        activity = to_numpy(keras.Model(model.inputs, model.layers[0].output)(x))
        expected = reference.eigenvalues(activity)
        np.testing.assert_allclose(spectra["first"].eigenvalues, expected, atol=1e-6)
        copies = copies_of(model.layers[0].activity_regularizer.basis)
        assert len(copies) == 2
        np.testing.assert_array_equal(*copies)
        along = reference.variances(activity, np.float64(copies[0]))
        np.testing.assert_allclose(along, expected[2:], atol=1e-5)

    def test_measurements_agree_with_one(self, strategy):
        x, y = np.clip(VECTORS[0], 0, 1), VECTORS[1]
        measured = []
        for scope in (contextlib.nullcontext, strategy):
            with scope():
                model = compiled_model()
                kp.refresh_eigenbasis(model, x)
                exponent = kp.measure_spectrum(model, x, "first").exponent
                report = kp.evaluate_robustness(model, x, y, [0.1], pgd_steps=10)
                measured.append((exponent, report))
        (exponent, report), (exponent_of_two, report_of_two) = measured
        np.testing.assert_allclose(exponent_of_two, exponent, rtol=1e-5)
        assert report_of_two == report

    @only("tensorflow", why="elsewhere a loss is that of the global batch")
    def test_the_shares_of_the_replicas_add_up_to_the_loss(self, strategy):
        import tensorflow as tf

        losses = np.random.default_rng(0).normal(size=50).astype("float32")

        def shares():
            ours = [share_of_replica(tf.constant(loss)) for loss in losses]
            theirs = [tf.nn.scale_regularization_loss(loss) for loss in losses]
            return ours, theirs

        with strategy():
            current = tf.distribute.get_strategy()
            ours, theirs = current.run(tf.function(shares))
            totals = [current.reduce("sum", share, axis=None) for share in ours]
        np.testing.assert_array_equal(totals, losses)  # to the last digit
        results = current.experimental_local_results
        for mine, its in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(results(mine), results(its))

    @only("tensorflow", why="the replicas of tf.distribute wait for each other")
    def test_other_activity_regularizers_are_refused(self, strategy):
        with strategy():
            decayed = layers.Dense(12, activity_regularizer="l2", name="decayed")
            model = network(decayed, compiled_model())
            with pytest.raises(ValueError, match=r"Keras mixes up .*\['decayed'\]"):
                kp.refresh_eigenbasis(model, VECTORS[0])


def copies_of(variable):
    if BACKEND == "jax":
        return [np.asarray(shard.data) for shard in variable.value.addressable_shards]
    return [copy.numpy() for copy in variable.value.values]


def free_ports(count):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("localhost", 0))
        return [each.getsockname()[1] for each in sockets]


NO_GLOO = 77  # exit code


def results_of_two(program, data, folder, *arguments, environments=({}, {})):
    """What two processes write, which has to be the same to the last bit."""
    np.savez(folder / "data.npz", x=data[0], y=data[1])
    outputs, processes = [folder / f"{index}.npz" for index in range(2)], []
    for index, output in enumerate(outputs):
        words = (program, folder / "data.npz", output, index, *arguments)
        processes.append(
            subprocess.Popen(
                [sys.executable, *map(str, words)],
                cwd=Path(__file__).parent,
                env=os.environ | environments[index],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    for process in processes:
        printed, _ = process.communicate(timeout=300)
        if process.returncode == NO_GLOO:
            pytest.skip("this JAX has no collective operations between CPUs (gloo)")
        assert process.returncode == 0, printed
    first, second = (dict(np.load(output)) for output in outputs)
    assert first.keys() == second.keys() and len(first) > 5
    for name, values in first.items():
        np.testing.assert_array_equal(second[name], values)
    return first


def assert_same_state(found, model, atol):
    for index, weight in enumerate(model.get_weights()):
        np.testing.assert_allclose(found[f"weight{index}"], weight, 1e-3, atol)
    # Eigenvectors have no sign of their own, and turn with the rounding of weights.
    basis = to_numpy(model.layers[0].activity_regularizer.basis)
    signs = np.sign(np.sum(found["basis"] * basis, axis=0))
    np.testing.assert_allclose(found["basis"] * signs, basis, atol=2e-3)


@only("tensorflow", why="tf.distribute belongs to TensorFlow")
def test_two_workers_agree_with_one_device(tmp_path):
    """Two processes on loopback, in a training loop of their own.

    Keras' own `fit()` fails under MultiWorkerMirroredStrategy with any model.
    """
    workers = [f"localhost:{port}" for port in free_ports(2)]
    tasks = [{"type": "worker", "index": index} for index in range(2)]
    configs = [{"cluster": {"worker": workers}, "task": task} for task in tasks]
    environments = [{"TF_CONFIG": json.dumps(config)} for config in configs]
    found = results_of_two("worker.py", VECTORS, tmp_path, environments=environments)
    model, losses = compiled_model(), []
    for start in range(0, 230, 46):
        if start in (0, 92):
            kp.refresh_eigenbasis(model, VECTORS[0])
        batch = (array[start : start + 46] for array in VECTORS)
        model.reset_metrics()  # some versions of Keras report a mean over the batches
        losses.append(model.train_on_batch(*batch)[0])
    np.testing.assert_allclose(found["losses"], losses, rtol=1e-5)
    assert_same_state(found, model, atol=5e-5)


PROCESSES, PER_PROCESS = 2, 20  # the examples of a batch that each process has


@only("jax", why="keras.distribution is for JAX there")
@pytest.mark.parametrize("source", ["data", "training steps"])
def test_two_jax_processes_agree_with_one_device(source, tmp_path):
    """Two processes on loopback with two devices each, in `fit()`."""
    data = tuple(array[:200] for array in VECTORS)
    [port] = free_ports(1)
    found = results_of_two("jax_worker.py", data, tmp_path, port, source)
    assert found["devices"] == 4
    np.testing.assert_array_equal(found["assigned"], found["basis"])
    model, x = compiled_model(), data[0] if source == "data" else None
    refresh = REFRESH(x, every_steps=2)
    for name, values in fit(model, data, refresh, PROCESSES * PER_PROCESS).items():
        atol = 1e-4 if name.endswith("_staleness") else 0
        expected = np.atleast_1d(values)  # of evaluation, those at the end
        logged = found[f"log {name}"][-len(expected) :]
        np.testing.assert_allclose(logged, expected, rtol=1e-4, atol=atol)
    assert_same_state(found, model, atol=1e-4)
    spectrum = kp.measure_spectrum(model, data[0], "first")
    np.testing.assert_allclose(found["spectrum"], spectrum.eigenvalues, atol=1e-5)
