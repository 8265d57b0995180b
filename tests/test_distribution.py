"""Training on two devices agrees with training on one."""

import contextlib
import functools
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from backend import BACKEND, only, to_numpy
from datasets import Batches, gaussian
from keras import layers
from models import compiled, feature_map, hidden, network

import keras_powerlaw as kp
from keras_powerlaw.backends import share_of_replica

HAS_AN_ENGINE = only(
    "tensorflow", "jax", why="Keras has no engine for several devices there"
)


@pytest.fixture
def data():
    return gaussian(230)


def compiled_model(exact=False):
    """Two regularized layers and a whitened one; weights from a fixed seed."""
    keras.utils.set_random_seed(0)
    first, second = (
        kp.SpectralActivityRegularizer(tau=3, beta=2.0, exact=exact) for _ in range(2)
    )
    model = network(
        hidden(20, first, "first"),
        kp.WhiteningLayer(name="white"),
        hidden(15, second, "second"),
    )
    # Unlike Adam, gradient descent tells a scaled gradient.
    return compiled(model, keras.optimizers.SGD(0.1), metrics=["accuracy"])


@HAS_AN_ENGINE
class TestTwoDevices:
    def fit(self, scope, data, refresh=None, exact=False, batch_size=46):
        with scope():
            model = compiled_model(exact)
            history = model.fit(
                *data,
                batch_size=batch_size,
                epochs=3,
                shuffle=False,
                verbose=0,
                callbacks=[refresh] if refresh else [],
                validation_data=data,
                validation_batch_size=batch_size,
            ).history
        return model, history

    @pytest.mark.parametrize(
        "settings",
        [{}, {"every_steps": 2}, {"x": None, "every_steps": 2}, None],
        ids=["every epoch", "every other step", "training batches", "exact"],
    )
    def test_losses_weights_and_logs_agree_with_one_device(
        self, strategy, data, settings
    ):
        (one, logs_of_one), (two, logs_of_two) = (
            self.fit(
                scope,
                data,
                None
                if settings is None
                else kp.EigenbasisRefresh(**{"x": data[0]} | settings),
                exact=settings is None,
            )
            for scope in (contextlib.nullcontext, strategy)
        )
        assert logs_of_one.keys() == logs_of_two.keys()
        for name, values in logs_of_one.items():
            # The staleness is one less a ratio, which magnifies a relative error. The
            # order of a sum may decide on the class of an example between two.
            atol = {"staleness": 1e-4, "accuracy": 1.01 / len(data[0])}
            np.testing.assert_allclose(
                *(logs_of_two[name], values),
                rtol=1e-4,
                atol=atol.get(name.rsplit("_")[-1], 0),
            )
        for expected, found in zip(one.get_weights(), two.get_weights(), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)

    def test_writes_backups_and_begins_anew(self, strategy, data, tmp_path):
        refresh = kp.EigenbasisRefresh(every_steps=2, backup_dir=tmp_path)
        written = []
        seen = keras.callbacks.LambdaCallback(
            on_epoch_end=lambda epoch, logs: written.append(
                len(list(tmp_path.iterdir()))
            )
        )
        with strategy():
            model = compiled_model()
            fit = functools.partial(
                model.fit, *data, epochs=2, verbose=0, callbacks=[refresh, seen]
            )
            fit(batch_size=46)
            compiled(model)
            history = fit(batch_size=46).history
        assert written == [1, 2, 1, 2]
        assert np.isfinite(history["first_exponent"]).all()

    def test_a_last_batch_of_one_or_two_examples_on_each_device(self, strategy, data):
        count = 50 if BACKEND == "jax" else 49  # JAX's devices take equal shares
        x, y = data[0][:count], data[1][:count]
        _, logs = self.fit(strategy, (x, y), kp.EigenbasisRefresh(x))
        assert np.all(np.isfinite(logs["loss"]))

    def test_refresh_covers_the_data_once_and_all_devices_hold_the_basis(
        self, strategy, data
    ):
        batches = Batches(data[0], size=46)
        with strategy():
            model = compiled_model()
            spectra = kp.refresh_eigenbasis(model, batches)
        assert batches.delivered == [0, 1, 2, 3, 4]

        hidden = to_numpy(keras.Model(model.inputs, model.layers[0].output)(data[0]))
        expected = np.linalg.eigvalsh(np.cov(hidden, rowvar=False))[::-1]
        np.testing.assert_allclose(spectra["first"].eigenvalues, expected, atol=1e-6)
        copies = copies_of(model.layers[0].activity_regularizer.basis)
        assert len(copies) == 2
        np.testing.assert_array_equal(*copies)
        rotated = copies[0].T @ np.cov(hidden, rowvar=False) @ copies[0]
        np.testing.assert_allclose(np.diag(rotated), expected[2:], atol=1e-5)

    def test_measurements(self, strategy, data):
        x, y = np.clip(data[0], 0, 1), data[1]
        measured = []
        for scope in (contextlib.nullcontext, strategy):
            with scope():
                model = compiled_model()
                kp.refresh_eigenbasis(model, x)
                spectrum = kp.measure_spectrum(model, x, "first")
                report = kp.evaluate_robustness(model, x, y, [0.1], pgd_steps=10)
                measured.append((spectrum.exponent, report))
        np.testing.assert_allclose(measured[0][0], measured[1][0], rtol=1e-5)
        assert measured[0][1] == measured[1][1]

    @pytest.mark.parametrize("reduction", ["channels", "mean"])
    def test_feature_maps_agree_with_one_device(self, strategy, reduction):
        x, y = gaussian(92, (6, 6, 1))
        found = []
        for scope in (contextlib.nullcontext, strategy):
            with scope():
                keras.utils.set_random_seed(0)
                model = network(feature_map(8), layers.Flatten(), shape=(6, 6, 1))
                model = kp.add_spectral_regularizer(
                    model, "map", tau=2, beta=2.0, reduction=reduction
                )
                compiled(model, keras.optimizers.SGD(0.1))
                history = model.fit(
                    x,
                    y,
                    batch_size=46,
                    epochs=2,
                    shuffle=False,
                    verbose=0,
                    callbacks=[kp.EigenbasisRefresh(x)],
                ).history
                found.append((history["loss"], *model.get_weights()))
        for expected, value in zip(*found, strict=True):
            np.testing.assert_allclose(value, expected, rtol=1e-3, atol=1e-5)

    def test_the_jacobian_penalty_agrees_with_one_device(self, strategy, data):
        found = []
        for scope in (contextlib.nullcontext, strategy):
            with scope():
                model = kp.add_jacobian_regularizer(
                    compiled_model(exact=True), beta=1.0
                )
                history = model.fit(
                    *data,
                    batch_size=46,
                    epochs=2,
                    shuffle=False,
                    verbose=0,
                    validation_data=data,
                    validation_batch_size=46,
                ).history
                found.append(
                    (history["loss"], history["val_loss"], *model.get_weights())
                )
        for expected, value in zip(*found, strict=True):
            np.testing.assert_allclose(value, expected, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(found[1][0], found[0][0], rtol=1e-5)

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
        for mine, its in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(
                current.experimental_local_results(mine),
                current.experimental_local_results(its),
            )

    @only("tensorflow", why="the replicas of tf.distribute wait for each other")
    def test_other_activity_regularizers_are_refused(self, strategy, data):
        with strategy():
            decayed = layers.Dense(12, activity_regularizer="l2", name="decayed")
            model = network(decayed, compiled_model())
            with pytest.raises(ValueError, match=r"Keras mixes up .*\['decayed'\]"):
                kp.refresh_eigenbasis(model, data[0])


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


def launch(program, *arguments, **environment):
    """Starts a program of this folder in a process of its own."""
    return subprocess.Popen(
        [sys.executable, Path(__file__).parent / program, *map(str, arguments)],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def assert_same_to_the_last_bit(outputs):
    """Returns what two processes wrote, which has to be the same."""
    first, second = (dict(np.load(output)) for output in outputs)
    assert first.keys() == second.keys() and len(first) > 5
    for name, values in first.items():
        np.testing.assert_array_equal(second[name], values)
    return first


def assert_same_directions(found, basis):
    """Eigenvectors have no sign of their own, and turn with the rounding of weights."""
    signs = np.sign(np.sum(found * basis, axis=0))
    np.testing.assert_allclose(found * signs, basis, atol=2e-3)


@only("tensorflow", why="tf.distribute belongs to TensorFlow")
def test_two_workers_agree_with_one_device(data, tmp_path):
    """Two processes on loopback, in a training loop of their own.

    Keras' own `fit()` fails under MultiWorkerMirroredStrategy with any model.
    """
    outputs = [tmp_path / f"{index}.npz" for index in range(2)]
    addresses = [f"localhost:{port}" for port in free_ports(2)]
    np.savez(tmp_path / "data.npz", x=data[0], y=data[1])
    workers = []
    for index, output in enumerate(outputs):
        task = {"type": "worker", "index": index}
        config = {"cluster": {"worker": addresses}, "task": task}
        workers.append(
            launch(
                *("worker.py", tmp_path / "data.npz", output),
                TF_CONFIG=json.dumps(config),
            )
        )
    for worker in workers:
        printed, _ = worker.communicate(timeout=300)
        assert worker.returncode == 0, printed
    first = assert_same_to_the_last_bit(outputs)

    model = compiled_model()
    losses = []
    for start in range(0, 230, 46):
        if start in (0, 92):
            kp.refresh_eigenbasis(model, data[0])
        rows = slice(start, start + 46)
        model.reset_metrics()  # some versions of Keras report a mean over the batches
        losses.append(model.train_on_batch(data[0][rows], data[1][rows])[0])
    np.testing.assert_allclose(first.pop("losses"), losses, rtol=1e-5)
    basis = to_numpy(model.layers[0].activity_regularizer.basis)
    assert_same_directions(first.pop("basis"), basis)
    for found, expected in zip(first.values(), model.get_weights(), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=5e-5)


PROCESSES, PER_PROCESS = 2, 20  # the examples of a batch that each process has
NO_GLOO = 77  # exit code


@only("jax", why="keras.distribution is for JAX there")
@pytest.mark.parametrize("source", ["data", "training steps"])
def test_two_jax_processes_agree_with_one_device(source, data, tmp_path):
    """Two processes on loopback with two devices each, in `fit()`."""
    x, y = data[0][:200], data[1][:200]
    outputs = [tmp_path / f"{index}.npz" for index in range(PROCESSES)]
    np.savez(tmp_path / "data.npz", x=x, y=y)
    [port] = free_ports(1)
    workers = [
        launch("jax_worker.py", tmp_path / "data.npz", output, port, index, source)
        for index, output in enumerate(outputs)
    ]
    for worker in workers:
        printed, _ = worker.communicate(timeout=300)
        if worker.returncode == NO_GLOO:
            pytest.skip("this JAX has no collective operations between CPUs (gloo)")
        assert worker.returncode == 0, printed
    found = assert_same_to_the_last_bit(outputs)
    assert found["devices"] == 4
    np.testing.assert_array_equal(found["assigned"], found["basis"])

    model = compiled_model()
    logs = model.fit(
        *(x, y, PROCESSES * PER_PROCESS),
        epochs=3,
        shuffle=False,
        verbose=0,
        callbacks=[
            kp.EigenbasisRefresh(x if source == "data" else None, every_steps=2)
        ],
        validation_data=(x, y),
        validation_batch_size=PROCESSES * PER_PROCESS,
    ).history
    for name, values in logs.items():
        atol = 1e-4 if name.endswith("_staleness") else 0
        np.testing.assert_allclose(found[f"log {name}"], values, rtol=1e-4, atol=atol)
    for index, weight in enumerate(model.get_weights()):
        np.testing.assert_allclose(
            found[f"weight{index}"], weight, rtol=1e-3, atol=1e-4
        )
    assert_same_directions(
        found["basis"], to_numpy(model.layers[0].activity_regularizer.basis)
    )
    spectrum = kp.measure_spectrum(model, x, "first")
    np.testing.assert_allclose(found["spectrum"], spectrum.eigenvalues, atol=1e-5)
