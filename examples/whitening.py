"""What a whitened network does in use, by where its statistics come from.

The paper's MLP with its second layer whitened, eq. (10), alone and with the penalty on
the last layer. In use, a whitening layer has the moving averages of the training, or
the statistics of the tested batch, or those of `refresh_whitening()`. Prints the
accuracy with each, and how white the layer is.

    python examples/whitening.py
    python examples/whitening.py --data-dir ~/data --momentum 0.99
"""

import argparse

import keras
import numpy as np
from keras import layers

import keras_powerlaw as kp

BATCH = 1500  # more than a layer is wide, for a covariance of full rank


def load_mnist(folder):
    """MNIST in [0, 1], from the folder's mnist.npz or downloaded by Keras."""
    if folder is None:
        parts = keras.datasets.mnist.load_data()
    else:
        with np.load(f"{folder}/mnist.npz") as file:
            parts = [(file[f"x_{k}"], file[f"y_{k}"]) for k in ("train", "test")]
    return [(x[..., None].astype("float32") / 255, y) for x, y in parts]


def build_model(width, momentum, regularizer):
    def dense():
        return layers.Dense(width, activation="tanh")

    model = keras.Sequential(
        [
            *(keras.Input((28, 28, 1)), layers.Flatten(), dense(), dense()),
            kp.WhiteningLayer(momentum=momentum, name="whitened"),
            *(dense(), layers.Identity(activity_regularizer=regularizer)),
            layers.Dense(10),
        ]
    )
    model.compile(
        keras.optimizers.Adam(2e-4),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return model


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", help="the folder of mnist.npz")
    parser.add_argument("--width", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--momentum", type=float, default=0.9, help="of the averages")
    args = parser.parse_args(argv)
    (x, y), (x_test, y_test) = load_mnist(args.data_dir)

    rows = []
    penalties = {
        "whitened": lambda: None,
        "and regularized": lambda: kp.SpectralActivityRegularizer(beta=1, form="paper"),
    }
    for name, penalty in penalties.items():
        keras.utils.set_random_seed(0)
        regularizer = penalty()
        model = build_model(args.width, args.momentum, regularizer)
        callbacks = [kp.EigenbasisRefresh(verbose=0)] if regularizer else []
        model.fit(
            x, y, batch_size=BATCH, epochs=args.epochs, callbacks=callbacks, verbose=2
        )
        layer = model.get_layer("whitened")
        for statistics in ("moving averages", "tested batch", "refreshed"):
            layer.use_batch_statistics = statistics == "tested batch"
            if statistics == "refreshed":
                kp.refresh_whitening(model, x, verbose=0)
            model.make_predict_function(force=True)  # the layer has changed
            logits = model.predict(x_test, batch_size=BATCH, verbose=0)
            accuracy = (logits.argmax(axis=1) == y_test).mean()
            spectrum = kp.measure_spectrum(
                model, x, "whitened", batch_size=BATCH, verbose=0
            )
            largest, smallest = spectrum.eigenvalues[[0, -1]]
            rows.append((name, statistics, smallest))
            print(
                f"{name:<16} {statistics:<16} {accuracy:.1%} correct, "
                f"variances {smallest:.2g} to {largest:.2g}",
                flush=True,
            )
    return rows


if __name__ == "__main__":
    main()
