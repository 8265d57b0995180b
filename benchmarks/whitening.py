"""What a whitened network does at inference, by where its statistics come from.

The paper's MLP whose second layer is whitened, alone and with the penalty on the last
layer, in batches of 1,500: with the layer's moving averages, with the statistics of the
tested batch, and after `refresh_whitening()`.

    python -m benchmarks.whitening --data mnist.npz
"""

import argparse

import keras
import numpy as np

import keras_powerlaw as kp
from examples.experiments import command_line, conditions, data
from examples.experiments.networks import build_model
from examples.experiments.one_run import train
from examples.experiments.settings import select
from examples.experiments.table import print_rows


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--preset", default="evidence", choices=["smoke", "evidence"])
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--momentum", type=float, help="of the moving averages")
    parser.add_argument("--data", help="an .npz file instead of tensorflow-datasets")
    print_rows(rows(parser.parse_args(argv)))


def rows(args):
    """The rows of the table, as they are measured; the first is the header."""
    yield "", "statistics", "test accuracy", "variances of the whitened layer"
    chosen = command_line.parser("").parse_args(
        ["--preset", args.preset, "--seeds", "0", "--betas", "1"]
    )
    for settings in select(chosen, ["mlp"], ["whitened", "whitened-last"]):
        settings = {**settings, "epochs": args.epochs}
        (x, y), test = data.load(settings["dataset"], args.data)
        keras.utils.set_random_seed(0)
        model, _ = build_model(settings, x.shape[1:], len(x))
        [layer] = (each for each in model.layers if type(each) is kp.WhiteningLayer)
        if args.momentum is not None:
            layer.momentum = args.momentum
        train(model, settings, x, y)
        for statistics in ("moving averages", "tested batch", "refreshed"):
            layer.use_batch_statistics = statistics == "tested batch"
            if statistics == "refreshed":
                kp.refresh_whitening(model, x, verbose=0)
            accuracy = accuracy_of(model, *test, settings["batch_size"])
            spectrum = kp.measure_spectrum(
                *(model, x, layer), batch_size=settings["batch_size"], verbose=0
            )
            largest, smallest = spectrum.eigenvalues[[0, -1]]
            yield (
                conditions.label(settings),
                statistics,
                f"{accuracy:.1%}",
                f"{smallest:.2g} to {largest:.2g}",
            )


def accuracy_of(model, x, y, batch_size):
    model.make_predict_function(force=True)  # the layer may have changed
    predicted = model.predict(x, batch_size=batch_size, verbose=0).argmax(axis=1)
    return float(np.mean(predicted == y))


if __name__ == "__main__":
    main()
