"""Predicts the time and memory of the penalty from operation counts, and checks it.

Four rates are calibrated at one size each: a float32 product, a pass over memory, a
float64 Gram matrix and an eigendecomposition. All other sizes are predicted from the
counts in `step_work` and `refresh_work`, and printed beside what was measured. Times
are CPU seconds of all threads together, which bear other work on the machine better
than wall time. LAPACK gets one thread unless OPENBLAS_NUM_THREADS says otherwise, since
its threads wait by spinning.

    python -m benchmarks.cost         # calibrate, predict, measure (some minutes)
    python -m benchmarks.cost --gpus  # predict a width of 16,384 from data sheets
"""

import argparse
import os
import time
import tracemalloc

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import keras
import numpy as np

import keras_powerlaw as kp
from benchmarks.forms import shallow
from keras_powerlaw.spectral import spectra

IMAGE, INPUTS, CLASSES, TAU = (28, 28, 1), 784, 10, 10

# NVIDIA H100 SXM, data sheet, dense: operations and bytes per second. Half of it is
# assumed to be reached. The host's rates are those measured on one core, see
# docs/cost.md.
EFFICIENCY = 0.5
GPU = {"float32": 67e12, "TF32": 495e12}
GPU_BYTES, LINK_BYTES, LATENCY = 3.35e12, 450e9, 30e-6
HOST = {"gram": 48e9, "eigenvectors": 62e9}


def step_work(batch, width, inputs, *, tau=None, first=False):
    """Operations and bytes of a training step of dense layer, tanh, normalization.

    Args:
        batch: B.
        width: N.
        inputs: Width of the layer's input.
        tau: τ of its penalty, or `None` for a plain layer.
        first: Whether the layer is the network's first, with no gradient to hand on.
    """
    # Forward, gradient of the weights, gradient of the input.
    operations = (2 if first else 3) * 2 * batch * inputs * width
    # Adam reads weights, gradient and two moments, and writes three of these. About
    # twenty passes over the (B, N) activations.
    moved = 4 * (7 * inputs * width + 20 * batch * width)
    if tau is not None:
        directions = width - tau + 1
        operations += 4 * batch * width * directions
        # The basis twice. Mean, centring, product, squares and back: ten passes.
        moved += 4 * (2 * width * directions + 10 * batch * width)
    return operations, moved


def refresh_work(examples, width, inputs):
    """Operations of a refresh's forward pass, Gram matrix and eigendecomposition.

    9 N³ is the usual count for all eigenvectors by QR iteration. LAPACK's divide and
    conquer does with less, so that its calibrated rate is a nominal one.
    """
    return 2 * examples * inputs * width, examples * width**2, 9 * width**3


def refresh_bytes(width):
    """Peak on the host: Gram matrix, covariance, its copy, work space, eigenvectors.

    LAPACK's `syevd` asks for 1 + 6N + 2N² numbers of work space, and leaves the
    eigenvectors in the copy.
    """
    return 8 * (3 * width**2 + 1 + 6 * width + 2 * width**2)


# --- on this machine ------------------------------------------------------------------


def cpu_seconds(function, at_least=1.0):
    """Of one call: the mean of as many as last `at_least` seconds, after a first."""
    function()
    calls, begin = 0, time.process_time()
    while (spent := time.process_time() - begin) < at_least:
        function()
        calls += 1
    return spent / calls


def calibrate(size=1000):
    """Rates per CPU second."""
    x = np.random.default_rng(0).normal(size=(size, size))
    a = keras.ops.convert_to_tensor(x, "float32")
    long = keras.ops.ones((2**25,))
    sigma = x.T @ x

    def product():
        keras.ops.convert_to_numpy(keras.ops.matmul(a, a))

    def squares():
        keras.ops.convert_to_numpy(keras.ops.square(long)[:1])

    return {
        "product": 2 * size**3 / cpu_seconds(product),
        "bytes": 2 * 4 * 2**25 / cpu_seconds(squares),
        "gram": size**3 / cpu_seconds(lambda: x.T @ x),
        "eigenvectors": 9
        * size**3
        / cpu_seconds(lambda: spectra.eigendecomposition(sigma)),
    }


def network(width, tau):
    """With products in float32, like the calibrated one."""
    return (
        shallow("plain", width)
        if tau is None
        else shallow("float32", width, {"tau": tau})
    )


def data(examples):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(examples, *IMAGE)).astype("float32")
    return x, rng.integers(CLASSES, size=examples)


