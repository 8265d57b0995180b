"""What the replicas of a `tf.distribute` strategy need from each other.

With JAX's `keras.distribution`, a batch is the global batch by itself. Under
`tf.distribute`, each replica runs the model on its share, in a thread of its own.
"""

from __future__ import annotations

import keras


def replica_context():
    """TensorFlow's context of this replica, or None where it is the only one."""
    if keras.backend.backend() != "tensorflow":
        return None
    import tensorflow as tf

    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return None
    return context


def sum_over_replicas(value):
    """The sum of the replicas' values, in each of them."""
    context = replica_context()
    return value if context is None else context.all_reduce("sum", value)
