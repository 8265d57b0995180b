"""The benchmarks' own mathematics, and their runners at sizes of no interest."""

import dataclasses
import json

import keras
import numpy as np
import pytest
from backend import BACKEND, value_and_gradient

import keras_powerlaw as kp
from benchmarks import (
    cost,
    recordings,
    robustness,
    schedules,
    speed,
    trained_networks,
    trainings,
    whitening,
    zoo,
)
from benchmarks.clock import Clock
from benchmarks.forms import shallow
from benchmarks.literal import LiteralRegularizer


@pytest.mark.parametrize("unrolled", [False, True])
def test_literal_penalty_is_the_package_s(unrolled):
    rng = np.random.default_rng(0)
    activity = 1 + rng.normal(size=(60, 20)) * np.arange(1, 21) ** -0.7
    basis, _ = np.linalg.qr(rng.normal(size=(20, 20)))
    settings = {"alpha": 1.2, "tau": 4, "beta": 3.0}
    ours = kp.SpectralActivityRegularizer(**settings, form="paper")
    literal = LiteralRegularizer(**settings, unrolled=unrolled)
    results = []
    for regularizer in (ours, literal):
        regularizer.eigenbasis.renew(basis)
        results.append(value_and_gradient(regularizer.penalty, activity))
    (value, gradient), (literal_value, literal_gradient) = results
    assert value > 1
    assert literal_value == pytest.approx(value, rel=1e-5)
    scale = np.abs(gradient).max()
    np.testing.assert_allclose(
        literal_gradient / scale, gradient / scale, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("form", ["literal", "literal-unrolled"])
def test_literal_penalty_trains_as_the_package_s(digits, form):
    """Compiled within `fit()`, the last batch smaller."""
    (x, y), _ = digits
    x, y = np.pad(x[:96], ((0, 0), (10, 10), (10, 10), (0, 0))), y[:96]
    losses = []
    for each in ("regularized", form):
        keras.utils.set_random_seed(0)
        model = shallow(each, 15)
        refresh = kp.EigenbasisRefresh(x)
        history = model.fit(
            x, y, batch_size=40, epochs=2, callbacks=[refresh], verbose=0
        )
        losses.append(history.history["loss"])
    np.testing.assert_allclose(*losses, rtol=1e-4)


@pytest.fixture
def tiny(tmp_path):
    """Arguments of `speed.py`, and a data set for it."""
    rng = np.random.default_rng(0)
    x, y = (
        rng.integers(256, size=(80, 28, 28)).astype("uint8"),
        rng.integers(10, size=80),
    )
    np.savez(tmp_path / "mnist.npz", x_train=x, y_train=y, x_test=x[:20], y_test=y[:20])
    return [
        *("--data", str(tmp_path / "mnist.npz"), "--output", str(tmp_path / "output")),
        *("--sizes", "30x20", "--width", "30", "--batch", "20", "--rounds", "2"),
        *("--attacked", "10"),
    ]


def results_in(folder):
    return {
        path.stem.split("-", 3)[3]: json.loads(path.read_text())
        for path in (folder / "output").glob("speed-*.json")
    }


def test_speed_of_steps_and_refreshes(tiny, tmp_path, capsys):
    speed.main([*tiny, "--measure", "step", "refresh"])
    results = results_in(tmp_path)
    times = results["step-30x20"]["times"]
    assert list(times) == ["plain", "regularized", "exact", "literal"]
    assert np.all(np.array(list(times.values())) > 0)
    parts = results["refresh-30-80"]["times"]
    assert list(parts) == ["refresh", "forward", "products", "decomposition"]
    assert np.shape(list(parts.values())) == (4, 2, 2)  # rounds, clocks
    printed = capsys.readouterr().out
    assert "| 30 | 20 | literal |" in printed and "| 30 | 80 | all parts |" in printed

    speed.main([*tiny, "--measure", "step"])
    assert "turn" not in capsys.readouterr().out
    assert results_in(tmp_path) == results
    with pytest.raises(SystemExit, match="other settings"):
        speed.main([*tiny, "--measure", "step", "--rounds", "3"])


def test_refreshes_from_the_training(tiny, tmp_path, capsys):
    speed.main([*tiny, "--measure", "window"])
    [result] = results_in(tmp_path).values()
    assert list(result["times"]) == ["refresh", "products", "decomposition"]
    assert np.shape(list(result["times"].values())) == (3, 2, 2)
    assert result["samples"] >= 60
    assert "| 30 | " in capsys.readouterr().out


def test_recordings(tmp_path, capsys):
    output = str(tmp_path / "output")
    options = ["--output", output, "--measure", "repeats", "wide", "definitions"]
    options += ["--stimuli", "60", "--units", "90", "--sizes", "90x60x8"]
    recordings.main([*options, "--epochs", "1"])
    results = results_in(tmp_path)
    [repeats, wide, definitions] = (
        next(result for name, result in results.items() if name.startswith(kind))
        for kind in ("repeats", "wide", "definitions")
    )
    assert len(repeats["cvPCA"]) == len(repeats["PCA"]) == 3
    assert wide["error"] < 1e-3
    for found in (definitions["tanh"], definitions["relu"]):
        assert found["rank_me"] < found["rank_me_centered"]
        assert found["effective_rank"] == pytest.approx(
            found["rank_me_centered"], rel=1e-2
        )
    assert "cvPCA" in capsys.readouterr().out


def test_definitions_of_others_on_a_power_law():
    """Without noise and mean there is nothing in which they could differ."""
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(300, 100))
    scores, _ = np.linalg.qr(scores - scores.mean(axis=0))
    activations = scores * np.arange(1, 101) ** -0.6
    spectrum = kp.Spectrum.from_samples(activations, fit_range=(11, 100))
    assert spectrum.exponent == pytest.approx(1.2)
    assert recordings.alpha_req(activations, 11, 100) == pytest.approx(1.2)
    assert recordings.rank_me(activations, epsilon=0) == pytest.approx(
        spectrum.effective_rank
    )
    # A mean is a direction more to RankMe, and no variance.
    moved = activations + 1.0
    assert recordings.rank_me(moved) < spectrum.effective_rank / 2


