"""Runs are trained, kept and not repeated."""

import json

import keras
import numpy as np
import pytest

from research import train
from research.matching import best_strengths
from research.training import on_kept_out


@pytest.fixture
def tiny(tmp_path):
    return [
        *("--preset", "smoke", "--width", "30", "--epochs", "1"),
        *("--attacked", "10", "--output", str(tmp_path)),
    ]


def figures_in(folder):
    paths = sorted(folder.glob("*/*.png"))
    assert all(path.stat().st_size > 10_000 for path in paths)
    return [path.stem.removeprefix("digits-") for path in paths]


@pytest.mark.slow
def test_finished_runs_are_not_repeated(tiny, tmp_path, capsys):
    arguments = [*tiny, "--architectures", "shallow"]
    results = train.main(arguments)
    names = ["digits-shallow-last-beta5-seed0", "digits-shallow-vanilla-seed0"]
    assert sorted(path.stem for path in tmp_path.glob("*.json")) == names
    assert figures_in(tmp_path) == ["figure2", "figureA6"]
    printed = capsys.readouterr().out
    assert "[2/2]" in printed and "SpecReg, β = 5" in printed

    (tmp_path / f"{names[0]}.json").unlink()
    again = train.main(arguments)
    printed = capsys.readouterr().out
    assert "1 of 2 runs are finished" in printed and "[2/2] " + names[0] in printed
    for result, other in zip(results, again, strict=True):
        for key in ("history", "test_accuracy", "layers", "robustness"):
            assert json.dumps(result[key]) == json.dumps(other[key])
    with pytest.raises(SystemExit, match="other settings"):
        train.main([*arguments, "--epochs", "2"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "architecture, condition, drawn",
    [
        ("mlp", "whitened-last", []),
        ("cnn", "tapered", ["tapered-cnn"]),
        ("mlp", "output-jacobian", ["figure3", "figure5", "figureA18"]),
    ],
)
def test_deep_networks(tiny, tmp_path, architecture, condition, drawn):
    chosen = ["--architectures", architecture, "--conditions", condition]
    [result] = train.main([*tiny, *chosen])
    assert result["settings"]["condition"] == condition
    assert list(result["layers"]) == ["hidden1", "hidden2", "hidden3"]
    assert set(drawn) <= set(figures_in(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["widths", "exponents", "matched"])
def test_comparisons(tmp_path, capsys, preset):
    arguments = ["--preset", preset, "--smoke", "--output", str(tmp_path)]
    arguments += ["--architectures", "shallow"] if preset == "matched" else []
    results = train.main(arguments)
    drawn = {"matched": ["matched-shallow", "trainings-shallow"]}.get(preset, [preset])
    assert figures_in(tmp_path) == drawn
    tested = [r for r in results if r["settings"]["attacked"]]
    rows = [line for line in capsys.readouterr().out.splitlines() if line[:1] == "|"]
    assert len(rows) == 2 + len(tested)


@pytest.mark.slow
def test_later_seeds_train_the_best_strength(tiny):
    arguments = [*tiny, "--architectures", "mlp", "--conditions", "vanilla", "last"]
    results = train.main([*arguments, "--betas", "1", "5", "--seeds", "0", "1"])
    assert [result["settings"]["seed"] for result in results] == [0, 0, 0, 1, 1]
    [best] = [result["settings"]["beta"] for result in results[4:]]
    assert best == best_strengths(results[:3])["last"]


@pytest.mark.parametrize("diverged", [True, False])
def test_a_training_that_diverged_is_compared_as_one_that_learned_nothing(diverged):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.set_weights([np.eye(2) * (np.nan if diverged else 2.0), np.zeros(2)])
    found = on_kept_out(model, np.eye(2, dtype="float32"), np.arange(2))
    accuracy = 0.0 if diverged else 1.0
    assert found == {"images": 2, "clean": accuracy, "pgd": accuracy}


@pytest.mark.mnist
def test_the_penalty_flattens_the_spectrum_on_mnist(mnist, tmp_path):
    plain, regularized = train.main(
        [
            *("--preset", "cpu", "--architectures", "shallow", "--width", "200"),
            *("--epochs", "8", "--batch-size", "300", "--attacked", "200"),
            *("--output", str(tmp_path)),
        ]
    )
    # The digit of an image is not lost, and the exponent is on its way from above.
    assert min(plain["test_accuracy"], regularized["test_accuracy"]) > 0.93
    plain, regularized = (r["layers"]["hidden1"] for r in (plain, regularized))
    assert regularized["exponent"] < plain["exponent"] - 0.3
    assert regularized["dimension_90"] > plain["dimension_90"]
