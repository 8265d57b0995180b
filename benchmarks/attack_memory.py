"""What attacks leave in memory, and how much they take at most. On Linux only."""

import gc

import keras

import keras_powerlaw as kp
from benchmarks.machine import forget_peak, memory
from benchmarks.sweeps import BATCH, cleverhans
from examples.experiments.presets import EPSILONS


def kept_memory(by, x, y):
    """Resident memory in MiB after each of six models, attacked and deleted."""
    resident = []
    for _ in range(6):
        model = keras.Sequential(
            [
                keras.Input(x.shape[1:]),
                keras.layers.Flatten(),
                keras.layers.Dense(6000, activation="tanh"),
                keras.layers.Dense(900),
                keras.layers.Dense(10),
            ]
        )
        if by == "cleverhans":
            cleverhans(model, x, y)
        else:
            kp.evaluate_robustness(model, x, y, EPSILONS, ["pgd"], verbose=0)
        del model
        keras.utils.clear_session()
        gc.collect()
        resident.append(round(memory("VmRSS"), 1))
    return {"images": len(x), "resident_mib": resident}


def peak_memory(model, x, y):
    """Resident memory of this process, in MiB: before an evaluation, and its peak."""

    def evaluate(x, y):
        kp.evaluate_robustness(
            model,
            x,
            y,
            [0.05, 0.1],
            ["fgsm", "pgd", "noise", "uniform_noise", "pgd_ce", "pgd_dlr"],
            pgd_steps=10,
            restarts=2,
            verbose=0,
        )

    evaluate(x[:BATCH], y[:BATCH])  # compiles
    gc.collect()
    forget_peak()
    before = memory("VmRSS")
    evaluate(x, y)
    return {
        "images": len(x),
        "input_mib": round(x.nbytes / 2**20, 1),
        "before_mib": round(before, 1),
        "peak_mib": round(memory("VmHWM"), 1),
    }