def test_forms_whose_steps_take_too_long_are_left_out(tiny, tmp_path, capsys):
    arguments = [*tiny, "--measure", "step", "--forms", "plain", "exact"]
    speed.main([*arguments, "--limit", "0"])
    assert (
        "| 30 | 20 | exact | left out: the first step took" in capsys.readouterr().out
    )
    [result] = results_in(tmp_path).values()
    assert not result["times"] and list(result["left_out"]) == ["plain", "exact"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The spectral penalty never acted")
def test_epochs_of_a_cnn(tiny, tmp_path, capsys):
    speed.main([*tiny, "--measure", "epoch"])
    [result] = results_in(tmp_path).values()
    assert np.shape(list(result["times"].values())) == (3, 2, 2)
    if BACKEND == "tensorflow":
        read = result["read"]
        assert read["plain"] == read["training steps"] == 80 < read["data"]
    assert "| 80 | training steps |" in capsys.readouterr().out


def test_memory_of_a_process(tiny, tmp_path, capsys):
    speed.main([*tiny, "--measure", "memory", "--forms", "literal"])
    [result] = results_in(tmp_path).values()
    assert result["peak_mib"] >= result["before_mib"] > 50
    assert "| 30 | 20 | literal |" in capsys.readouterr().out


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
        *("--networks", "digits", "--forms", "none", "nearest"),
        *("--attacked", "10", "--output", str(tmp_path)),
    ]
    zoo.main(arguments)
    zoo.main([*arguments, "--settings", "beta=2"])
    printed = capsys.readouterr().out
    plain, penalized, other = printed.splitlines()[-3:]
    assert plain.startswith("| digits | none | 1 |")
    assert penalized.startswith("| digits | nearest | 1 |")
    assert other.startswith("| digits | nearest beta=2 | 1 |")


