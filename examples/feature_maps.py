"""The paper's CNN with its second convolution regularized, by each reduction.

Section 4.2 of the paper flattens the convolution's 5×5×32 activations to 800 units.
Here the same network is also trained with its 32 channels as the units. Every network
is measured by every reduction, to see what a penalty on one does to the others.

    python examples/feature_maps.py
    python examples/feature_maps.py --data-set digits --epochs 2
"""

import argparse
import time

import keras
from experiments import data
from experiments.networks import build_model

import keras_powerlaw as kp

# First and last eigenvalue of the fits, over 800 units and over 32.
FITS = {"flatten": (11, 500), "channels": (5, 32), "mean": (5, 32)}
TAUS = {"flatten": 10, "channels": 4, "mean": 4}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-set", choices=data.DATASETS, default="mnist")
    parser.add_argument("--data", help="an .npz file or the folder of the data sets")
    parser.add_argument("--images", type=int, metavar="N", help="train on the first N")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--beta", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    (x, y), (x_test, y_test) = data.load(args.data_set, args.data)
    x, y = x[: args.images], y[: args.images]

    exponents = {}
    print(f"regularized   {'  '.join(FITS)}   test accuracy   seconds")
    for regularized in (None, *FITS):
        keras.utils.set_random_seed(args.seed)
        model, _ = build_model(
            {
                "architecture": "cnn",
                "condition": "vanilla",
                "width": 1000,
                "learning_rate": 1e-3,
            },
            x.shape[1:],
        )
        callbacks = []
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
                fit_range=fit if x.shape[1] > 8 else None,
                max_samples=10_000,
                verbose=0,
            ).exponent
            for reduction, fit in FITS.items()
        }
        accuracy = (model.predict(x_test, verbose=0).argmax(axis=1) == y_test).mean()
        cells = "  ".join(f"{row[reduction]:{len(reduction)}.2f}" for reduction in FITS)
        print(
            f"{regularized or '-':<13} {cells}   {100 * accuracy:11.1f} %"
            f"   {seconds:7.0f}",
            flush=True,
        )
        exponents[regularized] = row
    return exponents


if __name__ == "__main__":
    main()
