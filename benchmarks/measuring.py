"""A stopwatch, the process's memory, and the lines of JSON that measurements leave.

A measurement whose line is in the file, with the same kind, settings, backend and
device, is not repeated.
"""

import contextlib
import functools
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


def measured(output, kind, settings, run):
    """The result of a measurement, from the file or, if it is not there, from `run()`.

    Args:
        output: The file.
        kind: What is measured.
        settings: All that decides about the result.
        run: Returns a dictionary.
    """
    key = {"kind": kind, **place(), "settings": json.loads(json.dumps(settings))}
    for line in lines(output):
        if key.items() <= line.items():
            return line
    print(kind, json.dumps(settings, ensure_ascii=False), flush=True)
    line = {**key, "machine": machine(), **run()}
    with output.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, ensure_ascii=False) + "\n")
    return line


def lines(path):
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def place():
    """Backend and device, which tell measurements apart."""
    return {"backend": keras.backend.backend(), "device": device()[0]}


@functools.cache
def machine():
    """Processor, GPU and versions."""
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


@functools.cache
def device():
    """`("cpu", None)`, or `"gpu"` and its name."""
    backend, name = keras.backend.backend(), None
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


def memory(field):
    """Memory of this process in MiB, on Linux: "VmRSS", or "VmHWM" for its peak."""
    status = pathlib.Path("/proc/self/status").read_text()
    [line] = [line for line in status.splitlines() if line.startswith(field)]
    return int(line.split()[1]) / 1024


def forget_peak():
    """Lets the peak of the memory begin anew."""
    pathlib.Path("/proc/self/clear_refs").write_text("5")


class Clock:
    """Seconds of the wall clock and of the CPU since it was made, without pauses."""

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


def timed(times, part, run, *arguments):
    """The result of a function, whose time becomes the next one in `times[part]`."""
    clock = Clock()
    result = run(*arguments)
    times.setdefault(part, []).append(clock.read())
    return result


def medians(readings):
    """Two cells: the medians of the seconds and of the CPU seconds."""
    return seconds(np.median(readings, axis=0))


def ratios(readings, per):
    """Two cells: the medians of the readings over those of the same turns in `per`."""
    if not per:
        return "–", "–"
    turns = [np.divide(mine, its) for mine, its in zip(readings, per, strict=False)]
    return [f"{ratio:.2f}" for ratio in np.median(turns, axis=0)]


def seconds(reading):
    """Two cells: one reading."""
    return [f"{value:.3g} s" for value in reading]
