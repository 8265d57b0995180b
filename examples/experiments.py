"""What the scripts of the paper's experiments share: networks, runs, the command line.

A run is one network: architecture, condition, strength β and seed. It is trained,
measured and attacked, and leaves one JSON file. A run whose file is there is not
repeated, so that a script can be stopped, or killed, and started again. All scripts
write into the same folder and share what is in it.
"""

import argparse
import json
import os
import pathlib
import time

import example_data
import keras
import numpy as np

import keras_powerlaw as kp

EPSILONS = [0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3]

# Each condition, as the figures name it. Those in SPECTRAL have a strength β.
CONDITIONS = {
    "vanilla": "Vanilla",
    "whitened": "Whitened",
    "last": "SpecReg, last layer",
    "whitened-last": "Whitened, SpecReg, last layer",
    "all": "SpecReg, all layers",
    "tapered": "SpecReg, all layers, falling α",
    "jacobian": "Jacobian, eq. (11)",
    "output-jacobian": "Jacobian of the outputs",
}
SPECTRAL = ("last", "whitened-last", "all", "tapered")
SHALLOW = ("shallow", "shallow-nobn")
DEEP = ("mlp", "cnn")

PAPER_REFRESH = {"every_epochs": 1, "max_samples": None}  # where none is set

# What a preset sets for each architecture; `smoke` only shows that everything runs.
PRESETS = {
    "smoke": {
        "dataset": "digits",
        "seeds": [0],
        "betas": [5.0],
        "attacked": 50,
        "epsilons": [0.05, 0.1],
        "shallow": {
            "width": 60,
            "epochs": 10,
            "learning_rate": 3e-3,
            "batch_size": 200,
        },
        "mlp": {"width": 40, "epochs": 5, "learning_rate": 3e-3, "batch_size": 200},
        "cnn": {"width": 40, "epochs": 5, "learning_rate": 3e-3, "batch_size": 200},
    },
    "cpu": {
        "dataset": "mnist",
        "seeds": [0],
        "betas": [5.0],
        "attacked": 2000,
        "epsilons": EPSILONS,
        "shallow": {
            "width": 2000,
            "epochs": 30,
            "learning_rate": 1e-3,
            "batch_size": 3000,
        },
        **dict.fromkeys(
            DEEP,
            # 2,400 steps of 2e-4 go as far as the 4,000 of 1e-4 of the paper's MLP.
            # With larger batches and 1e-3, the penalty on all layers diverges.
            {
                "width": 1000,
                "epochs": 20,
                "learning_rate": 2e-4,
                "batch_size": 500,
                "refresh": {"every_steps": 20, "max_samples": 5000},
            },
        ),
    },
    "paper": {
        "dataset": "mnist",
        "seeds": [0, 1, 2],
        "betas": [1.0, 2.0, 5.0],
        "attacked": 10_000,
        "epsilons": EPSILONS,
        "shallow": {
            "width": 2000,
            "epochs": 50,
            "learning_rate": 1e-3,
            "batch_size": 3000,
        },
        "mlp": {
            "width": 1000,
            "epochs": 100,
            "learning_rate": 1e-4,
            "batch_size": 1500,
        },
        "cnn": {
            "width": 1000,
            "epochs": 100,
            "learning_rate": 1e-4,
            "batch_size": 6000,
        },
    },
}


# --- one run -------------------------------------------------------------------------


