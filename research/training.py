"""One run: a network is trained, measured and attacked.

`networks` builds the network; `runs` keeps what `perform` returns.
"""

import time

import keras
import numpy as np

import keras_powerlaw as kp

from .conditions import SPECTRAL, alpha_of
from .data import Reshuffled, choose, keep_out
from .explaining import explain
from .networks import build_model
from .presets import CHOSEN_AT, PAPER_REFRESH
from .table import layer_row, report_row, rounded


def perform(settings, data, report_epoch):
    """Trains and measures one network.

    Args:
        settings: One of those that `settings.select` returns.
        data: `(x_train, y_train), (x_test, y_test)`.
        report_epoch: Called after each epoch with its number, from 0, and its logs.

    Returns:
        A dictionary of what the run's JSON file holds.
    """
    train_data, kept_out = keep_out(data[0], settings.get("kept_out", 0))
    keras.utils.clear_session()
    keras.utils.set_random_seed(settings["seed"])
    model, hidden = build_model(settings, train_data[0].shape[1:], len(train_data[0]))
    condition = settings["condition"]
    if condition.startswith("colored"):
        options = {"target": settings["alpha"], "seed": settings["seed"], "verbose": 0}
        kp.color_weights(model, train_data[0], hidden[-1], **options)
    begin = time.perf_counter()
    history = train(model, settings, *train_data, report_epoch)
    if condition.startswith("whitened") or condition == "constructed":
        kp.refresh_whitening(model, train_data[0], verbose=0)
    trained = time.perf_counter()
    measurements = {}
    if len(kept_out[0]):
        measurements["kept_out"] = on_kept_out(model, *kept_out)
    if settings["attacked"]:
        measurements |= measure(model, hidden, settings, (train_data, data[1]))
    return {
        "settings": settings,
        "keras": keras.version(),
        "backend": keras.backend.backend(),
        "training_seconds": round(trained - begin, 3),
        "measuring_seconds": round(time.perf_counter() - trained, 3),
        "trained_images": len(train_data[0]),
        "reshuffled": True,  # files without it are of `fit()` on arrays
        "whitening_refreshed": True,  # those without, of moving averages
        "history": history,
        **measurements,
    }


def train(model, settings, x, y, report_epoch=None):
    """Trains the model as its settings say. Returns Keras's history."""
    callbacks = [keras.callbacks.LambdaCallback(on_epoch_end=report_epoch)]
    if settings["condition"] in SPECTRAL:
        refresh = {"x": x} | settings.get("refresh", PAPER_REFRESH)
        callbacks.insert(0, kp.EigenbasisRefresh(**refresh, verbose=0))
    return model.fit(
        Reshuffled(x, y, settings["batch_size"], settings["seed"]),
        shuffle=False,  # the whole order, not that of the batches
        epochs=settings["epochs"],
        callbacks=callbacks,
        verbose=0,
    ).history


def on_kept_out(model, x, y):
    """Accuracies by which settings are chosen: clean, and under PGD.

    Both are zero if the training diverged, so that it is compared with the others and
    does not end them.
    """
    if not all(np.isfinite(weights).all() for weights in model.get_weights()):
        return {"images": len(x), "clean": 0.0, "pgd": 0.0}
    report = kp.evaluate_robustness(model, x, y, [CHOSEN_AT], ["pgd"], verbose=0)
    return {
        "images": len(x),
        "clean": report.clean_accuracy,
        "pgd": float(report.accuracy["pgd"][0]),
    }


def measure(model, hidden, settings, data):
    """Accuracy, spectra, robustness and sensitivity of a trained model."""
    (x_train, _), (x_test, y_test) = data
    predicted = model.predict(x_test, batch_size=1000, verbose=0).argmax(axis=1)
    spectra = kp.measure_spectrum(model, x_train, hidden, verbose=0)
    found = {
        "test_accuracy": float(np.mean(predicted == y_test)),
        "layers": {
            name: layer_row(spectrum, alpha_of(settings, index))
            for index, (name, spectrum) in enumerate(spectra.items())
        },
    }
    images = choose(data[1], settings["attacked"])
    report = kp.evaluate_robustness(model, *images, settings["epsilons"], verbose=0)
    found["robustness"] = report_row(report)
    if settings.get("strongly_attacked"):
        fewer = choose(data[1], settings["strongly_attacked"])
        report = kp.evaluate_robustness(model, *fewer, [CHOSEN_AT], "strong", verbose=0)
        found["strong"] = report_row(report)
    if settings.get("explained"):
        found["explanation"] = explain(model, x_train, *images)
    if settings.get("maps", True):
        found["sensitivity"] = maps(model, x_train, hidden[-1], spectra[hidden[-1]])
    return found


def maps(model, x, layer, spectrum):
    """Sensitivity maps of eigenvalues of a layer, eq. (9), summed over all images."""
    components = [n for n in (1, 2, 5, 10, 20, 50, 100, 200) if n <= spectrum.rank]
    found = kp.sensitivity_maps(model, x, layer, components, verbose=0)
    return {
        "components": components,
        "eigenvalues": rounded(found.eigenvalues, 6),
        "total": rounded(found.total, 3),
    }
