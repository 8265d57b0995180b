"""The exponent as a knob: asked against measured, by three ways to a spectrum.

Each network trains without anything; with the penalty, with its defaults; with colored
first weights and the penalty; and with a layer that has the spectrum by construction
behind the same place. The table has, for each α asked for, the exponent over n = 11 … N
on the test images, and the test accuracy in brackets.
"""

import itertools

import keras
import numpy as np
from keras import layers

import keras_powerlaw as kp
from benchmarks.measuring import Clock
from benchmarks.zoo_networks import Network, compiled, load, shallow, transformer

ALPHAS = (0.5, 1.0, 1.5, 2.0, 2.5)
PLAIN = "none"
WAYS = (PLAIN, "penalty", "colored, penalty", "construction")


def channels(regularizer):
    """Two convolutions, the penalty on the channels of the second one."""
    penalty = {"activity_regularizer": regularizer, "name": "hidden"}
    return [
        *(layers.Conv2D(32, 3, activation="relu"), layers.MaxPooling2D()),
        *(layers.Conv2D(64, 3, activation="relu", **penalty), layers.MaxPooling2D()),
        *(layers.GlobalAveragePooling2D(), layers.Dense(64, "relu")),
    ]


NETWORKS = {
    **{
        f"{activation}{', norm' if norm else ''}": Network(
            shallow(256, activation, norm)
        )
        for activation, norm in itertools.product(
            ("tanh", "relu", "gelu"), (True, False)
        )
    },
    "channels": Network(channels, reduction="channels"),
    "transformer": Network(transformer, reduction="channels"),
}


def cases(args):
    for seed, name, way in itertools.product(args.seeds, NETWORKS, WAYS):
        # A layer of whitening takes every position for units of their own.
        if way == "construction" and NETWORKS[name].reduction == "channels":
            continue
        for alpha in [None] if way == PLAIN else ALPHAS:
            settings = {"network": name, "way": way, "alpha": alpha, "seed": seed}
            yield settings, lambda settings: train(**settings, data=args.data)


def train(network, way, alpha, seed, data):
    """Trains a network in one of `WAYS`, and measures it."""
    network = NETWORKS[network]
    (x, y), test = load(network.data, data)
    x, y = x[: network.images], y[: network.images]
    keras.utils.clear_session()
    keras.utils.set_random_seed(seed)
    regularizer, built = None, network.build
    if "penalty" in way:
        regularizer = kp.SpectralActivityRegularizer(alpha, reduction=network.reduction)
    if way == "construction":
        built = constructed(network.build, alpha)
    steps = network.epochs * -(-len(x) // network.batch)
    model = compiled(Network(built, rate=network.rate), regularizer, x.shape[1:], steps)
    clock = Clock()
    if "colored" in way:
        options = {"reduction": network.reduction, "seed": seed, "verbose": 0}
        kp.color_weights(model, x, "hidden", alpha, **options)
    callbacks = [kp.EigenbasisRefresh(verbose=0)] if regularizer else []
    model.fit(x, y, network.batch, network.epochs, verbose=0, callbacks=callbacks)
    place = "hidden"
    if way == "construction":
        kp.refresh_whitening(model, x, verbose=0)
        place = "constructed"
    clock = clock.read()
    spectrum = kp.measure_spectrum(
        model, test[0], place, reduction=network.reduction, verbose=0
    )
    return {
        "clock": clock,
        "exponent": spectrum.exponent,
        "distance": spectrum.distance(alpha or 1.0).median,
        "clean": float(model.evaluate(*test, verbose=0, return_dict=True)["accuracy"]),
    }


def constructed(build, alpha):
    """A network's layers, with one of the spectrum behind the place of the penalty."""

    def with_spectrum(regularizer):
        built = build(regularizer)
        [place] = [i for i, layer in enumerate(built) if layer.name == "hidden"]
        layer = kp.WhiteningLayer(target=alpha, name="constructed")
        return [*built[: place + 1], layer, *built[place + 1 :]]

    return with_spectrum


def table(results):
    """A row for each network and way, means over the seeds."""
    yield "network", "way", *(f"α = {alpha:g}" for alpha in ALPHAS), "CPU over none"

    def mean(name, way, alpha, value):
        wanted = {"network": name, "way": way, "alpha": alpha}.items()
        values = [value(r) for r in results if wanted <= r["settings"].items()]
        return np.mean(values) if values else np.nan

    def cell(name, way, alpha):
        exponent = mean(name, way, alpha, lambda r: r["exponent"])
        clean = mean(name, way, alpha, lambda r: r["clean"])
        return "" if np.isnan(exponent) else f"{exponent:.2f} ({100 * clean:.1f})"

    def cpu(name, way, alphas):
        return np.mean([mean(name, way, a, lambda r: r["clock"][1]) for a in alphas])

    for name, way in itertools.product(NETWORKS, WAYS):
        if way == PLAIN:
            yield name, way, "", cell(name, way, None), *[""] * 4
        elif not np.isnan(ratio := cpu(name, way, ALPHAS) / cpu(name, PLAIN, [None])):
            cells = (cell(name, way, alpha) for alpha in ALPHAS)
            yield name, way, *cells, f"{ratio:.1f}"