def measured_step(width, batch, tau):
    model, (x, y) = network(width, tau), data(batch)
    if tau is not None:
        # Any orthonormal basis takes the same time.
        model.get_layer("hidden").activity_regularizer.set_basis(np.eye(width))
    return cpu_seconds(lambda: model.train_on_batch(x, y))


def compare_steps(rates, sizes):
    print("| N | B | plain: predicted | measured | regularized: predicted | measured |")
    print("|---|---|---|---|---|---|")
    for width, batch in sizes:
        row = []
        for tau in (None, TAU):
            hidden = step_work(batch, width, INPUTS, tau=tau, first=True)
            outputs = step_work(batch, CLASSES, width)
            operations, moved = np.add(hidden, outputs)
            row.append(operations / rates["product"] + moved / rates["bytes"])
            row.append(measured_step(width, batch, tau))
        figures = " | ".join(f"{value:.3f}" for value in row)
        print(f"| {width} | {batch} | {figures} |", flush=True)


def compare_refreshes(rates, sizes):
    print("| N | M | predicted | measured | peak MiB: predicted | measured |")
    print("|---|---|---|---|---|---|")
    for width, examples in sizes:
        forward, gram, eigenvectors = refresh_work(examples, width, INPUTS)
        predicted = (
            forward / rates["product"]
            + gram / rates["gram"]
            + eigenvectors / rates["eigenvectors"]
        )
        model, (x, _) = network(width, TAU), data(examples)
        kp.refresh_eigenbasis(model, x[: width + 1], verbose=0)
        begin = time.process_time()
        kp.refresh_eigenbasis(model, x, verbose=0)
        spent = time.process_time() - begin
        tracemalloc.start()  # NumPy's memory, LAPACK's work space included
        kp.refresh_eigenbasis(model, x, verbose=0)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        print(
            f"| {width} | {examples} | {predicted:.2f} | {spent:.2f} "
            f"| {refresh_bytes(width) / 2**20:.0f} | {peak / 2**20:.0f} |",
            flush=True,
        )


# --- from data sheets -----------------------------------------------------------------


def gpu_step(batch, width, devices, precision, tau=None):
    """Seconds of a step of one hidden layer between two of the same width."""
    operations, moved = step_work(batch / devices, width, width, tau=tau)
    seconds = operations / (EFFICIENCY * GPU[precision]) + moved / (
        EFFICIENCY * GPU_BYTES
    )
    if devices > 1:  # ring all-reduce: gradient; mean and squares
        ring = 2 * (devices - 1) / devices / (EFFICIENCY * LINK_BYTES)
        seconds += 4 * width**2 * ring + LATENCY
        if tau is not None:
            seconds += 4 * (2 * width - tau + 1) * ring + 2 * LATENCY
    return seconds


def print_gpus(width=16384, samples=3 * 16384):
    _, gram, eigenvectors = refresh_work(samples, width, width)
    host = gram / HOST["gram"], eigenvectors / HOST["eigenvectors"]
    print(f"host, one core: Gram {host[0]:.0f} s, eigenvectors {host[1]:.0f} s")
    print(f"host memory: {refresh_bytes(width) / 1e9:.1f} GB")
    print(
        "| B | precision | GPUs | plain ms | regularized ms | ratio | k: 1 core | 16 |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for batch in (1024, 24576):
        for precision in GPU:
            for devices in (1, 8):
                plain, full = (
                    gpu_step(batch, width, devices, precision, tau)
                    for tau in (None, TAU)
                )
                # A share of 10 %: refresh = (refresh + k steps) / 10.
                every = 9 * sum(host) / full
                print(
                    f"| {batch} | {precision} | {devices} | {1e3 * plain:.1f} "
                    f"| {1e3 * full:.1f} | {full / plain:.2f} "
                    f"| {every:.0f} | {every / 16:.0f} |"
                )


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--gpus", action="store_true", help="predict for GPUs only")
    parser.add_argument(
        "--widths", type=int, nargs="+", default=[500, 1000, 2000, 4000]
    )
    arguments = parser.parse_args()
    if arguments.gpus:
        print_gpus()
        return
    rates = calibrate()
    print("rates per CPU second: ", end="")
    print(", ".join(f"{name} {rate / 1e9:.1f}e9" for name, rate in rates.items()))
    compare_refreshes(rates, [(width, 3 * width) for width in arguments.widths])
    compare_steps(
        rates, [(width, batch) for width in arguments.widths for batch in (256, 1500)]
    )


if __name__ == "__main__":
    main()
