"""What the replicas of a `tf.distribute` strategy need from each other.

With JAX's `keras.distribution`, a batch is the global batch by itself. Under
`tf.distribute`, each replica runs the model on its share, in a thread of its own.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_powerlaw.support.types import Tensor


def replica_context() -> Any:
    """TensorFlow's context of this replica, or None where it is the only one."""
    if keras.backend.backend() != "tensorflow":
        return None
    import tensorflow as tf

    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return None
    return context


def sum_over_replicas(value: Tensor) -> Tensor:
    """The sum of the replicas' values, in each of them."""
    context = replica_context()
    return value if context is None else context.all_reduce("sum", value)


def share_of_replica(loss: Tensor) -> Tensor:
    """What one replica adds to a loss that all of them compute.

    Keras adds up the losses of the replicas, so each contributes its part of one.
    """
    context = replica_context()
    return loss if context is None else loss / context.num_replicas_in_sync


def count_examples(activity: Tensor) -> Tensor:
    """The number of examples in the global batch, in the dtype of `activity`."""
    count = ops.cast(ops.shape(activity)[0], activity.dtype)
    return ops.stop_gradient(sum_over_replicas(count))
