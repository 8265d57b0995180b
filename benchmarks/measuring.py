"""What timing and comparing need: clocks, one JSON file for each result, tables."""

import contextlib
import importlib
import json
import os
import pathlib
import platform
import time

import keras
import numpy as np
import scipy

import keras_powerlaw as kp
from examples.experiments.results import load_result, save_result


class Clock:
    """Seconds and CPU seconds since it was made, but for its pauses."""

    def __init__(self):
        self._begin = self._now()

    def _now(self):
        return np.array([time.perf_counter(), time.process_time()])

    def read(self):
        """`[seconds, CPU seconds]`"""
        return [round(float(value), 5) for value in self._now() - self._begin]

    @contextlib.contextmanager
    def paused(self):
        begin = self._now()
        yield
        self._begin += self._now() - begin


def medians(times):
    """Cells of a table: seconds and CPU seconds."""
    return seconds(np.median(times, axis=0))


def ratios(times, per):
    """Cells of a table: both clocks over those of the same turn in `per`."""
    if not per:
        return "–", "–"
    turns = [np.divide(mine, its) for mine, its in zip(times, per, strict=False)]
    return [f"{ratio:.2f}" for ratio in np.median(turns, axis=0)]


def seconds(clock):
    return [f"{value:.3g} s" for value in clock]


def measured(output, name, settings, run):
    """The result of `run()`, or what a file says that it was."""
    path = output / f"{prefix(name)}.json"
    settings = json.loads(json.dumps(settings))  # as the file has them
    result = load_result(path, settings)
    if result is None:
        progress(path.stem)
        result = {"settings": settings, "machine": machine(), **run()}
        result["finished"] = time.strftime("%Y-%m-%d %H:%M:%S")
        save_result(path, result)
    return result


def print_table(name, output, table):
    """Prints a table of all measurements of a kind in the folder."""
    paths = output.glob(f"{prefix(name)}-*.json")
    results = sorted(
        (json.loads(path.read_text()) for path in paths),
        key=lambda result: result["finished"],
    )
    if not results:
        return
    machines = {json.dumps(result["machine"]) for result in results}
    print(f"\n{name}, on {' and '.join(sorted(machines))}\n")
    for index, row in enumerate(table(results)):
        print(f"| {' | '.join(map(str, row))} |")
        if index == 0:
            print("|" + "---|" * len(row))


def device():
    """`"cpu"` or `"gpu"`, and the latter's name."""
    backend = keras.backend.backend()
    name = None
    if backend == "jax":
        import jax

        if jax.default_backend() != "cpu":
            name = jax.devices()[0].device_kind
    elif backend == "torch":
        import torch

        name = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    else:
        import tensorflow as tf

        for gpu in tf.config.list_physical_devices("GPU")[:1]:
            name = tf.config.experimental.get_device_details(gpu)["device_name"]
    return ("cpu", None) if name is None else ("gpu", name)


def machine():
    info = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.split(":")[1].strip() for line in info if "model name" in line]
    backend = keras.backend.backend()
    return {
        "cores": os.cpu_count(),
        "cpu": models[0] if models else platform.machine(),
        "blas_threads": os.environ.get("OPENBLAS_NUM_THREADS"),
        "gpu": device()[1],
        "backend": f"{backend} {importlib.import_module(backend).__version__}",
        "python": platform.python_version(),
        **{module.__name__: module.__version__ for module in (keras, np, scipy, kp)},
    }


def prefix(name):
    """How the files of a measurement are called, so far as the machine is concerned."""
    return f"speed-{keras.backend.backend()}-{device()[0]}-{name}"


def progress(line):
    print(line, flush=True)