def build_model(settings, input_shape):
    """The network of a run, compiled, and the names of its hidden layers.

    The layer called `hidden2` is the activity that the third layer sees: behind
    activation, pooling, normalization and whitening.
    """
    architecture, condition = settings["architecture"], settings["condition"]
    layers = keras.layers

    def dense():
        return layers.Dense(settings["width"], activation="tanh")

    if architecture == "mlp":
        blocks = [[layers.Flatten(), dense()], [dense()], [dense()]]
    elif architecture == "cnn":
        # 8×8 pixels are too few for the paper's convolutions without padding.
        convolution = {
            "activation": "tanh",
            "padding": "valid" if min(input_shape[:2]) > 8 else "same",
        }
        blocks = [
            [layers.Conv2D(16, 3, **convolution), layers.MaxPooling2D()],
            [layers.Conv2D(32, 3, **convolution), layers.MaxPooling2D()],
            [layers.Flatten(), dense()],
        ]
    else:
        blocks = [[layers.Flatten(), dense()]]
        if architecture == "shallow":
            blocks[0].append(layers.BatchNormalization(momentum=0.9, epsilon=1e-5))
    if condition.startswith("whitened"):
        blocks[1].append(kp.WhiteningLayer())
    hidden = [f"hidden{index + 1}" for index in range(len(blocks))]
    model = keras.Sequential([keras.Input(input_shape)])
    for name, block in zip(hidden, blocks, strict=True):
        for layer in (*block, layers.Identity(name=name)):
            model.add(layer)
    model.add(layers.Dense(10, name="logits"))

    if condition in SPECTRAL:
        everywhere = condition in ("all", "tapered")
        targets = hidden if everywhere else hidden[-1:]
        alpha = settings["alpha"]
        if condition == "tapered":
            alpha = [alpha + 0.5, alpha + 0.25, alpha]
        model = kp.add_spectral_regularizer(
            model, targets, alpha, settings["tau"], settings["beta"]
        )
    elif condition == "jacobian":
        model = kp.add_jacobian_regularizer(model, beta=0.01)
    elif condition == "output-jacobian":  # as in the authors' code, 0.01 times a half
        model = kp.add_jacobian_regularizer(model, beta=0.005, projections=1)
    model.compile(
        keras.optimizers.Adam(settings["learning_rate"]),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        # XLA makes the penalty no faster on a CPU; without it JAX is not compiled.
        jit_compile=keras.backend.backend() == "jax",
    )
    return model, hidden


def perform(settings, data, report_epoch):
    """Trains and measures one network. The result is what its JSON file holds."""
    (x_train, y_train), (x_test, y_test) = data
    keras.utils.clear_session()
    keras.utils.set_random_seed(settings["seed"])
    model, hidden = build_model(settings, x_train.shape[1:])
    callbacks = [keras.callbacks.LambdaCallback(on_epoch_end=report_epoch)]
    if settings["condition"] in SPECTRAL:
        refresh = settings.get("refresh", PAPER_REFRESH)
        callbacks.insert(0, kp.EigenbasisRefresh(x_train, **refresh))
    begin = time.perf_counter()
    history = model.fit(
        x_train,
        y_train,
        batch_size=settings["batch_size"],
        epochs=settings["epochs"],
        callbacks=callbacks,
        verbose=0,
    )
    trained = time.perf_counter()
    predicted = model.predict(x_test, batch_size=1000, verbose=0).argmax(axis=1)
    spectra = {
        name: kp.measure_spectrum(model, x_train, name, verbose=0) for name in hidden
    }
    components = [
        n for n in (1, 2, 5, 10, 20, 50, 100, 200) if n <= spectra[hidden[-1]].rank
    ]
    sensitivity = kp.sensitivity_maps(
        model, x_train, hidden[-1], components, images=1, verbose=0
    )
    # A choice, the same for all runs: the first images of MNIST's files are harder than
    # the others.
    attacked = np.random.default_rng(0).permutation(len(x_test))[: settings["attacked"]]
    report = kp.evaluate_robustness(
        model, x_test[attacked], y_test[attacked], settings["epsilons"], verbose=0
    )
    return {
        "settings": settings,
        "keras": keras.version(),
        "backend": keras.backend.backend(),
        "training_seconds": round(trained - begin, 3),
        "measuring_seconds": round(time.perf_counter() - trained, 3),
        "history": history.history,
        "test_accuracy": float(np.mean(predicted == y_test)),
        "spectra": {
            name: {
                "exponent": spectrum.exponent,
                "exponent_interval": spectrum.exponent_interval,
                "fit_range": spectrum.fit_range,
                "dimension_90": spectrum.dimension_90,
                "participation_ratio": spectrum.participation_ratio,
                "eigenvalues": _rounded(spectrum.eigenvalues, 6),
            }
            for name, spectrum in spectra.items()
        },
        "robustness": json.loads(report.to_json()),
        "sensitivity": {
            "components": components,
            "eigenvalues": _rounded(sensitivity.eigenvalues, 6),
            "first_image": _rounded(sensitivity.maps[:, 0], 3),
            "total": _rounded(sensitivity.total, 3),
        },
    }


def _rounded(array, digits):
    values = [float(f"{value:.{digits}g}") for value in np.ravel(array)]
    return np.reshape(values, np.shape(array)).tolist()


