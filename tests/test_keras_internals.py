"""The guards: another Keras, or another cleverhans, fails early and with a sentence."""

import subprocess
import sys

import keras
import numpy as np
import pytest
from backend import only

import keras_powerlaw as kp


@pytest.mark.parametrize(
    "removed, named",
    [
        ("del keras.layers.Layer._flatten_layers", "Layer._flatten_layers"),
        ("import keras.src.backend as b; del b.get_stateless_scope", "get_stateless"),
    ],
)
def test_another_keras_is_refused_at_import(removed, named):
    code = f"import keras; {removed}; import keras_powerlaw"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    error = result.stderr.strip().splitlines()[-1]
    assert "ImportError: This keras_powerlaw needs Keras 3.12 or newer" in error
    assert named in error


@only("tensorflow", why="nothing is replaced in cleverhans there")
@pytest.mark.parametrize("change", ["no such gradient", "a gradient of its own"])
def test_another_cleverhans_is_refused_before_it_attacks(change, monkeypatch):
    from cleverhans.tf2.attacks import fast_gradient_method as module

    if change == "no such gradient":
        monkeypatch.delattr(module, "compute_gradient")
    else:
        monkeypatch.setattr(module, "fast_gradient_method", lambda model_fn, x: x)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    x, y = np.full((5, 4), 0.5), np.zeros(5, int)
    with pytest.raises(ImportError, match="install cleverhans==4.0.0"):
        kp.evaluate_robustness(model, x, y, [0.1], ["fgsm"])
