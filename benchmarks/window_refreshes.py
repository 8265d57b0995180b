"""The time of a refresh from the training's activations, and of its bare parts."""

import keras
import numpy as np
import scipy.linalg

import keras_powerlaw as kp
from benchmarks.clock import medians, ratios, timed
from benchmarks.forms import shallow
from benchmarks.machine import device
from benchmarks.measuring import measured, progress
from benchmarks.rotation import turned
from keras_powerlaw.penalty import covariance
from keras_powerlaw.spectral.decomposition import decompose_samples


def measure_window(args, data):
    settings = {"width": args.width, "rounds": args.rounds}
    measured(
        args.output,
        f"window-{args.width}",
        settings,
        lambda: refresh(args.width, data, args.rounds),
    )


def refresh(width, data, rounds):
    """Times a refresh of a layer in training, and LAPACK's and BLAS's part of it.

    On an accelerator, also the decomposition there and on the host, and a basis that is
    turned by products, compiled where the backend compiles.
    """
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

    others = {}
    if device()[0] != "cpu":
        on_device = window.samples()
        others = {
            "on the device": lambda: decompose_samples(on_device, on_host=False),
            "on the host": lambda: decompose_samples(on_device, on_host=True),
            "turned by products": turn_once(on_device),
        }
        for run in others.values():
            run()  # warms up
    times = {part: [] for part in ("refresh", "products", "decomposition", *others)}

    for turn in range(rounds):
        timed(times, "refresh", lambda: kp.refresh_eigenbasis(model))
        sigma = timed(times, "products", products)
        timed(times, "decomposition", decomposition, sigma)
        for name, run in others.items():
            timed(times, name, run)
        progress(f"  turn {turn + 1} of {rounds}")
    return {"times": times, "samples": len(samples)}


def turn_once(samples):
    """Turns a basis by the covariance of samples, and waits for it."""
    basis = keras.ops.eye(samples.shape[1])

    def step(basis, samples):
        return turned(basis, covariance(samples)[1])

    if keras.backend.backend() == "jax":
        import jax

        step = jax.jit(step)
    return lambda: float(keras.ops.sum(step(basis, samples)))


def window_table(results):
    yield "width", "samples", "part", "time", "CPU", "over *both parts*", "CPU"
    for result in results:
        size = result["settings"]["width"], result["samples"]
        times = result["times"]
        parts = np.add(times["products"], times["decomposition"]).tolist()
        for name, turns in {**times, "both parts": parts}.items():
            yield *size, name, *medians(turns), *ratios(turns, parts)
