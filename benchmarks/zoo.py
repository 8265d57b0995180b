"""The penalty in each of its forms on a zoo of ordinary networks (zoo_networks.py).

Every network trains without a penalty and with each form, as many epochs, with the
defaults of `SpectralActivityRegularizer` (but τ where a layer is narrow) and of
`EigenbasisRefresh`.

The table has, after training: the exponent of the spectrum over the test images, from
n = τ + 1 to N/2; *distance*, the median of |log λₙ/γₙ| over n = τ … N/2, in which γ is
the power law through λ_τ; the test accuracy; the share of dead units, that are the same
for all test images, of the rectified layer; the rank; the accuracy under PGD.
"""

import itertools
import warnings

import keras
import numpy as np

import keras_powerlaw as kp
from benchmarks.measuring import Clock, seconds
from benchmarks.zoo_networks import NETWORKS, compiled, load
from research.data import choose
from research.printed import over_seeds

FORMS = ("none", "nearest", "log", "paper")
EPSILONS = [0.02, 0.05]


def cases(args):
    for seed, network, form in itertools.product(
        args.seeds, args.networks, args.penalties
    ):
        for other in [{}] if form == "none" else args.settings:
            settings = {"network": network, "form": form, **other, "seed": seed}
            settings["attacked"] = args.attacked
            yield settings, lambda settings: train(**settings, data=args.data)


def train(network, form, seed, data, attacked, every_steps=None, **other):
    """Trains a network of the zoo and examines it."""
    network = NETWORKS[network]
    (x, y), test = load(network.data, data)
    x, y = x[: network.images], y[: network.images]
    keras.utils.clear_session()
    keras.utils.set_random_seed(seed)
    settings = {"tau": network.tau, "reduction": network.reduction, **other}
    regularizer = None
    if form != "none":
        regularizer = kp.SpectralActivityRegularizer(form=form, **settings)
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
    return found | examine(model, network, test, attacked, settings["tau"])


def examine(model, network, test, attacked, tau):
    measured = kp.measure_spectrum(
        *(model, test[0], "hidden"), reduction=network.reduction, verbose=0
    )
    half = len(measured.eigenvalues) // 2
    spectrum = kp.Spectrum(measured.eigenvalues, fit_range=(tau + 1, half))
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
        "exponent": spectrum.exponent,
        "distance": spectrum.distance(1, (tau, half)).median,
        "rank": measured.rank,
        "dead": float(np.mean(np.ptp(units, axis=0) == 0)),
        "clean": float(model.evaluate(*test, verbose=0, return_dict=True)["accuracy"]),
        "pgd": [float(value) for value in report.accuracy["pgd"]],
    }


def table(results):
    """A row for each network and form, mean ± standard deviation over the seeds."""
    yield (
        *("network", "form", "seeds", "exponent", "distance", "clean %", "dead %"),
        *("rank", *(f"PGD {epsilon:g}" for epsilon in EPSILONS), "time", "CPU", ""),
    )
    rows = {}
    for result in results:
        settings = result["settings"]
        keys = ("beta", "tau", "every_steps")
        other = [(key, settings[key]) for key in keys if key in settings]
        place = list(NETWORKS).index(settings["network"])
        row = place, FORMS.index(settings["form"]), *other
        rows.setdefault(row, []).append(result)
    for (network, form, *other), runs in sorted(rows.items()):
        yield (
            list(NETWORKS)[network],
            " ".join([FORMS[form], *(f"{k}={v:g}" for k, v in other)]),
            len(runs),
            over_seeds([run["exponent"] for run in runs], 2),
            over_seeds([run["distance"] for run in runs], 2),
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
    counts = (errors, "ended in an error"), (warned, "warned")
    return ", ".join(f"{count} {what}" for count, what in counts if count)
