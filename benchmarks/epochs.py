"""An epoch of an ordinary CNN, with the eigenbasis from the training or from the data.

Images of 32×32×3, batches of 32, ReLU, no batch normalization: a conv block regularized
by channels, and a dense layer of 128 units. Each form trains for one epoch in turn.
"""

import keras
import numpy as np

import keras_powerlaw as kp
from benchmarks.clock import Clock, medians, ratios
from benchmarks.measuring import measured, progress

SHAPE, CLASSES, BATCH = (32, 32, 3), 10, 32


def measure_epoch(args, data):
    images = min(len(data[0][0]), 5000)
    settings = {"images": images, "batch": BATCH, "rounds": args.rounds}
    measured(
        args.output, f"epoch-{images}", settings, lambda: epochs(images, args.rounds)
    )


def cnn(regularized):
    """Builds and compiles the network."""

    def penalty(**settings):
        if not regularized:
            return None
        return kp.SpectralActivityRegularizer(**settings)

    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input(SHAPE),
            layers.Conv2D(32, 3, padding="same", activation="relu"),
            layers.Conv2D(
                *(32, 3),
                padding="same",
                activation="relu",
                activity_regularizer=penalty(reduction="channels", tau=3),
                name="block",
            ),
            layers.MaxPooling2D(),
            layers.Conv2D(64, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(
                128, activation="relu", activity_regularizer=penalty(), name="dense"
            ),
            layers.Dense(CLASSES, name="logits"),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-3), loss)
    return model


def callbacks_of_forms(data):
    return {
        "plain": [],
        "training steps": [kp.EigenbasisRefresh()],
        "data": [kp.EigenbasisRefresh(data)],
    }


def epochs(images, rounds):
    """Times epochs of each form, and counts what they read of a shuffled pipeline."""
    rng = np.random.default_rng(0)
    x = rng.random((images, *SHAPE), dtype="float32")
    y = rng.integers(CLASSES, size=images)
    callbacks = callbacks_of_forms(x)
    models = {form: cnn(bool(each)) for form, each in callbacks.items()}
    times = {form: [] for form in callbacks}
    for turn in range(-1, rounds):  # the first one compiles
        for form, model in models.items():
            clock = Clock()
            model.fit(x, y, batch_size=BATCH, verbose=0, callbacks=callbacks[form])
            if turn >= 0:
                times[form].append(clock.read())
        progress(f"  turn {turn + 1} of {rounds}")
    return {"times": times, "read": elements_read(models, x, y)}


def elements_read(models, x, y):
    """How many elements of a `tf.data` pipeline an epoch of each form reads."""
    if keras.backend.backend() != "tensorflow":
        return {}
    import tensorflow as tf

    read = {}
    for form, model in models.items():
        seen = [0]

        def count(*element, seen=seen):
            seen[0] += 1
            return element

        def counted(image, label, count=count):
            types = image.dtype, label.dtype
            counted_image, counted_label = tf.numpy_function(
                count, [image, label], types
            )
            return tf.ensure_shape(counted_image, SHAPE), tf.ensure_shape(
                counted_label, ()
            )

        pipeline = tf.data.Dataset.from_tensor_slices((x, y)).map(counted)
        pipeline = pipeline.shuffle(1000).batch(BATCH)
        callbacks = callbacks_of_forms(pipeline)
        model.fit(pipeline, verbose=0, callbacks=callbacks[form])
        read[form] = seen[0]
    return read


def epoch_table(results):
    yield "images", "basis from", "time", "CPU", "over *plain*", "CPU", "elements read"
    for result in results:
        times = result["times"]
        for form, turns in times.items():
            read = result["read"].get(form, "–")
            yield (
                *(result["settings"]["images"], form),
                *medians(turns),
                *ratios(turns, times["plain"]),
                read,
            )
