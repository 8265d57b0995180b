"""The time of a refresh of the eigenbasis, and of its bare parts."""

import keras
import numpy as np
import scipy.linalg

import keras_powerlaw as kp
from benchmarks.clock import medians, ratios, timed
from benchmarks.forms import shallow
from benchmarks.measuring import measured, progress


def measure_refresh(args, data):
    settings = {"width": args.width, "images": len(data[0][0]), "rounds": args.rounds}
    measured(
        args.output,
        f"refresh-{args.width}-{settings['images']}",
        settings,
        lambda: refresh(args.width, data, args.rounds),
    )


def refresh(width, data, rounds):
    """Times a refresh on all images, and its bare parts one after the other."""
    (x, _), _ = data
    model, bare = shallow("regularized", width), shallow("plain", width)
    bare.set_weights(model.get_weights())
    outputs = [bare.get_layer("hidden").output, *bare.outputs]
    probe = keras.Model(bare.inputs[0], outputs)
    batches = [x[start : start + 1024] for start in range(0, len(x), 1024)]
    to_numpy = keras.ops.convert_to_numpy

    def forward():
        return [to_numpy(probe(batch, training=False)[0]) for batch in batches]

    def products(activities):
        gram = np.zeros((width, width), order="F")
        for activity in activities:
            columns = activity.astype("float64").T
            gram = scipy.linalg.blas.dsyrk(
                1.0, columns, beta=1.0, c=gram, lower=True, overwrite_c=True
            )
        return gram

    def decomposition(sigma):
        return scipy.linalg.eigh(sigma, driver="evd")

    kp.refresh_eigenbasis(model, x[:2048], verbose=0)  # warms up
    probe(batches[0], training=False)
    times = {"refresh": [], "forward": [], "products": [], "decomposition": []}

    for turn in range(rounds):
        timed(times, "refresh", lambda: kp.refresh_eigenbasis(model, x, verbose=0))
        activities = timed(times, "forward", forward)
        gram = timed(times, "products", products, activities)
        mean = sum(each.sum(axis=0, dtype="float64") for each in activities) / len(x)
        del activities
        sigma = gram / len(x) - np.outer(mean, mean)  # eigh reads the lower triangle
        timed(times, "decomposition", decomposition, sigma)
        progress(f"  turn {turn + 1} of {rounds}")
    return {"times": times}


def refresh_table(results):
    yield "width", "images", "part", "time", "CPU", "over *all parts*", "CPU"
    for result in results:
        size = [result["settings"][key] for key in ("width", "images")]
        times = dict(result["times"])
        whole = times.pop("refresh")
        parts = np.sum(list(times.values()), axis=0).tolist()
        for name, turns in {"refresh": whole, "all parts": parts, **times}.items():
            yield *size, name, *medians(turns), *ratios(turns, parts)
