"""Predicts the time and memory of the penalty from operation counts, and checks it.

Four rates are calibrated at one size each: a float32 product, a pass over memory, a
float64 Gram matrix and an eigendecomposition. All other sizes are predicted from the
counts, and printed beside what was measured. Times are CPU seconds of all threads
together, which other work on the machine disturbs less than wall time. LAPACK gets one
thread unless OPENBLAS_NUM_THREADS says otherwise, because its threads spin while they
wait. Where the package computes its products in bfloat16, a regularized step takes less
than predicted.

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
import scipy.linalg

import keras_powerlaw as kp
from benchmarks.networks import shallow
from research.printed import print_rows

INPUTS, CLASSES, TAU = 784, 10, 10
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


def cpu_seconds(function, at_least=1.0):
    """Mean of a function's calls over `at_least` seconds, after a first one."""
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
    sigma, to_numpy = x.T @ x, keras.ops.convert_to_numpy
    work = {
        "product": (2 * size**3, lambda: to_numpy(keras.ops.matmul(a, a))),
        "bytes": (2 * 4 * 2**25, lambda: to_numpy(keras.ops.square(long)[:1])),
        "gram": (size**3, lambda: x.T @ x),
        "eigenvectors": (9 * size**3, lambda: scipy.linalg.eigh(sigma, driver="evd")),
    }
    return {name: count / cpu_seconds(run) for name, (count, run) in work.items()}


def network(width, tau):
    form = "plain" if tau is None else "regularized"
    return shallow(form, width, {"tau": tau})


def data(examples):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(examples, 28, 28, 1)).astype("float32")
    return x, rng.integers(CLASSES, size=examples)


def measured_step(width, batch, tau):
    model, (x, y) = network(width, tau), data(batch)
    if tau is not None:  # any orthonormal basis takes the same time
        kp.refresh_eigenbasis(model, data(width + 1)[0], verbose=0)
    return cpu_seconds(lambda: model.train_on_batch(x, y))


def step_rows(rates, sizes):
    """Predicted and measured seconds of steps, without and with the penalty."""
    yield (
        *("N", "B", "plain: predicted", "measured"),
        *("regularized: predicted", "measured"),
    )
    for width, batch in sizes:
        row = []
        for tau in (None, TAU):
            hidden = step_work(batch, width, INPUTS, tau=tau, first=True)
            outputs = step_work(batch, CLASSES, width)
            operations, moved = np.add(hidden, outputs)
            row.append(operations / rates["product"] + moved / rates["bytes"])
            row.append(measured_step(width, batch, tau))
        yield width, batch, *(f"{value:.3f}" for value in row)


def refresh_rows(rates, sizes):
    """Predicted and measured seconds and memory of refreshes."""
    yield "N", "M", "predicted", "measured", "peak MiB: predicted", "measured"
    for width, examples in sizes:
        work = refresh_work(examples, width, INPUTS)
        parts = zip(work, ("product", "gram", "eigenvectors"), strict=True)
        predicted = sum(count / rates[name] for count, name in parts)
        model, (x, _) = network(width, TAU), data(examples)
        kp.refresh_eigenbasis(model, x[: width + 1], verbose=0)
        begin = time.process_time()
        kp.refresh_eigenbasis(model, x, verbose=0)
        spent = time.process_time() - begin
        tracemalloc.start()  # NumPy's memory, LAPACK's work space included
        kp.refresh_eigenbasis(model, x, verbose=0)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        yield (
            *(width, examples, f"{predicted:.2f}", f"{spent:.2f}"),
            *(f"{refresh_bytes(width) / 2**20:.0f}", f"{peak / 2**20:.0f}"),
        )


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


def gpu_rows(width=16384):
    """Steps without and with the penalty, and how many have to lie between refreshes.

    A refresh, on three samples a unit, is on the host: its seconds are printed first.
    """
    _, gram, eigenvectors = refresh_work(3 * width, width, width)
    host = gram / HOST["gram"], eigenvectors / HOST["eigenvectors"]
    print(f"host, one core: Gram {host[0]:.0f} s, eigenvectors {host[1]:.0f} s")
    print(f"host memory: {refresh_bytes(width) / 1e9:.1f} GB")
    yield (
        *("B", "precision", "GPUs", "plain ms", "regularized ms", "ratio"),
        *("k: 1 core", "16"),
    )
    for batch in (1024, 24576):
        for precision in GPU:
            for devices in (1, 8):
                plain, full = (
                    gpu_step(batch, width, devices, precision, tau)
                    for tau in (None, TAU)
                )
                # A share of 10 %: refresh = (refresh + k steps) / 10.
                every = 9 * sum(host) / full
                yield (
                    *(batch, precision, devices, f"{1e3 * plain:.1f}"),
                    *(f"{1e3 * full:.1f}", f"{full / plain:.2f}"),
                    *(f"{every:.0f}", f"{every / 16:.0f}"),
                )


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--gpus", action="store_true", help="predict for GPUs only")
    add("--widths", type=int, nargs="+", default=[500, 1000, 2000, 4000])
    arguments = parser.parse_args(argv)
    if arguments.gpus:
        print_rows(gpu_rows())
        return
    rates, widths = calibrate(), arguments.widths
    print("rates per CPU second: ", end="")
    print(", ".join(f"{name} {rate / 1e9:.1f}e9" for name, rate in rates.items()))
    print_rows(refresh_rows(rates, [(width, 3 * width) for width in widths]))
    print_rows(step_rows(rates, [(n, batch) for n in widths for batch in (256, 1500)]))


if __name__ == "__main__":
    main()
