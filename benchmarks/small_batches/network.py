"""One layer of 200 units, trained on MNIST with the penalty at three batch sizes."""

import keras
import numpy as np

import keras_powerlaw as kp
from examples.experiments import data
from examples.experiments.networks import compile_classifier

SHOWN = (11, 20, 40, 80, 150, 200)


def network_table(width=200, tau=10, images=30000):
    """λₙ/γₙ beyond τ, of the spectrum over all images after training."""
    yield "B", "steps", "exponent", f"n = {SHOWN[0]}", *SHOWN[1:]
    (x, y), _ = data.load("mnist")
    x, y = x[:images], y[:images]
    for batch, steps in ((64, 3000), (500, 3000), (3000, 1500)):
        keras.utils.set_random_seed(0)
        model = keras.Sequential(
            [
                keras.Input(x.shape[1:]),
                keras.layers.Flatten(),
                keras.layers.Dense(width, activation="tanh"),
                keras.layers.BatchNormalization(
                    activity_regularizer=kp.SpectralActivityRegularizer(
                        tau=tau, beta=5.0, form="paper"
                    ),
                    name="hidden",
                ),
                keras.layers.Dense(10),
            ]
        )
        compile_classifier(model, keras.optimizers.schedules.CosineDecay(1e-3, steps))
        refresh = kp.EigenbasisRefresh(x, every_steps=25, max_samples=20 * width)
        epochs = steps * batch // images
        model.fit(x, y, batch, epochs, verbose=0, callbacks=[refresh])
        spectrum = kp.measure_spectrum(
            model, x, "hidden", fit_range=(tau + 1, width), verbose=0
        )
        n = np.arange(1, width + 1)
        ratios = spectrum.eigenvalues / spectrum.eigenvalues[tau - 1] * n / tau
        shown = (f"{ratios[k - 1]:.2f}" for k in SHOWN)
        yield batch, steps, f"{spectrum.exponent:.2f}", *shown
