"""Writes what one backend makes of given weights; see test_across_backends.py.

Usage: KERAS_BACKEND=... across_backends.py DIRECTORY
"""

import sys
from pathlib import Path

import keras
import numpy as np
from backend import BACKEND, to_numpy, value_and_gradient
from models import compiled, hidden, network
from problems import attacked

import keras_powerlaw as kp
from keras_powerlaw.robustness.attacks.gradient import Fgsm, Pgd

EPSILONS = [0.05, 0.1]


def compiled_model(whitened=True):
    regularizer = kp.SpectralActivityRegularizer(alpha=1.2, tau=3, beta=2.0)
    model = network(
        hidden(24, regularizer),
        *([kp.WhiteningLayer(name="white")] if whitened else []),
        shape=(16,),
    )
    return compiled(model, keras.optimizers.SGD(0.05))


def results(directory):
    """The same computations on every backend, as NumPy arrays by name."""
    with np.load(directory / "given.npz") as given:
        x, y = given["x"], given["y"]
        weights = [given[f"weight{i}"] for i in range(7)]
    model = compiled_model()
    model.set_weights(weights)
    found = {}
    refresh = kp.EigenbasisRefresh(x)
    history = model.fit(
        x, y, batch_size=50, epochs=3, shuffle=False, verbose=0, callbacks=[refresh]
    ).history
    found["losses"], found["exponents"] = history["loss"], history["hidden_exponent"]

    model.set_weights(weights)
    found["eigenvalues"] = kp.measure_spectrum(model, x, "hidden").eigenvalues
    kp.refresh_eigenbasis(model, x)
    hidden = model.get_layer("hidden")
    activity = to_numpy(hidden(x))
    penalty = hidden.activity_regularizer.penalty
    found["penalty"], found["gradient"] = value_and_gradient(penalty, activity)
    exact = kp.SpectralActivityRegularizer(tau=3, exact=True)
    found["exact"], found["exact_gradient"] = value_and_gradient(
        exact.penalty, activity
    )
    found["white"] = to_numpy(kp.WhiteningLayer()(activity, training=True))
    found["logits"] = to_numpy(model(x))
    classifier, data = attacked(model, x, y)
    for attack in (Fgsm(), Pgd(pgd_steps=20)):
        for epsilon in EPSILONS:
            perturbed = attack.perturb(classifier, data, epsilon)
            found[f"{attack.name} {epsilon}"] = to_numpy(perturbed)
    report = kp.evaluate_robustness(model, x, y, EPSILONS, pgd_steps=20)
    for name, correct in report.correct.items():
        found[f"correct {name}"] = correct
    return model, found


if __name__ == "__main__":
    directory = Path(sys.argv[1])
    model, found = results(directory)
    np.savez(directory / f"{BACKEND}.npz", **found)
    model.save(directory / f"{BACKEND}.keras")
    model.save_weights(directory / f"{BACKEND}.weights.h5")