@pytest.mark.slow
def test_schedules(tiny, tmp_path, capsys, monkeypatch):
    for name, refresh in ("literal", {}), ("fast", {"every_steps": 3}):
        small = {"batch_size": 20, "epochs": 2, "refresh": refresh}
        schedule = {**schedules.SCHEDULES[name], **small}
        monkeypatch.setitem(schedules.SCHEDULES, name, schedule)
    monkeypatch.setattr(schedules, "NEAR", np.inf)  # measures at every refresh
    speed.main(
        [
            *(*tiny, "--measure", "spectrum", "--schedules", "literal", "fast"),
            *("--draw", str(tmp_path / "spectra.png")),
        ]
    )
    results = results_in(tmp_path)
    epochs = {
        name.split("-")[2]: [found["epochs"] for found in result["candidates"]]
        for name, result in results.items()
    }
    assert epochs == {
        "plain": [2],
        "literal": [0, 1, 2],
        "fast": [0, 0.75, 1.5, 2],
    }
    literal = results["spectrum-30-literal-seed0"]
    assert len(literal["plain_accuracy"]) == 2
    assert literal["robustness"]["epsilons"] == [0.05, 0.1]
    assert len(literal["eigenvalues"]) == 30
    assert (tmp_path / "spectra.png").stat().st_size > 10_000
    assert "| 30 | literal | 1 | 2 |" in capsys.readouterr().out


def test_training_stops_where_exponent_and_accuracy_are_reached(
    tiny, tmp_path, monkeypatch
):
    small = {"batch_size": 20, "epochs": 3, "refresh": {}, "stop": 0.3}
    schedule = {**schedules.SCHEDULES["fast"], **small}
    monkeypatch.setitem(schedules.SCHEDULES, "fast", schedule)
    monkeypatch.setattr(schedules, "NEAR", np.inf)
    monkeypatch.setattr(schedules, "TOLERANCE", np.inf)
    # Not before the first step, when nothing has been learnt.
    monkeypatch.setattr(
        trainings, "accuracy", lambda model, x, y: float(model.optimizer.iterations > 0)
    )
    speed.main([*tiny, "--measure", "spectrum", "--schedules", "fast"])
    fast = results_in(tmp_path)["spectrum-30-fast-seed0"]
    # Keras takes one step more.
    assert [found["epochs"] for found in fast["candidates"]] == [0, 1, 1.25]
    assert schedules.time_to(fast, below=0.01) == fast["candidates"][1]["clock"]


def test_sweeps(tiny, tmp_path, monkeypatch, capsys):
    small = {"width": 20, "epochs": 1}
    for name, settings in trained_networks.NETWORKS.items():
        monkeypatch.setitem(trained_networks.NETWORKS, name, {**settings, **small})
    output = tmp_path / "output"
    arguments = [
        *("--cache", str(tmp_path / "cache"), "--output", str(output)),
        *("--data-dir", str(tmp_path / "mnist.npz"), "--networks", "regularized"),
        *("--images", "10", "--flagged", "0", "--memory", "--sweeps", "pgd_ce"),
    ]
    robustness.main(arguments)
    assert "| regularized | 10 | pgd_ce |" in capsys.readouterr().out
    [path] = output.iterdir()
    assert path.name == "robustness-regularized-pgd_ce-10.json"
    result = json.loads(path.read_text())
    assert result["seconds"] > 0 and len(result["accuracy"]) == 7

    path.unlink()  # attacks the network from the cache
    robustness.main(arguments)
    assert json.loads(path.read_text())["accuracy"] == result["accuracy"]
    capsys.readouterr()
    robustness.main(arguments)
    assert "seconds" not in capsys.readouterr().out.partition("|")[0]


def test_cost_of_a_step_on_gpus(capsys):
    cost.main(["--gpus"])
    assert "| 1024 | float32 | 1 |" in capsys.readouterr().out


def test_clock_pauses(monkeypatch):
    now = iter([0, 10, 15, 22])
    monkeypatch.setattr(
        Clock, "_now", lambda self: np.array([next(now)] * 2, "float64")
    )
    clock = Clock()
    with clock.paused():  # from 10 to 15
        pass
    assert clock.read() == [17, 17]


def test_whitening(capsys):
    whitening.main(["--preset", "smoke", "--epochs", "2"])
    table = [line.split(" | ") for line in capsys.readouterr().out.splitlines()]
    assert [row[1] for row in table[2:]] == [
        *("moving averages", "tested batch", "refreshed"),
        *("moving averages", "tested batch", "refreshed"),
    ]
    accuracies = [float(row[2].rstrip("%")) for row in table[2:]]
    assert accuracies[2] > accuracies[0] and accuracies[5] > accuracies[3]
