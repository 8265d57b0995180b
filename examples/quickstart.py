"""A plain and a spectrally regularized network on small digits, side by side.

Trains both on scikit-learn's 1,797 handwritten digits of 8×8 pixels, measures the
spectrum of the hidden layer, attacks both, and draws the two figures. Takes about a
minute on two cores.

    python examples/quickstart.py

The settings were chosen on this data set so that the effect shows: see
docs/quickstart.md for what was tried.
"""

import argparse
import pathlib

import keras
from experiments import data
from matplotlib.figure import Figure

import keras_powerlaw as kp

WIDTH, TAU, BETA = 200, 1, 2.0
EPSILONS = (0.025, 0.05, 0.075, 0.1, 0.15, 0.2)


def build_model(regularizer=None):
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Flatten(),
            keras.layers.Dense(WIDTH, activation="tanh"),
            keras.layers.BatchNormalization(
                momentum=0.9,
                epsilon=1e-5,
                activity_regularizer=regularizer,
                name="hidden",
            ),
            keras.layers.Dense(10, name="logits"),
        ]
    )
    model.compile(
        keras.optimizers.Adam(3e-3),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=False,
    )
    return model


class EpochBar(keras.callbacks.Callback):
    """One progress bar for the whole training."""

    def on_train_begin(self, logs=None):
        self.bar = keras.utils.Progbar(
            self.params["epochs"],
            unit_name="epoch",
            stateful_metrics=["accuracy", "hidden_exponent"],
        )

    def on_epoch_end(self, epoch, logs=None):
        shown = ("loss", "accuracy", "hidden_exponent")
        self.bar.update(epoch + 1, [(key, logs[key]) for key in shown if key in logs])


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=pathlib.Path, default="results/quickstart")
    args = parser.parse_args(argv)

    (x_train, y_train), (x_test, y_test) = data.load("digits")
    spectra, reports = {}, {}
    for name in ("plain", "regularized"):
        print(f"\nTraining the {name} network", flush=True)
        keras.utils.set_random_seed(args.seed)
        if name == "regularized":
            model = build_model(
                kp.SpectralActivityRegularizer(tau=TAU, beta=BETA, form="paper")
            )
            callbacks = [kp.EigenbasisRefresh(), EpochBar()]
        else:
            model = build_model()
            callbacks = [EpochBar()]
        model.fit(
            x_train,
            y_train,
            batch_size=100,
            epochs=args.epochs,
            verbose=0,
            callbacks=callbacks,
        )
        spectra[name] = kp.measure_spectrum(
            model, x_train, "hidden", fit_range=(TAU, WIDTH)
        )
        reports[name] = kp.evaluate_robustness(model, x_test, y_test, EPSILONS)

    strongest = ("fgsm", 0.05), ("fgsm", 0.1), ("pgd", 0.05), ("pgd", 0.1)
    print("\n               clean  exponent  dimension  ", end="")
    print("  ".join(f"{attack.upper()} {epsilon:g}" for attack, epsilon in strongest))
    for name, report in reports.items():
        cells = "".join(
            f"{100 * report.accuracy[attack][EPSILONS.index(epsilon)]:9.1f} %"
            for attack, epsilon in strongest
        )
        print(
            f"{name:<13}{100 * report.clean_accuracy:5.1f} %"
            f"{spectra[name].exponent:9.2f}{spectra[name].dimension_90:10}{cells}"
        )

    args.output.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(5, 4), layout="constrained")
    kp.plot_spectrum(spectra, figure.subplots(), tau=TAU)
    figure.savefig(args.output / "spectrum.png", dpi=120)
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    for ax, attack in zip(figure.subplots(1, 3), ("fgsm", "pgd", "noise"), strict=True):
        kp.plot_robustness(reports, attack, ax)
    figure.savefig(args.output / "robustness.png", dpi=120)
    print(
        f"\nFigures: {args.output / 'spectrum.png'}, {args.output / 'robustness.png'}"
    )


if __name__ == "__main__":
    main()
