"""The paper's CNN with its second convolution regularized, by each reduction.

Section 4.2 of the paper flattens the convolution's 5×5×32 activations to 800 units.
Here the same network is also trained with its 32 channels as the units. Every network
is measured by every reduction, to see what a penalty on one does to the others.

    python examples/feature_maps.py
    python examples/feature_maps.py --data-dir ~/data --images 20000

docs/feature-maps.md says which reduction is for what.
"""

import argparse
import time

import keras
import numpy as np
from keras import layers

import keras_powerlaw as kp

# First and last eigenvalue of the fits, over 800 units and over 32.
FITS = {"flatten": (11, 500), "channels": (5, 32), "mean": (5, 32)}
TAUS = {"flatten": 10, "channels": 4, "mean": 4}


def load_mnist(folder):
    """MNIST in [0, 1], from the folder's mnist.npz or downloaded by Keras."""
    if folder is None:
        parts = keras.datasets.mnist.load_data()
    else:
        with np.load(f"{folder}/mnist.npz") as file:
            parts = [(file[f"x_{k}"], file[f"y_{k}"]) for k in ("train", "test")]
    return [(x[..., None].astype("float32") / 255, y) for x, y in parts]


def build_model():
    """The paper's CNN; "hidden2" is what follows the second pooling."""
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(16, 3, activation="tanh"),
            layers.MaxPooling2D(),
            layers.Conv2D(32, 3, activation="tanh"),
            layers.MaxPooling2D(name="hidden2"),
            layers.Flatten(),
            layers.Dense(1000, activation="tanh"),
            layers.Dense(10, name="logits"),
        ]
    )


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", help="the folder of mnist.npz")
    parser.add_argument("--images", type=int, metavar="N", help="train on the first N")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--beta", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    (x, y), (x_test, y_test) = load_mnist(args.data_dir)
    x, y = x[: args.images], y[: args.images]

    exponents = {}
    print(f"regularized   {'  '.join(FITS)}   test accuracy   seconds")
    for regularized in (None, *FITS):
        keras.utils.set_random_seed(args.seed)
        model, callbacks = build_model(), []
        if regularized:
            model = kp.add_spectral_regularizer(
                model,
                "hidden2",
                tau=TAUS[regularized],
                beta=args.beta,
                form="paper",
                reduction=regularized,
            )
            callbacks = [kp.EigenbasisRefresh(x, every_steps=20, max_samples=3000)]
        model.compile(
            keras.optimizers.Adam(1e-3),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
        )
        begin = time.perf_counter()
        model.fit(
            x, y, batch_size=300, epochs=args.epochs, verbose=0, callbacks=callbacks
        )
        seconds = time.perf_counter() - begin
        row = {
            reduction: kp.measure_spectrum(
                model,
                x,
                "hidden2",
                reduction=reduction,
                fit_range=fit,
                max_samples=10_000,
                verbose=0,
            ).exponent
            for reduction, fit in FITS.items()
        }
        accuracy = model.evaluate(x_test, y_test, verbose=0, return_dict=True)
        cells = "  ".join(f"{row[reduction]:{len(reduction)}.2f}" for reduction in FITS)
        print(
            f"{regularized or '-':<13} {cells}   {100 * accuracy['accuracy']:11.1f} %"
            f"   {seconds:7.0f}",
            flush=True,
        )
        exponents[regularized] = row
    return exponents


if __name__ == "__main__":
    main()
