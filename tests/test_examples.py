"""The example scripts, run as a user runs them but smaller."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module


def test_quickstart(example, tmp_path, capsys):
    example("quickstart").main(["--epochs", "2", "--output", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "plain" in printed and "regularized" in printed
    for name in ("spectrum.png", "robustness.png"):
        assert (tmp_path / name).stat().st_size > 10_000


@pytest.fixture
def tiny(tmp_path):
    return [
        *("--dataset", "digits", "--width", "40", "--tau", "5", "--epochs", "2"),
        *("--batch-size", "300", "--attacked", "20", "--output", str(tmp_path)),
    ]


def test_shallow_mlp_leaves_results_and_figures(example, tiny, tmp_path, capsys):
    example("shallow_mlp").main([*tiny, "--seeds", "0", "1"])
    runs = sorted(path.stem for path in tmp_path.glob("*.json"))
    assert runs == [
        f"digits-{norm}-beta{beta}-seed{seed}"
        for norm in ("bn", "nobn")
        for beta in (0, 5)
        for seed in (0, 1)
    ]
    assert len(list(tmp_path.glob("*.png"))) == 6
    result = json.loads((tmp_path / "digits-bn-beta5-seed0.json").read_text())
    assert len(result["eigenvalues"]) == 40
    assert len(result["history"]["hidden_exponent"]) == 2
    assert "SpecReg, β = 5" in capsys.readouterr().out


def test_shallow_mlp_does_not_repeat_finished_runs(example, tiny, tmp_path, capsys):
    shallow_mlp = example("shallow_mlp")
    arguments = [*tiny, "--batch-norm", "no"]
    shallow_mlp.main(arguments)
    before = {path: path.read_bytes() for path in tmp_path.glob("*.json")}
    capsys.readouterr()
    shallow_mlp.main(arguments)
    assert "Epoch" not in capsys.readouterr().out
    assert before == {path: path.read_bytes() for path in tmp_path.glob("*.json")}
    with pytest.raises(SystemExit, match="other settings"):
        shallow_mlp.main([*arguments, "--alpha", "2"])


@pytest.mark.mnist
def test_shallow_mlp_flattens_the_spectrum_on_mnist(example, mnist, tmp_path):
    plain, regularized = example("shallow_mlp").main(
        [
            *("--dataset", "mnist", "--batch-norm", "yes", "--width", "200"),
            *("--epochs", "8", "--attacked", "200", "--output", str(tmp_path)),
        ]
    )
    # The digit of an image is not lost, and the exponent is on its way from above.
    assert min(plain["test_accuracy"], regularized["test_accuracy"]) > 0.93
    assert regularized["exponent"] < plain["exponent"] - 0.3
    assert regularized["dimension_90"] > plain["dimension_90"]


@pytest.mark.mnist
def test_data_set_through_tensorflow_datasets(example, mnist):
    (x_train, y_train), (x_test, y_test) = example("example_data").load("mnist")
    assert x_train.shape == (60000, 28, 28, 1) and x_test.shape == (10000, 28, 28, 1)
    assert x_train.dtype == np.float32 and (x_train.min(), x_train.max()) == (0, 1)
    np.testing.assert_array_equal(np.bincount(y_test)[:3], [980, 1135, 1032])
    np.testing.assert_allclose(x_train[:100], mnist[0][0][:100], atol=1e-7)
