"""Files that version 0.1 wrote, before its modules were moved, are still read.

`tests/saved/model.keras` has two spectral penalties, a whitening layer and a Jacobian
penalty; Keras 3.12 wrote it, on TensorFlow. The checkpoints are of an evaluation of
that model, one of them interrupted.
"""

import json
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_powerlaw as kp

SAVED = Path(__file__).parent / "saved"
ATTACKS = ["pgd_dlr", "noise", "pgd_ce", "fgsm"]


@pytest.fixture(scope="module")
def model():
    return keras.saving.load_model(SAVED / "model.keras")


@pytest.fixture(scope="module")
def data():
    with np.load(SAVED / "data.npz") as arrays:
        return dict(arrays)


def evaluate(model, data, checkpoint):
    options = {"pgd_steps": 5, "noise_draws": 2, "verbose": 0}
    return kp.evaluate_robustness(
        *(model, data["x"], data["y"], [0.0, 0.1, 0.3], ATTACKS),
        **{"checkpoint": checkpoint, **options},
    )


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


def test_a_finished_checkpoint_is_the_report(model, data, tmp_path):
    path = shutil.copy(SAVED / "finished.json", tmp_path)
    text = Path(path).read_text(encoding="utf-8")
    report = kp.RobustnessReport.from_json(text)
    assert evaluate(model, data, path) == report
    state = json.loads(text)
    state.pop("evaluation")
    assert json.loads(report.to_json()) == state


def test_an_unfinished_checkpoint_is_finished(model, data, tmp_path):
    path = Path(shutil.copy(SAVED / "unfinished.json", tmp_path))
    before = json.loads(path.read_text(encoding="utf-8"))["correct"]
    assert 0 < sum(len(rows) for rows in before.values()) < 3 * len(ATTACKS)
    report = evaluate(model, data, path)
    after = json.loads(path.read_text(encoding="utf-8"))["correct"]
    for name, rows in before.items():
        assert after[name][: len(rows)] == rows
        assert len(after[name]) == len(report.correct[name]) == 3
