"""One worker of a MultiWorkerMirroredStrategy; see test_distribution.py."""

import sys

import tensorflow as tf

strategy = tf.distribute.MultiWorkerMirroredStrategy()  # before any other operation

import keras  # noqa: E402
import numpy as np  # noqa: E402
from test_distribution import compiled_model  # noqa: E402

import keras_powerlaw as kp  # noqa: E402

data, output, _ = sys.argv[1:]
with np.load(data) as arrays:
    x, y = arrays["x"], arrays["y"]
with strategy.scope():
    model = compiled_model()
per_example_loss = keras.losses.SparseCategoricalCrossentropy(
    from_logits=True, reduction="none"
)


def step(batch, labels):
    with tf.GradientTape() as tape:
        logits = model(batch, training=True)
        loss = tf.nn.compute_average_loss(per_example_loss(labels, logits))
        loss += tf.nn.scale_regularization_loss(sum(model.losses))
    weights = model.trainable_variables
    model.optimizer.apply(tape.gradient(loss, weights), weights)
    return loss


@tf.function
def distributed_step(batch, labels):
    return strategy.reduce("sum", strategy.run(step, (batch, labels)), axis=None)


dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(46)
losses = []
for index, batch in enumerate(strategy.experimental_distribute_dataset(dataset)):
    if index in (0, 2):
        kp.refresh_eigenbasis(model, x)
    losses.append(distributed_step(*batch).numpy())
np.savez(
    output,
    **{f"weight{i}": weight for i, weight in enumerate(model.get_weights())},
    losses=losses,
    basis=model.layers[0].activity_regularizer.basis.numpy(),
)