# --- many runs -----------------------------------------------------------------------


def select(args, architectures, conditions):
    """The settings of all runs that the command line asks for."""
    preset = PRESETS[args.preset]
    runs = []
    for seed in args.seeds or preset["seeds"]:
        for architecture in architectures:
            if args.architectures and architecture not in args.architectures:
                continue
            sizes = dict(preset["shallow" if architecture in SHALLOW else architecture])
            for key in sizes:
                if getattr(args, key, None) is not None:
                    sizes[key] = getattr(args, key)
            for condition in conditions:
                if args.conditions and condition not in args.conditions:
                    continue
                spectral = condition in SPECTRAL
                for beta in (args.betas or preset["betas"]) if spectral else [None]:
                    runs.append(
                        {
                            "dataset": args.dataset or preset["dataset"],
                            "architecture": architecture,
                            "condition": condition,
                            "beta": beta,
                            "seed": seed,
                            "alpha": args.alpha if spectral else None,
                            "tau": args.tau if spectral else None,
                            **sizes,
                            "attacked": args.attacked or preset["attacked"],
                            "epsilons": preset["epsilons"],
                        }
                    )
    return runs


def run_name(settings):
    beta = "" if settings["beta"] is None else f"-beta{settings['beta']:g}"
    return "{dataset}-{architecture}-{condition}{0}-seed{seed}".format(beta, **settings)


def result_path(folder, settings):
    return folder / f"{run_name(settings)}.json"


def load_result(path, settings):
    """What a finished run has left in its file, or None."""
    if not path.exists():
        return None
    result = json.loads(path.read_text())
    if result["settings"] != settings:
        raise SystemExit(
            f"{path} was made with other settings: {result['settings']}, not "
            f"{settings}. Remove it, or choose another --output."
        )
    return result


def save_result(path, result):
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(json.dumps(result))
    os.replace(unfinished, path)  # a file that is there is whole


class Clock:
    """Prints where the work stands, and guesses what remains from what is finished."""

    def __init__(self, runs):
        self.pending = list(runs)
        self.total = len(runs)
        self.seconds = {}  # of finished runs, by kind

    def finished(self, result):
        self.pending.remove(result["settings"])
        taken = result["training_seconds"] + result["measuring_seconds"]
        self.seconds.setdefault(_kind(result["settings"]), []).append(taken)

    def start(self, settings):
        self.begin = self.last = time.monotonic()
        done = self.total - len(self.pending)
        print(f"[{done + 1}/{self.total}] {run_name(settings)}", flush=True)

    def epoch(self, settings, epoch, logs):
        """Called after each epoch; prints one in half a minute, and the last."""
        now = time.monotonic()
        if now - self.last < 30 and epoch + 1 < settings["epochs"]:
            return
        self.last = now
        taken = now - self.begin
        left = taken * (settings["epochs"] - epoch - 1) / (epoch + 1)
        rest = [self._estimate(other) for other in self.pending if other != settings]
        known = [seconds for seconds in rest if seconds is not None]
        # Runs of an unknown kind: like the average of the known ones, or like this.
        average = np.mean(known) if known else taken + left
        total = left + sum(known) + average * (len(rest) - len(known))
        print(
            f"    epoch {epoch + 1}/{settings['epochs']}  "
            + "  ".join(f"{key} {logs[key]:.3f}" for key in ("loss", "accuracy"))
            + f"  training: {_duration(left)} left, all: about {_duration(total)}",
            flush=True,
        )

    def _estimate(self, settings):
        seconds = self.seconds.get(_kind(settings))
        return np.mean(seconds) if seconds else None


def _kind(settings):
    return settings["architecture"], settings["condition"]


def _duration(seconds):
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes}:{seconds:02} min"


def run_all(runs, data, folder):
    """Performs the runs that are not finished. Returns the results of all."""
    folder.mkdir(parents=True, exist_ok=True)
    clock = Clock(runs)
    results = {}
    for settings in runs:
        result = load_result(result_path(folder, settings), settings)
        if result:
            results[run_name(settings)] = result
            clock.finished(result)
    if results:
        print(f"{len(results)} of {len(runs)} runs are finished in {folder}")
    for settings in list(clock.pending):
        clock.start(settings)
        result = perform(
            settings,
            data,
            lambda epoch, logs, settings=settings: clock.epoch(settings, epoch, logs),
        )
        save_result(result_path(folder, settings), result)
        results[run_name(settings)] = result
        clock.finished(result)
    return [results[run_name(settings)] for settings in runs]


