"""A training run that may be killed, and goes on if it was; see test_interruption.py.

Usage: interrupted.py DIRECTORY REFRESH [STEP TO BE KILLED AT]
"""

import json
import os
import signal
import sys
from pathlib import Path

import keras
import numpy as np
from datasets import gaussian
from models import compiled, hidden, network

import keras_powerlaw as kp

directory, refresh = Path(sys.argv[1]), json.loads(sys.argv[2])
kill_at = int(sys.argv[3]) if len(sys.argv) > 3 else None

keras.utils.set_random_seed(0)
if keras.backend.backend() == "tensorflow":
    import tensorflow as tf

    tf.config.experimental.enable_op_determinism()

x, y = gaussian(150)
model = network(
    hidden(20, name="first"),
    kp.WhiteningLayer(),
    hidden(15, kp.SpectralActivityRegularizer(tau=3)),
)
compiled(model, keras.optimizers.Adam(1e-2), metrics=["accuracy"])


class Kill(keras.callbacks.Callback):
    steps = 0

    def on_train_batch_end(self, batch, logs=None):
        self.steps += 1
        if self.steps == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)


model.fit(
    x,
    y,
    batch_size=30,  # five steps an epoch
    epochs=6,
    shuffle=False,
    verbose=0,
    callbacks=[
        kp.EigenbasisRefresh(**{"x": x} | refresh, backup_dir=directory / "backup"),
        keras.callbacks.CSVLogger(directory / "log.csv", append=True),
        keras.callbacks.BackupAndRestore(directory / "backup"),
        *([Kill()] if kill_at is not None else []),
    ],
)
np.savez(
    directory / "result.npz",
    *model.get_weights(),
    basis=keras.ops.convert_to_numpy(
        model.get_layer("hidden").activity_regularizer.basis
    ),
)
