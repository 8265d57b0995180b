"""One of two processes on JAX's CPU devices; see test_distribution.py.

Usage: jax_worker.py DATA OUTPUT INDEX PORT SOURCE
"""

import sys

import jax
import keras
import numpy as np
from test_distribution import NO_GLOO, PER_PROCESS, PROCESSES, compiled_model

import keras_powerlaw as kp

data, output, index, port, source = sys.argv[1:]
index = int(index)

try:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    keras.distribution.initialize(f"localhost:{port}", PROCESSES, index)
    jax.devices()
except Exception as error:
    if "gloo" in str(error).lower() or "collectives" in str(error):
        sys.exit(NO_GLOO)
    raise

# Keras shards nothing but a `tf.data.Dataset` by itself.
keras.distribution.set_distribution(
    keras.distribution.DataParallel(auto_shard_dataset=False)
)
with np.load(data) as arrays:
    x, y = arrays["x"], arrays["y"]


class Share(keras.utils.PyDataset):
    """This process's part of every global batch."""

    def __len__(self):
        return len(x) // (PROCESSES * PER_PROCESS)

    def __getitem__(self, batch):
        start = (batch * PROCESSES + index) * PER_PROCESS
        rows = slice(start, start + PER_PROCESS)
        return x[rows], y[rows]


model = compiled_model()
logs = model.fit(
    Share(),
    epochs=3,
    shuffle=False,
    verbose=0,
    callbacks=[kp.EigenbasisRefresh(x if source == "data" else None, every_steps=2)],
    validation_data=Share(),
).history
regularizer = model.layers[0].activity_regularizer
results = {
    **{f"log {name}": values for name, values in logs.items()},
    **{f"weight{i}": weight for i, weight in enumerate(model.get_weights())},
    "basis": regularizer.eigenbasis.to_arrays()["vectors"],
    "spectrum": kp.measure_spectrum(model, x, "first").eigenvalues,
}
# As where the processes' LAPACKs give their eigenvectors different signs.
regularizer.eigenbasis.assign(results["basis"] * (-1) ** index, 0.1, 1.0)
results["assigned"] = regularizer.eigenbasis.to_arrays()["vectors"]
np.savez(output, devices=jax.device_count(), **results)
