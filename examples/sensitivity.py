"""Which pixels do the eigenvalues of a layer depend on, plain and regularized?

Trains a network of one hidden layer on MNIST, with and without the penalty, and draws
the sensitivity maps of both, eq. (9) and Figure 2D of the paper: the derivatives of
eigenvalues of the hidden layer's covariance, summed over all training images.

    python examples/sensitivity.py
    python examples/sensitivity.py --data-dir ~/data --epochs 30
"""

import argparse
import pathlib

import keras
import numpy as np
from matplotlib.figure import Figure

import keras_powerlaw as kp

COMPONENTS = (1, 2, 5, 10, 20, 50, 100, 200)


def load_mnist(folder):
    """MNIST in [0, 1], from the folder's mnist.npz or downloaded by Keras."""
    if folder is None:
        parts = keras.datasets.mnist.load_data()
    else:
        with np.load(f"{folder}/mnist.npz") as file:
            parts = [(file[f"x_{k}"], file[f"y_{k}"]) for k in ("train", "test")]
    return [(x[..., None].astype("float32") / 255, y) for x, y in parts]


def train(x, y, width, epochs, regularizer=None):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input(x.shape[1:]),
            keras.layers.Flatten(),
            keras.layers.Dense(width, activation="tanh"),
            keras.layers.BatchNormalization(
                momentum=0.9, activity_regularizer=regularizer, name="hidden"
            ),
            keras.layers.Dense(10),
        ]
    )
    model.compile(
        keras.optimizers.Adam(1e-3),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    callbacks = [kp.EigenbasisRefresh(verbose=0)] if regularizer else []
    model.fit(x, y, batch_size=1000, epochs=epochs, callbacks=callbacks, verbose=2)
    return model


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", help="the folder of mnist.npz")
    parser.add_argument("--width", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--output", type=pathlib.Path, default="sensitivity.png")
    args = parser.parse_args(argv)
    (x, y), _ = load_mnist(args.data_dir)

    networks = {
        "plain": train(x, y, args.width, args.epochs),
        "regularized": train(
            x, y, args.width, args.epochs, kp.SpectralActivityRegularizer(beta=5.0)
        ),
    }
    components = [n for n in COMPONENTS if n <= args.width]
    figure = Figure(figsize=(1.7 * len(components), 3.6), layout="constrained")
    grid = figure.subplots(2, len(components))
    for axes, (name, model) in zip(grid, networks.items(), strict=True):
        maps = kp.sensitivity_maps(model, x, "hidden", components, verbose=0)
        kp.plot_sensitivity(maps, axes)
        axes[0].set_ylabel(name)
    figure.savefig(args.output, dpi=120)
    print(f"Figure: {args.output}")


if __name__ == "__main__":
    main()
