"""The penalty in each of its forms on a zoo of ordinary networks.

Every network trains without a penalty and with each form, as many epochs, with the
defaults of `SpectralActivityRegularizer` (but τ where a layer is narrow) and of
`EigenbasisRefresh`. Every finished training leaves a JSON file and is not repeated, so
the script can be stopped at any time and started again.

    python -m benchmarks.zoo                                # all of it: an hour or two
    python -m benchmarks.zoo --networks digits --forms none nearest --seeds 0 1 2
    python -m benchmarks.zoo --data ~/.keras/datasets       # mnist.npz and the like
    python -m benchmarks.zoo --settings beta=1 tau=5        # two more, not the defaults
    python -m benchmarks.zoo --settings beta=1,every_steps=10            # one, of both

The table has, after training: the exponent of the spectrum over the test images, from
n = τ + 1 to N/2; *distance*, the median of |log λₙ/γₙ| over n = τ … N/2, in which γ is
the power law through λ_τ; the test accuracy; the share of dead units, that are the same
for all test images, of the rectified layer; the rank; the accuracy under PGD.

zoo_networks.py has the networks.
"""

import argparse
import itertools
import os
import pathlib
import re
import warnings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

import keras_powerlaw as kp
from benchmarks.clock import Clock, seconds
from benchmarks.measuring import measured, print_table
from benchmarks.zoo_networks import NETWORKS, compiled, load
from examples.experiments.data import choose
from examples.experiments.table import over_seeds

FORMS = ("none", "nearest", "log", "paper")
EPSILONS = [0.02, 0.05]


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    add("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    add("--settings", nargs="+", type=setting, default=[{}], help="not the defaults")
    add("--seeds", nargs="+", type=int, default=[0])
    add("--data", type=pathlib.Path, help="folder of mnist.npz and fashion_mnist.npz")
    add("--attacked", type=int, default=500, help="attack so many test images")
    add("--output", type=pathlib.Path, default="docs/benchmarks")
    args = parser.parse_args(argv)

    args.output.mkdir(parents=True, exist_ok=True)
    for seed, network, form in itertools.product(args.seeds, args.networks, args.forms):
        for other in [{}] if form == "none" else args.settings:
            settings = {"network": network, "form": form, **other, "seed": seed}
            label = "-".join(map(str, ["zoo", network, form, *other, *other.values()]))
            measured(
                args.output,
                re.sub("[ ,]+", "-", f"{label}-seed{seed}").lower(),
                {**settings, "attacked": args.attacked},
                lambda settings=settings: train(
                    **settings, folder=args.data, attacked=args.attacked
                ),
            )
    print_table("zoo", args.output, table)


def setting(text):
    """`{"beta": 0.5}` from `"beta=0.5"`: arguments of regularizer or refresh."""
    pairs = (pair.split("=") for pair in text.split(","))
    return {k: float(v) if k == "beta" else int(v) for k, v in pairs}


def train(network, form, seed, folder, attacked, every_steps=None, **other):
    """Trains a network of the zoo and examines it."""
    network = NETWORKS[network]
    (x, y), test = load(network.data, folder)
    x, y = x[: network.images], y[: network.images]
    keras.utils.clear_session()
    keras.utils.set_random_seed(seed)
    regularizer = (
        None
        if form == "none"
        else kp.SpectralActivityRegularizer(
            form=form,
            **{"tau": network.tau, "reduction": network.reduction, **other},
        )
    )
    steps = network.epochs * -(-len(x) // network.batch)
    model = compiled(network, regularizer, x.shape[1:], steps)
    refresh = kp.EigenbasisRefresh(every_steps=every_steps, verbose=0)
    callbacks = [refresh] if regularizer else []
    clock, error = Clock(), None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            model.fit(
                *(x, y, network.batch, network.epochs),
                verbose=0,
                callbacks=callbacks,
            )
        except ValueError as raised:  # what ends the training of a user
            error = str(raised)
    found = {"clock": clock.read(), "steps": steps, "error": error}
    found["warnings"] = sum("keras_powerlaw" in each.filename for each in caught)
    return found | examine(model, network, test, attacked)


def examine(model, network, test, attacked):
    spectrum = kp.measure_spectrum(
        *(model, test[0], "hidden"), reduction=network.reduction, verbose=0
    )
    names = [layer.name for layer in model.layers]
    features = keras.Model(
        model.inputs,
        model.get_layer("rectified" if "rectified" in names else "hidden").output,
    ).predict(test[0], batch_size=500, verbose=0)
    units = features.reshape(-1, features.shape[-1])
    report = kp.evaluate_robustness(
        *(model, *choose(test, attacked), EPSILONS), attacks=["pgd"], verbose=0
    )
    return {
        "eigenvalues": [float(f"{value:.5g}") for value in spectrum.eigenvalues],
        "rank": spectrum.rank,
        "dead": float(np.mean(np.ptp(units, axis=0) == 0)),
        "clean": float(model.evaluate(*test, verbose=0, return_dict=True)["accuracy"]),
        "pgd": [float(value) for value in report.accuracy["pgd"]],
    }


def spectrum_of(run, tau):
    """That of the regularized layer, fitted from n = τ + 1 to N/2."""
    eigenvalues = run["eigenvalues"]
    return kp.Spectrum(eigenvalues, fit_range=(tau + 1, len(eigenvalues) // 2))


def table(results):
    """A row for each network and form, mean ± standard deviation over the seeds."""
    yield (
        *("network", "form", "seeds", "exponent", "distance", "clean %", "dead %"),
        *("rank", *(f"PGD {epsilon:g}" for epsilon in EPSILONS), "time", "CPU", ""),
    )
    rows = {}
    for result in results:
        settings = result["settings"]
        row = (
            list(NETWORKS).index(settings["network"]),
            FORMS.index(settings["form"]),
            *(
                (name, settings[name])
                for name in ("beta", "tau", "every_steps")
                if name in settings
            ),
        )
        rows.setdefault(row, []).append(result)
    for (network, form, *other), runs in sorted(rows.items()):
        name = list(NETWORKS)[network]
        tau = dict(other).get("tau", NETWORKS[name].tau)
        spectra = [spectrum_of(run, tau) for run in runs]
        half = len(spectra[0].eigenvalues) // 2
        yield (
            *(name, " ".join([FORMS[form], *(f"{k}={v:g}" for k, v in other)])),
            len(runs),
            over_seeds([each.exponent for each in spectra], 2),
            over_seeds([each.distance(1, (tau, half)).median for each in spectra], 2),
            over_seeds([100 * run["clean"] for run in runs], 1),
            over_seeds([100 * run["dead"] for run in runs], 0),
            over_seeds([run["rank"] for run in runs], 0),
            *(over_seeds(v, 1) for v in 100 * np.transpose([r["pgd"] for r in runs])),
            *seconds(np.median([run["clock"] for run in runs], axis=0)),
            _troubles(runs),
        )


def _troubles(runs):
    errors = sum(run["error"] is not None for run in runs)
    warned = sum(run["warnings"] > 0 for run in runs)
    return ", ".join(
        f"{count} {what}"
        for count, what in ((errors, "ended in an error"), (warned, "warned"))
        if count
    )


if __name__ == "__main__":
    main()
