"""The time of a refresh from the training's activations, and of its bare parts."""

import numpy as np
import scipy.linalg

import keras_powerlaw as kp
from benchmarks.measuring import medians, ratios, timed
from benchmarks.networks import mnist, shallow


def cases(args):
    (x, y), _ = mnist(args.data)
    settings = {"width": args.width, "rounds": args.rounds}
    yield settings, lambda _: from_training(x, y, **settings)


def from_training(x, y, width, rounds):
    """Times a refresh of a layer in training, and LAPACK's and BLAS's part of it."""
    model = shallow("regularized", width)
    kp.refresh_eigenbasis(model)  # from here on, steps keep their activations
    samples = 5 * width // 2
    for start in range(0, 2 * samples, 500):
        batch = np.arange(start, start + 500) % len(x)
        model.train_on_batch(x[batch], y[batch])
    kp.refresh_eigenbasis(model)  # warms up, and gives the next one a basis to judge
    centered = np.random.default_rng(0).standard_normal((samples, width), "float32")
    times = {}
    for _ in range(rounds):
        timed(times, "refresh", lambda: kp.refresh_eigenbasis(model))
        sigma = timed(times, "products", covariance, centered)
        timed(times, "decomposition", decomposition, sigma)
    return {"times": times, "samples": samples}


def covariance(centered):
    return scipy.linalg.blas.ssyrk(1 / len(centered), centered.T, lower=True)


def decomposition(sigma):
    return scipy.linalg.eigh(sigma, driver="evd", check_finite=False)


def table(results):
    yield "width", "samples", "part", "time", "CPU", "over *both parts*", "CPU"
    for result in results:
        size = result["settings"]["width"], result["samples"]
        times = result["times"]
        parts = np.add(times["products"], times["decomposition"]).tolist()
        for name, turns in {**times, "both parts": parts}.items():
            yield *size, name, *medians(turns), *ratios(turns, parts)
