"""Sums over the replicas of a `tf.distribute` strategy, and agreement of JAX processes.

Under `tf.distribute`, each replica runs the model on its share of the batch, in its own
thread. With JAX's `keras.distribution`, a batch already is the global batch.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_powerlaw.support.types import Tensor


def replica_context() -> Any:
    """TensorFlow's replica context, or None unless this is one of several replicas."""
    if keras.backend.backend() != "tensorflow":
        return None
    import tensorflow as tf

    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return None
    return context


def index_of_replica() -> int:
    """The index of this replica, 0 where there are not several."""
    context = replica_context()
    if context is None:
        return 0
    import tensorflow as tf

    # Within a graph, it is a constant tensor.
    return int(tf.get_static_value(context.replica_id_in_sync_group))


def parts_of_replicas(variable: keras.Variable) -> list[Any]:
    """What the replicas hold of a variable that is synchronized "on_read", in order.

    Each part can be read and assigned. Where there are no replicas, there is one part.
    """
    if keras.backend.backend() != "tensorflow":
        return [variable]
    return list(getattr(variable.value, "values", [variable.value]))


def steps_taken(model: keras.Model) -> int:
    """The number of steps that the optimizer of a model has taken."""
    return int(parts_of_replicas(model.optimizer.iterations)[0])


def sum_over_replicas(value: Tensor) -> Tensor:
    """The sum of `value` over all replicas, the same on each of them."""
    context = replica_context()
    return value if context is None else context.all_reduce("sum", value)


def share_of_replica(loss: Tensor) -> Tensor:
    """One replica's share of a loss that every replica computes in full.

    Keras adds up the losses of the replicas, so each contributes an equal part.
    """
    context = replica_context()
    return loss if context is None else loss / context.num_replicas_in_sync


def count_examples(activity: Tensor) -> Tensor:
    """The number of examples in the global batch, in the dtype of `activity`."""
    count = ops.cast(ops.shape(activity)[0], activity.dtype)
    return ops.stop_gradient(sum_over_replicas(count))


def of_first_process(array: Any, variable: keras.Variable) -> Any:
    """The first process's `array`, in every process that holds part of `variable`.

    JAX assigns an array to a variable of several processes only if it is the same to
    the last bit in all of them. Eigenvectors need not be: their signs are arbitrary.
    """
    if keras.backend.backend() != "jax" or variable.value.is_fully_addressable:
        return array
    from jax.experimental import multihost_utils

    local = np.asarray(ops.convert_to_numpy(array))
    return np.asarray(multihost_utils.broadcast_one_to_all(local))
