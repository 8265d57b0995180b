"""How much memory a refresh takes, and the package's estimate of it. On Linux only.

python -m benchmarks.refresh_memory 2000
python -m benchmarks.refresh_memory 2000 1000 2000 500   # four layers together
"""

import argparse
import gc

import keras
import numpy as np

import keras_powerlaw as kp
from benchmarks.machine import forget_peak, memory
from keras_powerlaw.support.memory import needed_bytes


def layers_of(units):
    model = keras.Sequential([keras.Input((20,))])
    for count in units:
        regularizer = kp.SpectralActivityRegularizer(tau=2)
        model.add(
            keras.layers.Dense(
                count, activation="tanh", activity_regularizer=regularizer
            )
        )
    return model


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("units", type=int, nargs="+", help="of each layer")
    parser.add_argument("--again", action="store_true", help="the second refresh")
    args = parser.parse_args(argv)
    x = np.random.default_rng(0).normal(size=(512, 20)).astype("float32")
    kp.refresh_eigenbasis(layers_of([64]), x)  # loads what the first refresh loads
    model = layers_of(args.units)
    if args.again:
        kp.refresh_eigenbasis(model, x, batch_size=128)
    gc.collect()
    forget_peak()
    before = memory("VmRSS")
    kp.refresh_eigenbasis(model, x, batch_size=128)
    taken, estimate = memory("VmHWM") - before, needed_bytes(args.units) / 2**20
    print(
        f"{keras.backend.backend()}, {args.units} units: {taken:.0f} MiB, "
        f"estimated {estimate:.0f} MiB ({estimate / taken:.2f} of it)"
    )


if __name__ == "__main__":
    main()
