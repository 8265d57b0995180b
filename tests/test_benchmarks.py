"""The benchmarks' own mathematics, and their measurements at sizes of no interest."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from backend import value_and_gradient

import keras_powerlaw as kp
from benchmarks import __main__ as benchmarks
from benchmarks import networks, robustness, schedules, zoo
from benchmarks.measuring import Clock

STORED = Path(__file__).parents[1] / "docs" / "benchmarks" / "measurements.jsonl"


def test_literal_penalty_is_the_package_s():
    rng = np.random.default_rng(0)
    activity = 1 + rng.normal(size=(60, 20)) * np.arange(1, 21) ** -0.7
    settings = {"alpha": 1.2, "tau": 4, "beta": 3.0}
    exact = kp.SpectralActivityRegularizer(**settings, form="paper", exact=True)
    _, basis = np.linalg.eigh(np.cov(activity, rowvar=False))
    basis = basis[:, ::-1].astype("float32").copy()

    def literal(activity):
        return networks.literal_penalty(activity, basis, **settings)

    value, gradient = value_and_gradient(exact.penalty, activity)
    literal_value, literal_gradient = value_and_gradient(literal, activity)
    assert value > 0.1
    assert literal_value == pytest.approx(value, rel=1e-5)
    scale = np.abs(gradient).max()
    np.testing.assert_allclose(
        literal_gradient / scale, gradient / scale, rtol=1e-4, atol=1e-4
    )


@pytest.fixture
def tiny(tmp_path):
    """Arguments of `python -m benchmarks`, and a data set for it."""
    rng = np.random.default_rng(0)
    x, y = rng.integers(256, size=(80, 28, 28)).astype("uint8"), np.arange(80) % 10
    np.savez(tmp_path / "mnist.npz", x_train=x, y_train=y, x_test=x[:20], y_test=y[:20])
    return [
        *("--data", str(tmp_path / "mnist.npz"), "--output", str(tmp_path / "lines")),
        *("--sizes", "30x20", "--width", "30", "--rounds", "2"),
        *("--attacked", "10", "--stimuli", "60", "--units", "90"),
    ]


def measured(arguments, tmp_path, *kinds):
    benchmarks.main([*arguments, "--measure", *kinds])
    lines = (tmp_path / "lines").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_measurements_are_not_repeated(tiny, tmp_path, capsys):
    step, window = measured(tiny, tmp_path, "step", "window")
    assert list(step["times"]) == ["plain", "regularized", "exact", "literal"]
    assert np.all(np.array(list(step["times"].values())) > 0)
    assert list(window["times"]) == ["refresh", "products", "decomposition"]
    assert np.shape(list(window["times"].values())) == (3, 2, 2)  # rounds, clocks
    printed = capsys.readouterr().out
    assert "| 30 | 20 | literal |" in printed and "| 30 | 75 | both parts |" in printed

    assert len(measured(tiny, tmp_path, "step")) == 2
    assert len(measured([*tiny, "--rounds", "1"], tmp_path, "step")) == 3


def test_forms_whose_steps_take_too_long_are_left_out(tiny, tmp_path, capsys):
    arguments = [*tiny, "--forms", "plain", "exact", "--limit", "0"]
    [result] = measured(arguments, tmp_path, "step")
    assert not result["times"] and list(result["left_out"]) == ["plain", "exact"]
    printed = capsys.readouterr().out
    assert "| 30 | 20 | exact | left out: the first step took" in printed


@pytest.mark.slow
def test_recordings_and_flags(tiny, tmp_path, monkeypatch):
    small = {**robustness.NETWORKS["plain"], "width": 20, "epochs": 1}
    monkeypatch.setattr(robustness, "NETWORKS", {"plain": small})
    repeats, flags = measured([*tiny, "--strong", "10"], tmp_path, "repeats", "flags")
    assert len(repeats["cvPCA"]) == len(repeats["PCA"]) == 3
    assert flags["images"] == 10 and len(flags["worst_case"]) == 7


@pytest.mark.parametrize("name", zoo.NETWORKS)
def test_networks_of_the_zoo_carry_the_penalty(name):
    network = zoo.NETWORKS[name]
    shape = (32, 32, 3) if network.data == "templates" else (28, 28, 1)
    regularizer = kp.SpectralActivityRegularizer()
    model = zoo.compiled(network, regularizer, shape, 10)
    assert model.get_layer("hidden").activity_regularizer is not None
    assert zoo.compiled(network, None, shape, 10).count_params() == model.count_params()


@pytest.mark.slow
def test_zoo(tmp_path, capsys, monkeypatch):
    short = dataclasses.replace(zoo.NETWORKS["digits"], epochs=3, images=400)
    monkeypatch.setitem(zoo.NETWORKS, "digits", short)
    arguments = [
        *("--networks", "digits", "--penalties", "none", "nearest"),
        *("--attacked", "10", "--output", str(tmp_path / "lines")),
    ]
    measured(arguments, tmp_path, "zoo")
    measured([*arguments, "--settings", "beta=2"], tmp_path, "zoo")
    plain, penalized, other = capsys.readouterr().out.splitlines()[-3:]
    assert plain.startswith("| digits | none | 1 |")
    assert penalized.startswith("| digits | nearest | 1 |")
    assert other.startswith("| digits | nearest beta=2 | 1 |")


@pytest.mark.slow
def test_spectra(tiny, tmp_path, capsys, monkeypatch):
    for name, refresh in ("paper", {"every_epochs": 1}), ("fast", {"every_steps": 3}):
        small = {"batch_size": 20, "epochs": 2, "refresh": refresh}
        schedule = {**schedules.SCHEDULES[name], **small}
        monkeypatch.setitem(schedules.SCHEDULES, name, schedule)
    monkeypatch.setattr("benchmarks.spectra.NEAR", np.inf)  # looks at every refresh
    figure = tmp_path / "spectra.png"
    arguments = [*tiny, "--schedules", "paper", "fast", "--draw", str(figure)]
    results = measured(arguments, tmp_path, "spectrum")
    epochs = {
        r["settings"]["name"]: [found["epochs"] for found in r["candidates"]]
        for r in results
    }
    assert epochs == {
        "plain-20-0.001-2": [2],
        "paper": [0, 1, 2],
        "plain-20-0.007-2": [2],
        "fast": [0, 0.75, 1.5, 2],
    }
    fast = results[-1]
    assert len(fast["plain_accuracy"]) == 2 and fast["units"] == 30
    assert fast["robustness"]["epsilons"] == [0.05, 0.1]
    assert figure.stat().st_size > 10_000
    assert "| 30 | paper | 1 | 2 |" in capsys.readouterr().out


def test_stored_measurements_make_the_page_s_tables(capsys):
    benchmarks.main(["--output", str(STORED)])
    printed = capsys.readouterr().out
    page = (STORED.parents[1] / "benchmarks.md").read_text("utf-8")
    # Rows of the zoo: without the times and, on the page, each network named once.
    zoo = printed.partition("\nzoo, ")[2].partition("\nrepeats, ")[0]
    rows = [line.split(" | ") for line in zoo.splitlines() if " PGD " not in line]
    cells = [" | ".join(row[1:10]) for row in rows if len(row) > 10]
    assert len(cells) == 87
    assert [row for row in cells if f"| {row} |" not in page] == []


def test_clock_pauses(monkeypatch):
    now = iter([0, 10, 15, 22])
    monkeypatch.setattr(
        Clock, "_now", lambda self: np.array([next(now)] * 2, "float64")
    )
    clock = Clock()
    with clock.paused():  # from 10 to 15
        pass
    assert clock.read() == [17, 17]
