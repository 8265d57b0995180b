"""What a measurement ran on, and how much memory the process takes there."""

import importlib
import os
import pathlib
import platform

import keras
import numpy as np
import scipy

import keras_powerlaw as kp


def machine():
    """Processor, GPU and versions, as a measurement's file keeps them."""
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


def device():
    """`("cpu", None)`, or `"gpu"` and its name."""
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


def memory(field):
    """Memory of this process in MiB; on Linux only.

    Args:
        field: `"VmRSS"` for what is resident now, `"VmHWM"` for the peak of that.
    """
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    [line] = [line for line in lines if line.startswith(field)]
    return int(line.split()[1]) / 1024


def forget_peak():
    """Lets the peak of the memory begin anew."""
    pathlib.Path("/proc/self/clear_refs").write_text("5")


def device_peak():
    """Peak of the memory taken on a GPU in MiB, or None where there is none."""
    backend = keras.backend.backend()
    if device()[0] == "cpu":
        return None
    if backend == "jax":
        import jax

        peak = jax.devices()[0].memory_stats()["peak_bytes_in_use"]
    elif backend == "torch":
        import torch

        peak = torch.cuda.max_memory_allocated()
    else:
        import tensorflow as tf

        peak = tf.config.experimental.get_memory_info("GPU:0")["peak"]
    return peak / 2**20