# --- the command line ----------------------------------------------------------------


def parser(description):
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--preset", choices=PRESETS, default="cpu", help="sets what is not given")
    add("--dataset", choices=example_data.DATASETS)
    add("--data", help="an .npz file like mnist.npz, or tensorflow-datasets' folder")
    add("--output", type=pathlib.Path, help="default: results/<preset>")
    add("--seeds", type=int, nargs="+")
    add("--betas", type=float, nargs="+", help="strengths β of the spectral penalty")
    add("--architectures", nargs="+", choices=(*SHALLOW, *DEEP))
    add("--conditions", nargs="+", choices=CONDITIONS)
    add("--epochs", type=int)
    add("--width", type=int, help="units of each dense hidden layer")
    add("--learning-rate", type=float)
    add("--batch-size", type=int)
    add("--alpha", type=float, default=1.0)
    add("--tau", type=int, default=10)
    add("--attacked", type=int, help="attack so many of the test images")
    add("--draw", action="store_true", help="train nothing, draw what is there")
    return parser


def main(args, runs, draw):
    """Performs runs, draws figures into the same folder, and prints a table.

    Args:
        args: The parsed command line.
        runs: Settings of each run.
        draw: From the results to figures by name.

    Returns:
        The results.
    """
    if not runs:
        raise SystemExit("No runs: these --architectures and --conditions don't meet.")
    folder = args.output or pathlib.Path("results") / args.preset
    if args.draw:
        found = [load_result(result_path(folder, each), each) for each in runs]
        results = [result for result in found if result]
        print(f"{len(results)} of {len(runs)} runs are finished in {folder}")
    else:
        data = example_data.load(runs[0]["dataset"], args.data)
        results = run_all(runs, data, folder)
    for name, figure in draw(results).items():
        figure.savefig(folder / f"{runs[0]['dataset']}-{name}.png", dpi=120)
    print_table(results)
    print(f"\nResults and figures are in {folder}")
    return results


def robustness_report(result):
    return kp.RobustnessReport.from_json(json.dumps(result["robustness"]))


def label(settings):
    name = CONDITIONS[settings["condition"]]
    if settings["architecture"] in SHALLOW:
        name = name.removesuffix(", last layer")  # there is only one
    return name if settings["beta"] is None else f"{name}, β = {settings['beta']:g}"


def print_table(results):
    """Prints mean ± std over the seeds of each network, as a Markdown table."""
    grouped = {}
    for result in results:
        settings = result["settings"]
        grouped.setdefault((settings["architecture"], label(settings)), []).append(
            result
        )
    columns = ("clean", "FGSM 0.05", "FGSM 0.1", "PGD 0.05", "PGD 0.1", "noise")
    print(
        "\n| | | seeds | exponents of the hidden layers | dimension of the last | "
        + " | ".join(columns)
        + " |\n|"
        + "---|" * (5 + len(columns))
    )
    for (architecture, name), group in grouped.items():
        exponents = [
            over_seeds([r["spectra"][layer]["exponent"] for r in group], 2)
            for layer in group[0]["spectra"]
        ]
        dimensions = [list(r["spectra"].values())[-1]["dimension_90"] for r in group]
        accuracies = zip(*[_accuracies(result) for result in group], strict=True)
        cells = [
            architecture,
            name,
            str(len(group)),
            ", ".join(exponents),
            over_seeds(dimensions, 0),
            *(over_seeds(values, 1) for values in accuracies),
        ]
        print("| " + " | ".join(cells) + " |")


def _accuracies(result):
    """In per cent, as in the columns of the table."""
    report = robustness_report(result)
    shown = [result["test_accuracy"]]
    for attack, epsilon in (
        *(("fgsm", 0.05), ("fgsm", 0.1), ("pgd", 0.05), ("pgd", 0.1)),
        ("noise", max(report.epsilons)),
    ):
        shown.append(report.accuracy[attack][list(report.epsilons).index(epsilon)])
    return [100 * accuracy for accuracy in shown]


def over_seeds(values, digits):
    mean = f"{np.mean(values):.{digits}f}"
    return f"{mean} ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else mean
