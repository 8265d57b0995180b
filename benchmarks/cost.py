"""Predicts the time and memory of the penalty from operation counts, and checks it.

Four rates are calibrated at one size each: a float32 product, a pass over memory, a
float64 Gram matrix and an eigendecomposition. All other sizes are predicted from the
counts in cost_counts.py, and printed beside what was measured. Times are CPU seconds of
all threads together, which other work on the machine disturbs less than wall time.
LAPACK gets one thread unless OPENBLAS_NUM_THREADS says otherwise, because its threads
spin while they wait.

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
from scipy.linalg import eigh

import keras_powerlaw as kp
from benchmarks.cost_counts import refresh_bytes, refresh_work, step_work
from benchmarks.cost_gpus import TAU, print_gpus
from benchmarks.forms import shallow
from examples.experiments.table import print_rows

IMAGE, INPUTS, CLASSES = (28, 28, 1), 784, 10


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
    sigma = x.T @ x

    def product():
        keras.ops.convert_to_numpy(keras.ops.matmul(a, a))

    def squares():
        keras.ops.convert_to_numpy(keras.ops.square(long)[:1])

    return {
        "product": 2 * size**3 / cpu_seconds(product),
        "bytes": 2 * 4 * 2**25 / cpu_seconds(squares),
        "gram": size**3 / cpu_seconds(lambda: x.T @ x),
        "eigenvectors": 9 * size**3 / cpu_seconds(lambda: eigh(sigma, driver="evd")),
    }


def network(width, tau):
    """With products in float32, like the one that is calibrated."""
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
        model.get_layer("hidden").activity_regularizer.eigenbasis.renew(np.eye(width))
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
        yield (
            *(width, examples, f"{predicted:.2f}", f"{spent:.2f}"),
            *(f"{refresh_bytes(width) / 2**20:.0f}", f"{peak / 2**20:.0f}"),
        )


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--gpus", action="store_true", help="predict for GPUs only")
    parser.add_argument(
        "--widths", type=int, nargs="+", default=[500, 1000, 2000, 4000]
    )
    arguments = parser.parse_args(argv)
    if arguments.gpus:
        print_gpus()
        return
    rates = calibrate()
    print("rates per CPU second: ", end="")
    print(", ".join(f"{name} {rate / 1e9:.1f}e9" for name, rate in rates.items()))
    print_rows(refresh_rows(rates, [(width, 3 * width) for width in arguments.widths]))
    sizes = [(width, batch) for width in arguments.widths for batch in (256, 1500)]
    print_rows(step_rows(rates, sizes))


if __name__ == "__main__":
    main()
