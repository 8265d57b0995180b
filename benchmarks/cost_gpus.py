"""The cost of a step and a refresh on GPUs, predicted from data sheets."""

from benchmarks.cost_counts import refresh_bytes, refresh_work, step_work
from examples.experiments.table import print_rows

TAU = 10
# NVIDIA H100 SXM, data sheet, dense: operations and bytes per second. Half of it is
# assumed to be reached. The host's rates are those measured on one core, see
# docs/cost.md.
EFFICIENCY = 0.5
GPU = {"float32": 67e12, "TF32": 495e12}
GPU_BYTES, LINK_BYTES, LATENCY = 3.35e12, 450e9, 30e-6
HOST = {"gram": 48e9, "eigenvectors": 62e9}


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
    """Prints a refresh on the host, and a table of steps."""
    _, gram, eigenvectors = refresh_work(samples, width, width)
    host = gram / HOST["gram"], eigenvectors / HOST["eigenvectors"]
    print(f"host, one core: Gram {host[0]:.0f} s, eigenvectors {host[1]:.0f} s")
    print(f"host memory: {refresh_bytes(width) / 1e9:.1f} GB")
    print_rows(gpu_rows(width, sum(host)))


def gpu_rows(width, refresh):
    """Steps without and with the penalty, and how many have to lie between refreshes.

    Args:
        width: N.
        refresh: Seconds of a refresh on one core of the host.
    """
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
                every = 9 * refresh / full
                yield (
                    *(batch, precision, devices, f"{1e3 * plain:.1f}"),
                    *(f"{1e3 * full:.1f}", f"{full / plain:.2f}"),
                    *(f"{every:.0f}", f"{every / 16:.0f}"),
                )
