"""Files that version 0.1 wrote, before its modules were moved, are still read.

`tests/saved/model.keras` has two spectral penalties, a whitening layer and a Jacobian
penalty; Keras 3.12 wrote it, on TensorFlow. The report is of an evaluation of it.
"""

import json
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_powerlaw as kp

SAVED = Path(__file__).parent / "saved"


@pytest.fixture(scope="module")
def model():
    return keras.saving.load_model(SAVED / "model.keras")


@pytest.fixture(scope="module")
def data():
    with np.load(SAVED / "data.npz") as arrays:
        return dict(arrays)


def test_a_model_predicts_and_trains(model, data):
    np.testing.assert_allclose(
        model.predict(data["x"], verbose=0), data["logits"], rtol=1e-4, atol=1e-5
    )
    assert (model.beta, model.projections) == (0.1, 2)
    first, second = (
        model.get_layer(name).activity_regularizer.get_config()
        for name in ("map", "hidden")
    )
    assert (first["tau"], first["reduction"]) == (2, "channels")
    assert first["form"] == "paper"  # the only one when it was written, but "log"
    assert (second["alpha"], second["beta"], second["form"]) == (1.5, 2.0, "log")
    clone = keras.saving.load_model(SAVED / "model.keras")
    refresh = kp.EigenbasisRefresh(data["x"])
    history = clone.fit(data["x"], data["y"], verbose=0, callbacks=[refresh]).history
    assert np.isfinite(history["loss"]).all()
    assert set(refresh.spectra) == {"map", "hidden"}


def test_a_report_is_read():
    text = (SAVED / "report.json").read_text(encoding="utf-8")
    report = kp.RobustnessReport.from_json(text)
    saved = json.loads(text)["correct"]
    assert list(report.correct) == list(saved)
    for name, rows in saved.items():
        expected = [[symbol == "1" for symbol in row] for row in rows]
        np.testing.assert_array_equal(report.correct[name], expected)
