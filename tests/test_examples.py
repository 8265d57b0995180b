"""The example scripts, run as a user runs them but smaller."""

import subprocess
import sys
from pathlib import Path

import feature_maps
import numpy as np
import pytest
import quickstart
import resnet
import sensitivity
import whitening

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def folder(tmp_path):
    """With noise in the shape of MNIST."""
    rng = np.random.default_rng(0)
    x, y = rng.integers(256, size=(90, 28, 28)).astype("uint8"), np.arange(90) % 10
    parts = {"x_train": x, "y_train": y, "x_test": x[:20], "y_test": y[:20]}
    np.savez(tmp_path / "mnist.npz", **parts)
    return str(tmp_path)


def test_scripts_run_from_any_folder(tmp_path):
    for script in sorted(EXAMPLES.glob("[a-z]*.py")):
        command = [sys.executable, script, "--help"]
        done = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
        assert b"usage" in done.stdout


def test_unknown_arguments_are_named(capsys):
    with pytest.raises(SystemExit):
        quickstart.main(["--epoch-count", "2"])
    assert "--epoch-count" in capsys.readouterr().err


def test_quickstart(tmp_path, capsys):
    quickstart.main(["--epochs", "2", "--seeds", "0", "1", "--output", str(tmp_path)])
    printed = capsys.readouterr().out
    rows = printed.split("plain\n")[1].splitlines()
    assert rows[1::2][:2] == ["plain, best epoch", "1/n"]
    assert all(row.count("±") == 6 for row in rows[:5:2])
    for name in ("spectrum.png", "robustness.png"):
        assert (tmp_path / name).stat().st_size > 10_000


def test_images_kept_out_of_the_quickstart_are_no_others():
    parts = quickstart.load()
    images = np.concatenate([x.reshape(len(x), -1) for x, _ in parts])
    assert [len(x) for x, _ in parts] == [1199, 239, 359]
    assert len(np.unique(images, axis=0)) == len(images)


@pytest.mark.slow
def test_stage_of_an_application(capsys):
    # VGG16, since ResNet50 takes long to compile.
    arguments = "--application VGG16 --layer block2_pool --size 32 --images 6"
    arguments += " --epochs 3 --batch-size 6 --reduction channels"
    before, after = resnet.main(arguments.split())
    assert len(before.eigenvalues) == len(after.eigenvalues) == 128
    assert not np.array_equal(before.eigenvalues, after.eigenvalues)
    printed = capsys.readouterr().out
    assert "loss: " in printed and "peak of the memory" in printed


@pytest.mark.slow
def test_feature_maps(folder):
    exponents = feature_maps.main(["--data-dir", folder, "--epochs", "2"])
    assert list(exponents) == [None, "flatten", "channels", "mean"]
    plain, *others = exponents.values()
    for row in others:  # trained, each its own way
        assert all(np.isfinite(list(row.values()))) and row != plain


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The spectral penalty has not begun")
def test_sensitivity(folder, tmp_path):
    path = tmp_path / "maps.png"
    arguments = ["--data-dir", folder, "--width", "20", "--epochs", "1"]
    sensitivity.main([*arguments, "--output", str(path)])
    assert path.stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The spectral penalty has not begun")
def test_whitening(folder, capsys):
    arguments = ["--data-dir", folder, "--width", "20", "--epochs", "2"]
    rows = whitening.main(arguments)
    names = ["moving averages", "tested batch", "refreshed"]
    assert [statistics for _, statistics, _ in rows] == 2 * names
    smallest = [variance for *_, variance in rows]
    assert smallest[2] > max(0.9, smallest[0]) and smallest[5] > max(0.9, smallest[3])
    assert "% correct, variances" in capsys.readouterr().out
