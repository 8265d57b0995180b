"""The time of a refresh of the eigenbasis, and of its bare parts.

On all images, in float64, or of the activations of the training, in float32.
"""

import keras
import numpy as np
import scipy.linalg

import keras_powerlaw as kp
from benchmarks.measuring import medians, ratios, timed
from benchmarks.networks import mnist, shallow


def cases(args):
    (x, _), _ = mnist(args.data)
    x = x[: args.images]
    settings = {"width": args.width, "images": len(x), "rounds": args.rounds}
    yield settings, lambda _: on_images(x, args.width, args.rounds)


def window_cases(args):
    (x, y), _ = mnist(args.data)
    settings = {"width": args.width, "rounds": args.rounds}
    yield settings, lambda _: from_training(x, y, **settings)


def on_images(x, width, rounds):
    """Times a refresh on images, and its bare parts one after the other."""
    model, bare = shallow("regularized", width), shallow("plain", width)
    bare.set_weights(model.get_weights())
    probe = keras.Model(bare.inputs[0], bare.get_layer("hidden").output)
    batches = [x[start : start + 1024] for start in range(0, len(x), 1024)]

    def forward():
        outputs = (probe(batch, training=False) for batch in batches)
        return [keras.ops.convert_to_numpy(each) for each in outputs]

    def products(activities):
        gram = np.zeros((width, width), order="F")
        for activity in activities:
            columns = activity.astype("float64").T
            gram = scipy.linalg.blas.dsyrk(
                1.0, columns, beta=1.0, c=gram, lower=True, overwrite_c=True
            )
        return gram

    kp.refresh_eigenbasis(model, x[:2048], verbose=0)  # warms up
    probe(batches[0], training=False)
    times = {}
    for _ in range(rounds):
        timed(times, "refresh", lambda: kp.refresh_eigenbasis(model, x, verbose=0))
        activities = timed(times, "forward", forward)
        gram = timed(times, "products", products, activities)
        mean = sum(each.sum(axis=0, dtype="float64") for each in activities) / len(x)
        del activities
        sigma = gram / len(x) - np.outer(mean, mean)  # eigh reads the lower triangle
        timed(times, "decomposition", decomposition, sigma)
    return {"times": times}


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
    yield "width", "images", "part", "time", "CPU", "over *all parts*", "CPU"
    for result in results:
        size = [result["settings"][key] for key in ("width", "images")]
        times = dict(result["times"])
        whole = times.pop("refresh")
        parts = np.sum(list(times.values()), axis=0).tolist()
        for name, turns in {"refresh": whole, "all parts": parts, **times}.items():
            yield *size, name, *medians(turns), *ratios(turns, parts)


def window_table(results):
    yield "width", "samples", "part", "time", "CPU", "over *both parts*", "CPU"
    for result in results:
        size = result["settings"]["width"], result["samples"]
        times = result["times"]
        parts = np.add(times["products"], times["decomposition"]).tolist()
        for name, turns in {**times, "both parts": parts}.items():
            yield *size, name, *medians(turns), *ratios(turns, parts)
