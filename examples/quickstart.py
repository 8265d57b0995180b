"""Plain and regularized networks on small digits, side by side.

Trains them on scikit-learn's 1,797 handwritten digits of 8×8 pixels, with three seeds,
measures the spectrum of the hidden layer, attacks them, and draws two figures. The
plain network is shown twice: after the same training, and stopped at the epoch in which
it was most robust on images kept out. A fourth network has the penalty on the Jacobian.

    python examples/quickstart.py

docs/quickstart.md says what was tried, and by which images it was chosen.
"""

import argparse
import pathlib

import keras
import numpy as np
from matplotlib.figure import Figure
from sklearn.datasets import load_digits

import keras_powerlaw as kp

BATCH, LEARNING_RATE = 100, 3e-3
UNITS, BETA, JACOBIAN = 40, 1.0, 0.1
EPSILONS = (0.025, 0.05, 0.075, 0.1, 0.15, 0.2)
LOOK_EVERY = 3  # epochs of the plain network, for the one in which it is best
# Colour, marker and line of each network in the figures.
NETWORKS = {
    "plain": ("#000000", "o", "--"),
    "plain, best epoch": ("#7F7F7F", "D", "--"),
    "1/n": ("#0072B2", "s", "-"),
    "Jacobian": ("#009E73", "X", "-"),
}


def load():
    """Training, kept-out and test images in [0, 1], and their labels."""
    digits = load_digits()
    x = (digits.images[..., np.newaxis] / 16).astype("float32")
    test = np.arange(len(x)) % 5 == 4
    (train,) = np.nonzero(~test)
    shuffled = np.random.default_rng(1).permutation(train)
    count = len(train) // 6
    parts = np.sort(shuffled[count:]), shuffled[:count], test
    return [(x[part], digits.target[part]) for part in parts]


def build_model(epochs, images, regularizer=None, jacobian=None):
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Flatten(),
            keras.layers.Dense(UNITS, activation="tanh"),
            keras.layers.BatchNormalization(
                momentum=0.9,
                epsilon=1e-5,
                activity_regularizer=regularizer,
                name="hidden",
            ),
            keras.layers.Dense(10, name="logits"),
        ]
    )
    if jacobian is not None:
        model = kp.add_jacobian_regularizer(model, jacobian)
    model.compile(
        keras.optimizers.Adam(
            keras.optimizers.schedules.CosineDecay(
                LEARNING_RATE, epochs * -(-images // BATCH)
            )
        ),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=False,
    )
    return model


def train_plain(x, y, kept_out, epochs):
    """Trains a network; returns it and its weights when it was most robust."""
    model = build_model(epochs, len(x))
    most, best = -1.0, model.get_weights()
    for epoch in range(0, epochs, LOOK_EVERY):
        until = min(epoch + LOOK_EVERY, epochs)
        model.fit(x, y, BATCH, epochs=until, initial_epoch=epoch, verbose=0)
        report = kp.evaluate_robustness(model, *kept_out, [0.05], ["pgd"], verbose=0)
        if report.accuracy["pgd"][0] > most:
            most, best = report.accuracy["pgd"][0], model.get_weights()
    return model, best


def train_regularized(x, y, epochs):
    regularizer = kp.SpectralActivityRegularizer(beta=BETA)
    model = build_model(epochs, len(x), regularizer)
    refresh = kp.EigenbasisRefresh(verbose=0)
    model.fit(x, y, BATCH, epochs, verbose=0, callbacks=[refresh])
    return model


def train_jacobian(x, y, epochs):
    model = build_model(epochs, len(x), jacobian=JACOBIAN)
    model.fit(x, y, BATCH, epochs, verbose=0)
    return model


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=pathlib.Path, default="results/quickstart")
    args = parser.parse_args(argv)

    (x, y), kept_out, test = load()
    spectra, reports = ({name: [] for name in NETWORKS} for _ in range(2))

    def examine(name, model):
        spectra[name].append(kp.measure_spectrum(model, x, "hidden", verbose=0))
        reports[name].append(kp.evaluate_robustness(model, *test, EPSILONS, verbose=0))

    for seed in args.seeds:
        print(f"Seed {seed}: a plain network", flush=True)
        keras.utils.set_random_seed(seed)
        model, best = train_plain(x, y, kept_out, args.epochs)
        examine("plain", model)
        model.set_weights(best)
        examine("plain, best epoch", model)
        print(f"Seed {seed}: regularized networks", flush=True)
        keras.utils.set_random_seed(seed)
        examine("1/n", train_regularized(x, y, args.epochs))
        keras.utils.set_random_seed(seed)
        examine("Jacobian", train_jacobian(x, y, args.epochs))

    print_table(spectra, reports)
    args.output.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(5, 4.6), layout="constrained")
    ax = styled(figure.subplots())
    kp.plot_spectrum(spectra, ax)
    # Each curve is followed by the mark at its dimension.
    finish(ax, ax.lines[1::2], markersize=8)
    figure.savefig(args.output / "spectrum.png", dpi=120)
    figure = Figure(figsize=(12, 4.2), layout="constrained")
    axes = figure.subplots(1, 3)
    for letter, ax, attack in zip("ABC", axes, ("fgsm", "pgd", "noise"), strict=True):
        kp.plot_robustness(reports, attack, styled(ax))
        finish(ax, ax.lines, markersize=5)
        ax.set_title(letter, loc="left", fontweight="bold")
    figure.savefig(args.output / "robustness.png", dpi=120)
    print(
        f"\nFigures: {args.output / 'spectrum.png'}, {args.output / 'robustness.png'}"
    )


def styled(ax):
    """The axes, on which the next curves have the networks' colours and lines."""
    colors, _, lines = zip(*NETWORKS.values(), strict=True)
    ax.set_prop_cycle(color=colors, linestyle=lines)
    return ax


def finish(ax, marks, markersize):
    """Gives the networks their markers, and puts the legend below the axes."""
    for mark, (_, marker, _) in zip(marks, NETWORKS.values(), strict=False):
        mark.set(marker=marker, markersize=markersize)
    below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.15)}
    ax.legend(fontsize="small", frameon=False, handlelength=3.5, **below)


def over_seeds(values, digits):
    """Mean ± standard deviation."""
    mean, deviation = np.mean(values), np.std(values, ddof=min(1, len(values) - 1))
    return f"{mean:.{digits}f} ± {deviation:.{digits}f}"


def print_table(spectra, reports):
    """Mean ± standard deviation over the seeds, accuracies in per cent."""
    attacks = [(attack, eps) for attack in ("fgsm", "pgd") for eps in (0.05, 0.1)]
    names = [f"{attack.upper()} {epsilon:g}" for attack, epsilon in attacks]
    print("\n" + "".join(f"{name:>13}" for name in ("clean", "exponent", *names)))
    for name, found in reports.items():
        columns = [
            [100 * report.clean_accuracy for report in found],
            [spectrum.exponent for spectrum in spectra[name]],
            *(
                [100 * report.accuracy[attack][EPSILONS.index(eps)] for report in found]
                for attack, eps in attacks
            ),
        ]
        cells = (over_seeds(c, 2 if n == 1 else 1) for n, c in enumerate(columns))
        print(name + "\n" + "".join(f"{cell:>13}" for cell in cells))


if __name__ == "__main__":
    main()
