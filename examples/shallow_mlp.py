"""Section 4.1 of the paper: one hidden layer, with and without a 1/n spectrum.

Trains networks of one hidden layer, plain and spectrally regularized, with and without
batch normalization, over several seeds; attacks them; and draws their spectra and
robustness. Each finished run leaves a JSON file in the output folder. A run whose file
is there is not repeated, so that the script can be stopped and started again.

    python examples/shallow_mlp.py --dataset mnist --seeds 0 1 2
    python examples/shallow_mlp.py --dataset digits --width 300 --epochs 5

Reference: Nassar et al. (2020), Figures 2 and A6 to A9.
"""

import argparse
import itertools
import json
import pathlib
import time

import example_data
import keras
import numpy as np
from matplotlib.figure import Figure

import keras_powerlaw as kp

EPSILONS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3)


def build_model(input_shape, width, batch_norm, regularizer=None):
    """Dense → tanh (→ batch norm) → logits; the regularized activity is the last."""
    model = keras.Sequential([keras.Input(input_shape), keras.layers.Flatten()])
    if batch_norm:
        model.add(keras.layers.Dense(width, activation="tanh"))
        model.add(
            keras.layers.BatchNormalization(
                momentum=0.9,
                epsilon=1e-5,
                activity_regularizer=regularizer,
                name="hidden",
            )
        )
    else:
        model.add(
            keras.layers.Dense(
                width,
                activation="tanh",
                activity_regularizer=regularizer,
                name="hidden",
            )
        )
    model.add(keras.layers.Dense(10, name="logits"))
    return model


def run(data, args, beta, batch_norm, seed):
    """Trains and measures one network (a plain one if `beta` is 0)."""
    (x_train, y_train), (x_test, y_test) = data
    keras.utils.set_random_seed(seed)
    regularizer, callbacks = None, []
    if beta:
        regularizer = kp.SpectralActivityRegularizer(args.alpha, args.tau, beta)
        callbacks = [kp.EigenbasisRefresh(x_train)]
    model = build_model(x_train.shape[1:], args.width, batch_norm, regularizer)
    model.compile(
        keras.optimizers.Adam(args.learning_rate),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=False,  # XLA makes the penalty no faster on a CPU
    )
    begin = time.perf_counter()
    history = model.fit(
        x_train,
        y_train,
        batch_size=args.batch_size or args.width * 3 // 2,
        epochs=args.epochs,
        callbacks=callbacks,
        verbose=2,
    )
    seconds = time.perf_counter() - begin
    evaluation = model.evaluate(x_test, y_test, verbose=0, return_dict=True)
    spectrum = kp.measure_spectrum(model, x_train, "hidden")
    attacked = slice(args.attacked)
    report = kp.evaluate_robustness(model, x_test[attacked], y_test[attacked], EPSILONS)
    return {
        "settings": {
            **{name: getattr(args, name) for name in SETTINGS},
            "beta": beta,
            "batch_norm": batch_norm,
            "seed": seed,
            "keras": keras.version(),
            "backend": keras.backend.backend(),
        },
        "training_seconds": round(seconds, 1),
        "history": history.history,
        "test_accuracy": evaluation["accuracy"],
        "exponent": spectrum.exponent,
        "exponent_interval": spectrum.exponent_interval,
        "fit_range": spectrum.fit_range,
        "dimension_90": spectrum.dimension_90,
        "participation_ratio": spectrum.participation_ratio,
        "eigenvalues": [float(f"{value:.6g}") for value in spectrum.eigenvalues],
        "robustness": json.loads(report.to_json()),
    }


def label(beta):
    return f"SpecReg, β = {beta:g}" if beta else "Vanilla"


def draw(results, tau, alpha):
    """Figures by name: spectra, robustness, and both as Figure 2 A to C has them."""
    spectra, reports = {}, {}
    for result in results:
        name = label(result["settings"]["beta"])
        spectra.setdefault(name, []).append(kp.Spectrum(result["eigenvalues"]))
        reports.setdefault(name, []).append(robustness_report(result))

    def figure(*panels):
        figure = Figure(figsize=(4.2 * len(panels), 3.6), layout="constrained")
        for ax, panel in zip(
            np.ravel(figure.subplots(1, len(panels))), panels, strict=True
        ):
            if panel == "spectrum":
                kp.plot_spectrum(spectra, ax, tau=tau, alpha=alpha)
            else:
                kp.plot_robustness(reports, panel, ax)
        return figure

    return {
        "spectrum": figure("spectrum"),
        "robustness": figure("fgsm", "pgd", "noise"),
        "figure2": figure("spectrum", "fgsm", "pgd"),
    }


