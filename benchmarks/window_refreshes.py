"""The time of a refresh from the training's activations, and of its bare parts."""

import keras
import numpy as np
import scipy.linalg

import keras_powerlaw as kp
from benchmarks.clock import medians, ratios, timed
from benchmarks.forms import shallow
from benchmarks.measuring import measured, progress


def measure_window(args, data):
    settings = {"width": args.width, "rounds": args.rounds}
    measured(
        args.output,
        f"window-{args.width}",
        settings,
        lambda: refresh(args.width, data, args.rounds),
    )


def refresh(width, data, rounds):
    """Times a refresh of a layer in training, and LAPACK's and BLAS's part of it."""
    (x, y), _ = data
    model = shallow("regularized", width)
    kp.refresh_eigenbasis(model)  # from here on, steps keep their activations
    window = model.get_layer("hidden").activity_regularizer.window
    while not window.is_filled:
        model.train_on_batch(x[:500], y[:500])
    kp.refresh_eigenbasis(model)  # warms up, and gives the next one a basis to judge
    samples = keras.ops.convert_to_numpy(window.samples())
    centered = samples - samples.mean(axis=0)

    def products():
        return scipy.linalg.blas.ssyrk(1 / len(centered), centered.T, lower=True)

    def decomposition(sigma):
        return scipy.linalg.eigh(sigma, driver="evd", check_finite=False)

    times = {"refresh": [], "products": [], "decomposition": []}

    for turn in range(rounds):
        timed(times, "refresh", lambda: kp.refresh_eigenbasis(model))
        sigma = timed(times, "products", products)
        timed(times, "decomposition", decomposition, sigma)
        progress(f"  turn {turn + 1} of {rounds}")
    return {"times": times, "samples": len(samples)}


def window_table(results):
    yield "width", "samples", "part", "time", "CPU", "over *both parts*", "CPU"
    for result in results:
        size = result["settings"]["width"], result["samples"]
        times = result["times"]
        parts = np.add(times["products"], times["decomposition"]).tolist()
        for name, turns in {**times, "both parts": parts}.items():
            yield *size, name, *medians(turns), *ratios(turns, parts)