def robustness_report(result):
    return kp.RobustnessReport.from_json(json.dumps(result["robustness"]))


def print_table(results):
    print(
        "\nbatch norm  network           seed  clean  exponent  dim.  "
        "FGSM 0.05  FGSM 0.1   PGD 0.05   PGD 0.1"
    )
    for result in results:
        settings = result["settings"]
        report = robustness_report(result)
        at = np.searchsorted(report.epsilons, (0.05, 0.1))
        attacked = [
            f"{100 * accuracy:7.1f} % "
            for attack in ("fgsm", "pgd")
            for accuracy in report.accuracy[attack][at]
        ]
        print(
            f"{'yes' if settings['batch_norm'] else 'no':<11} "
            f"{label(settings['beta']):<17} {settings['seed']:>4} "
            f"{100 * result['test_accuracy']:5.1f}% {result['exponent']:9.2f} "
            f"{result['dimension_90']:>5} " + "  ".join(attacked)
        )


# What names a run, beside its network and seed: a changed setting is a new run.
SETTINGS = (
    "dataset", "width", "alpha", "tau", "epochs", "learning_rate", "batch_size",
    "attacked",
)  # fmt: skip


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", choices=example_data.DATASETS, default="mnist")
    parser.add_argument("--data-dir", help="folder of tensorflow-datasets")
    parser.add_argument("--output", type=pathlib.Path, default="results/shallow_mlp")
    parser.add_argument("--width", type=int, default=2000)
    parser.add_argument("--alpha", type=float, default=1.0)
    parser.add_argument("--tau", type=int, default=10)
    parser.add_argument(
        "--betas", type=float, nargs="+", default=[5.0], help="a plain network is added"
    )
    parser.add_argument("--batch-norm", choices=["yes", "no", "both"], default="both")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--batch-size", type=int, help="default: 1.5 times the width")
    parser.add_argument(
        "--attacked",
        type=int,
        default=2000,
        help="attack the first so many test images",
    )
    args = parser.parse_args(argv)

    data = example_data.load(args.dataset, args.data_dir)
    args.output.mkdir(parents=True, exist_ok=True)
    batch_norms = {"yes": [True], "no": [False], "both": [True, False]}[args.batch_norm]
    runs = list(itertools.product(args.seeds, batch_norms, [0.0, *args.betas]))
    results = []
    for index, (seed, batch_norm, beta) in enumerate(runs):
        name = (
            f"{args.dataset}-{'bn' if batch_norm else 'nobn'}-beta{beta:g}-seed{seed}"
        )
        path = args.output / f"{name}.json"
        print(f"\n[{index + 1}/{len(runs)}] {path}", flush=True)
        if path.exists():
            result = json.loads(path.read_text())
            wanted = {key: getattr(args, key) for key in SETTINGS}
            found = {key: result["settings"][key] for key in SETTINGS}
            if found != wanted:
                raise SystemExit(
                    f"{path} was made with other settings: {found}, not {wanted}. "
                    "Choose another --output."
                )
        else:
            result = run(data, args, beta, batch_norm, seed)
            unfinished = path.with_suffix(".tmp")
            unfinished.write_text(json.dumps(result))
            unfinished.rename(path)  # a file that is there is whole
        results.append(result)
    for batch_norm in batch_norms:
        selected = [r for r in results if r["settings"]["batch_norm"] == batch_norm]
        prefix = f"{args.dataset}-{'bn' if batch_norm else 'nobn'}"
        for name, figure in draw(selected, args.tau, args.alpha).items():
            figure.savefig(args.output / f"{prefix}-{name}.png", dpi=120)
    print_table(results)
    print(f"\nResults and figures are in {args.output}")
    return results


if __name__ == "__main__":
    main()
