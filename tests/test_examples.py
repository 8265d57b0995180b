"""The example scripts, run as a user runs them but smaller."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import all_layers
import exponents
import feature_maps
import keras
import matched
import numpy as np
import paper
import pytest
import quickstart
import resnet
import shallow_mlp
import whitening
import widths
from backend import only, to_numpy
from experiments import all_runs, command_line, conditions, data, figures
from experiments.matching import best_strengths, select_best
from experiments.networks import build_model
from experiments.one_run import on_kept_out
from experiments.results import ratio_to_target, written_whole
from experiments.settings import run_name, select

import keras_powerlaw as kp

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_scripts_run_from_any_folder(tmp_path):
    command = [sys.executable, EXAMPLES / "whitening.py", "--draw", "--output", "none"]
    printed = subprocess.run(
        command, cwd=tmp_path, check=True, capture_output=True, text=True
    ).stdout
    assert printed.startswith("0 of 8 runs are finished in none")


def test_quickstart(tmp_path, capsys):
    quickstart.main(["--epochs", "2", "--seeds", "0", "1", "--output", str(tmp_path)])
    printed = capsys.readouterr().out
    rows = printed.split("plain\n")[1].splitlines()
    assert rows[1::2][:2] == ["plain, best epoch", "regularized"]
    assert all(row.count("±") == 6 for row in rows[:5:2])
    for name in ("spectrum.png", "robustness.png"):
        assert (tmp_path / name).stat().st_size > 10_000


@pytest.mark.slow
def test_stage_of_an_application(capsys):
    # VGG16, since ResNet50 takes long to compile.
    arguments = "--application VGG16 --layer block2_pool --size 32 --images 6"
    arguments += " --epochs 3 --batch-size 6 --reduction channels"
    before, after = resnet.main(arguments.split())
    assert len(before.eigenvalues) == len(after.eigenvalues) == 128
    assert not np.array_equal(before.eigenvalues, after.eigenvalues)
    printed = capsys.readouterr().out
    assert "epoch 1: loss" in printed and "peak of the memory" in printed


@pytest.mark.slow
def test_stage_of_a_resnet():
    arguments = (
        "--size 32 --images 8 --batch-size 4 --epochs 1 --reduction mean --tau 2"
    )
    before, after = resnet.main(arguments.split())
    assert len(before.eigenvalues) == len(after.eigenvalues) == 256


@pytest.mark.slow
def test_feature_maps():
    exponents = feature_maps.main(
        ["--data-set", "digits", "--images", "150", "--epochs", "1"]
    )
    assert list(exponents) == [None, "flatten", "channels", "mean"]
    plain, *others = exponents.values()
    for row in others:  # trained, each its own way
        assert all(np.isfinite(list(row.values()))) and row != plain


@pytest.fixture
def tiny(tmp_path):
    return [
        *("--preset", "smoke", "--width", "30", "--epochs", "1"),
        *("--attacked", "10", "--output", str(tmp_path)),
    ]


def results_in(folder):
    """The results by name, without the times."""
    results = {
        path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")
    }
    for result in results.values():
        assert result.pop("training_seconds") > 0
        assert result.pop("measuring_seconds") > 0
    return results


def figures_in(folder):
    for path in folder.glob("*.png"):
        assert path.stat().st_size > 10_000
    return sorted(path.stem for path in folder.glob("*.png"))


@pytest.mark.slow
def test_shallow_mlp_leaves_results_and_figures(tiny, tmp_path, capsys):
    shallow_mlp.main(tiny)
    results = results_in(tmp_path)
    assert sorted(results) == [
        "digits-shallow-last-beta5-seed0",
        "digits-shallow-nobn-last-beta5-seed0",
        "digits-shallow-nobn-vanilla-seed0",
        "digits-shallow-vanilla-seed0",
    ]
    assert figures_in(tmp_path) == [
        f"digits-figure{number}" for number in ("2", "A6", "A7", "A8", "A9")
    ]
    result = results["digits-shallow-last-beta5-seed0"]
    assert len(result["spectra"]["hidden1"]["eigenvalues"]) == 30
    assert len(result["history"]["hidden1_exponent"]) == 1
    assert np.shape(result["sensitivity"]["total"])[1:] == (8, 8, 1)
    assert "SpecReg, β = 5" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    "script, architecture, condition, drawn",
    [
        ("whitening", "mlp", "whitened-last", "4 A10 A13"),
        ("all_layers", "cnn", "tapered", "tapered-cnn"),
        ("all_layers", "mlp", "output-jacobian", "5 A18 A21"),
        ("sensitivity", "mlp", "whitened", "3 3-first-image"),
    ],
)
def test_deep_networks(tiny, tmp_path, script, architecture, condition, drawn):
    [result] = importlib.import_module(script).main(
        [*tiny, "--architectures", architecture, "--conditions", condition]
    )
    assert result["settings"]["condition"] == condition
    assert list(result["spectra"]) == ["hidden1", "hidden2", "hidden3"]
    assert [name.removeprefix("digits-") for name in figures_in(tmp_path)] == [
        name if name.startswith("tapered") else f"figure{name}"
        for name in drawn.split()
    ]


def test_a_plain_network_alone_makes_no_comparison():
    settings = {"architecture": "cnn", "condition": "vanilla", "beta": None, "seed": 0}
    result = {"settings": settings, "kept_out": {"clean": 1.0, "pgd": 0.0}}
    assert figures.all_layers([result]) == figures.whitening([result]) == {}


def test_runs_are_what_the_command_line_asks_for():

    def names(*arguments):
        args = command_line.parser("").parse_args(["--preset", "smoke", *arguments])
        runs = select(args, conditions.DEEP, all_layers.CONDITIONS)
        return [run_name(settings) for settings in runs]

    assert len(names()) == 2 * 5
    assert names("--architectures", "cnn", "--conditions", "jacobian") == [
        "digits-cnn-jacobian-seed0"
    ]
    assert names(
        *("--dataset", "mnist", "--architectures", "mlp", "--seeds", "0", "7"),
        *("--betas", "1", "2.5", "--conditions", "vanilla", "all"),
    ) == [
        "mnist-mlp-vanilla-seed0",
        "mnist-mlp-all-beta1-seed0",
        "mnist-mlp-all-beta2.5-seed0",
        "mnist-mlp-vanilla-seed7",
        "mnist-mlp-all-beta1-seed7",
        "mnist-mlp-all-beta2.5-seed7",
    ]


def settings_of(script, *arguments):
    args = command_line.parser("").parse_args([*arguments])
    return (matched.grid if script is matched else script.runs_of)(args)


def test_comparisons_are_what_they_say():
    sizes = {
        (settings["width"], settings["batch_size"])
        for settings in settings_of(widths, "--preset", "evidence")
    }
    assert sizes == {
        *((500, 750), (500, 3000), (1000, 1500), (1000, 3000), (2000, 3000)),
        *((4000, 3000), (4000, 6000)),
    }

    swept = settings_of(exponents, "--dataset", "fashion_mnist", "--seeds", "3")
    assert [settings["alpha"] for settings in swept] == [None, *exponents.ALPHAS]
    differ = ("alpha", "beta", "condition", "form", "tau", "variant")
    assert len({str({**s, **dict.fromkeys(differ)}) for s in swept}) == 1

    grid = settings_of(matched, "--architectures", "cnn")
    trainings = {}
    for settings in grid:
        penalty = settings["condition"], settings["form"], settings["beta"]
        trainings.setdefault(penalty, []).append(
            [settings[key] for key in matched.GRID]
        )
    assert len(trainings) == 7
    plain = trainings.pop(("vanilla", None, None))
    assert len(plain) == 18 and all(same == plain[:12] for same in trainings.values())
    assert all(settings["kept_out"] == 5000 for settings in (*swept, *grid))

    for runs in (swept, grid):  # each has a file of its own
        assert len({run_name(settings) for settings in runs}) == len(runs)


@pytest.mark.slow
@pytest.mark.parametrize(
    "script, figure", [(widths, "widths"), (exponents, "exponents")]
)
def test_comparisons(tmp_path, capsys, script, figure):
    arguments = ["--preset", "smoke", "--epochs", "1", "--output", str(tmp_path)]
    results = script.main(arguments)
    assert figures_in(tmp_path) == [f"digits-{figure}"]
    assert all(result["kept_out"]["images"] == 100 for result in results)
    assert all(result["trained_images"] == 1338 for result in results)
    rows = [line for line in capsys.readouterr().out.splitlines() if line[:1] == "|"]
    assert len(rows) == 2 + len(results)


@pytest.mark.slow
def test_matched_comparison(tmp_path, capsys):
    arguments = ["--preset", "smoke", "--architectures", "shallow"]
    results = matched.main([*arguments, "--output", str(tmp_path)])
    names = ["digits-matched-shallow", "digits-trainings-shallow"]
    assert figures_in(tmp_path) == names
    conditions = [result["settings"]["condition"] for result in results]
    assert conditions[0] == "vanilla" and len(conditions) <= 5
    assert "worst case 0.05" in capsys.readouterr().out


def test_the_best_training_keeps_the_task():
    def result(condition, clean, pgd, batch, form=None):
        settings = {"architecture": "cnn", "condition": condition, "batch": batch}
        return {
            "settings": {**settings, "form": form},
            "kept_out": {"clean": clean, "pgd": pgd},
        }

    results = [
        result("vanilla", 0.97, 0.5, 1),
        result("vanilla", 0.98, 0.4, 2),
        result("last", 0.95, 0.9, 3, "log"),  # too far below 0.98
        result("last", 0.961, 0.6, 4, "log"),
        result("last", 0.97, 0.5, 5, "log"),
        result("last", 0.5, 0.9, 6, "paper"),
    ]
    assert [settings["batch"] for settings in select_best(results)] == [1, 4]


def batches_seen(*data, **options):
    """What a model is trained on in two epochs, after the seeds have been set."""
    keras.utils.set_random_seed(0)
    seen = []

    class Seeing(keras.layers.Layer):
        def call(self, x, training=False):
            if training:
                seen.append(np.ravel(to_numpy(x)))
            return x

    model = keras.Sequential([keras.Input((1,)), Seeing(), keras.layers.Dense(1)])
    model.compile("sgd", "mse", run_eagerly=True)
    model.fit(*data, epochs=2, verbose=0, **options)
    return np.split(np.concatenate(seen), 2)


def test_batches_are_new_in_every_epoch():
    x = np.arange(50.0)[:, np.newaxis]
    first, second = batches_seen(data.Reshuffled(x, x, 20, seed=3), shuffle=False)
    assert sorted(first) == sorted(second) == list(range(50))
    assert not np.array_equal(first, second)
    again, _ = batches_seen(data.Reshuffled(x, x, 20, seed=3), shuffle=False)
    np.testing.assert_array_equal(again, first)


@only("tensorflow", why="other backends' fit() reshuffles arrays")
def test_those_of_arrays_are_not_which_is_why():
    x = np.arange(50.0)[:, np.newaxis]
    np.testing.assert_array_equal(*batches_seen(x, x, batch_size=20))


def test_images_kept_out_are_no_others():
    x = np.arange(50)
    (trained, y), (kept, labels) = data.keep_out((x, -x), 20)
    assert sorted([*trained, *kept]) == list(x) and len(kept) == 20
    np.testing.assert_array_equal(y, -trained)
    np.testing.assert_array_equal(labels, -kept)
    np.testing.assert_array_equal(kept, data.keep_out((x, -x), 20)[1][0])
    np.testing.assert_array_equal(data.keep_out((x, -x), 0)[0][0], x)


@pytest.mark.parametrize("diverged", [True, False])
def test_a_training_that_diverged_is_compared_as_one_that_learned_nothing(diverged):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.set_weights([np.eye(2) * (np.nan if diverged else 2.0), np.zeros(2)])
    found = on_kept_out(model, np.eye(2, dtype="float32"), np.arange(2))
    accuracy = 0.0 if diverged else 1.0
    assert found == {"images": 2, "clean": accuracy, "pgd": accuracy}


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_ratio_to_target(alpha):
    n = np.arange(1.0, 101)
    eigenvalues = np.where(n <= 10, 1, 0.3) * n**-alpha
    assert ratio_to_target({"eigenvalues": eigenvalues}, alpha) == pytest.approx(0.3)


def test_conditions_are_what_they_say():
    args = command_line.parser("").parse_args(["--preset", "smoke", "--width", "30"])

    def model(architecture, condition):
        [settings] = select(args, [architecture], [condition])
        return build_model(settings, (8, 8, 1))[0]

    def penalized(model):
        return {
            layer.name: layer.activity_regularizer.alpha
            for layer in model.layers
            if layer.activity_regularizer is not None
        }

    for architecture in ("mlp", "cnn"):
        assert penalized(model(architecture, "vanilla")) == {}
        assert penalized(model(architecture, "last")) == {"hidden3": 1.0}
        assert penalized(model(architecture, "whitened-last")) == {"hidden3": 1.0}
        everywhere = {"hidden1": 1.0, "hidden2": 1.0, "hidden3": 1.0}
        assert penalized(model(architecture, "all")) == everywhere
        falling = {"hidden1": 1.5, "hidden2": 1.25, "hidden3": 1.0}
        assert penalized(model(architecture, "tapered")) == falling
        for condition in ("whitened", "whitened-last"):
            names = [
                type(layer).__name__ for layer in model(architecture, condition).layers
            ]
            # Right before the name of the second hidden layer.
            second = [i for i, name in enumerate(names) if name == "Identity"][1]
            assert names.index("WhiteningLayer") == second - 1
    assert model("mlp", "jacobian").projections is None
    assert model("mlp", "output-jacobian").projections == 1


def test_networks_have_the_sizes_of_the_paper():
    args = command_line.parser("").parse_args(["--preset", "paper"])
    sizes = {}
    for architecture in ("shallow", "mlp", "cnn"):
        [settings, *_] = select(args, [architecture], ["vanilla"])
        model, hidden = build_model(settings, (28, 28, 1))
        sizes[architecture] = [
            int(np.prod(model.get_layer(name).output.shape[1:])) for name in hidden
        ]
    assert sizes == {
        "shallow": [2000],
        "mlp": [1000, 1000, 1000],
        "cnn": [2704, 800, 1000],
    }


def trained(condition, beta, seed, clean, pgd):
    settings = {"architecture": "mlp", "condition": condition}
    return {
        "settings": {**settings, "beta": beta, "seed": seed},
        "kept_out": {"clean": clean, "pgd": pgd},
    }


def test_best_strength_of_each_condition():
    """The most robust that keeps the task, on the first seed."""
    results = [
        trained("last", 1.0, 1, 0.97, 0.9),
        trained("vanilla", None, 0, 0.98, 0.1),
        trained("last", 1.0, 0, 0.97, 0.2),
        trained("last", 5.0, 0, 0.961, 0.3),
        trained("all", 1.0, 0, 0.97, 0.2),
        trained("all", 5.0, 0, 0.959, 0.6),  # too far below 0.98
        trained("whitened-last", 1.0, 0, 0.7, 0.2),  # neither keeps the task
        trained("whitened-last", 5.0, 0, 0.8, 0.1),
    ]
    best = {"vanilla": None, "last": 5.0, "all": 1.0, "whitened-last": 5.0}
    assert best_strengths(results) == best
    shown = figures._best(results)
    assert [r["settings"]["beta"] for r in shown] == [None, 5.0, 1.0, 5.0]


def test_best_strength_without_images_kept_out():
    def tested(beta, *correct):
        report = kp.RobustnessReport(
            epsilons=np.array([0.02, 0.05]),
            clean_correct=np.ones(4, dtype=bool),
            correct={"pgd": np.array([np.arange(4) < count for count in correct])},
        )
        result = trained("last", beta, 0, 0, 0)
        del result["kept_out"]
        robustness = json.loads(report.to_json())
        return {**result, "test_accuracy": 1.0, "robustness": robustness}

    assert best_strengths([tested(1.0, 4, 1), tested(5.0, 3, 2)]) == {"last": 5.0}


@pytest.mark.slow
def test_later_seeds_train_the_best_strength(tiny, capsys):
    arguments = [*tiny, "--architectures", "mlp", "--conditions", "vanilla", "last"]
    arguments += ["--betas", "1", "5", "--seeds", "0", "1"]
    results = whitening.main(arguments)
    seeds = [result["settings"]["seed"] for result in results]
    assert seeds == [0, 0, 0, 1, 1]
    [best] = [result["settings"]["beta"] for result in results[4:]]
    assert best == best_strengths(results[:3])["last"]
    capsys.readouterr()
    # The same without training.
    drawn = whitening.main([*arguments, "--draw"])
    assert [r["settings"] for r in drawn] == [r["settings"] for r in results]
    assert capsys.readouterr().out.startswith("5 of 5 runs are finished")


def test_finished_runs_are_not_repeated(tiny, tmp_path, capsys):
    arguments = [*tiny, "--architectures", "shallow-nobn", "--conditions", "last"]
    shallow_mlp.main(arguments)
    before = {path: path.read_bytes() for path in tmp_path.glob("*.json")}
    capsys.readouterr()
    shallow_mlp.main(arguments)
    assert "1 of 1 runs are finished" in (printed := capsys.readouterr().out)
    assert "epoch" not in printed
    assert before == {path: path.read_bytes() for path in tmp_path.glob("*.json")}
    with pytest.raises(SystemExit, match="other settings"):
        shallow_mlp.main([*arguments, "--alpha", "2"])


@pytest.mark.slow
def test_interrupted_and_restarted_ends_with_the_same_results(
    tiny, tmp_path, monkeypatch, capsys
):
    arguments = [*tiny, "--experiments", "shallow", "--architectures", "shallow"]
    paper.main([*arguments, "--output", str(tmp_path / "whole")])

    perform, halves = all_runs.perform, tmp_path / "halves"

    def killed(settings, *others):
        if settings["condition"] == "last":
            # As a process leaves it that is killed while it writes.
            (halves / "unfinished-1").mkdir()
            unfinished = halves / "unfinished-1/digits-shallow-last-beta5-seed0.json"
            unfinished.write_text('{"sett')
            raise KeyboardInterrupt
        return perform(settings, *others)

    monkeypatch.setattr(all_runs, "perform", killed)
    with pytest.raises(KeyboardInterrupt):
        paper.main([*arguments, "--output", str(halves)])
    assert len(results_in(halves)) == 1
    paper.main([*arguments, "--output", str(halves), "--draw"])
    assert "1 of 2 runs are finished" in capsys.readouterr().out
    assert "digits-figure2" in figures_in(halves)

    monkeypatch.setattr(all_runs, "perform", perform)
    paper.main([*arguments, "--output", str(halves)])
    assert len(results_in(halves)) == 2
    assert results_in(halves) == results_in(tmp_path / "whole")


def test_interrupted_write_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "result.json"
    with written_whole(path) as unfinished:
        unfinished.write_text("whole")
    with pytest.raises(KeyboardInterrupt), written_whole(path) as unfinished:
        unfinished.write_text("ha")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == [path] and path.read_text() == "whole"


@pytest.mark.slow
def test_smoke_preset_runs_the_whole_paper(tmp_path):
    results = paper.main(
        ["--preset", "smoke", "--output", str(tmp_path), "--attacked", "10"]
    )
    assert len(results) == 20
    of_all_strengths = {11, 15, 19, 23}  # and there is one
    appendix = [number for number in range(6, 26) if number not in of_all_strengths]
    numbers = ["2", "3", "4", "5", *(f"A{number}" for number in appendix)]
    assert {f"digits-figure{number}" for number in numbers} <= set(figures_in(tmp_path))


@pytest.mark.mnist
def test_shallow_mlp_flattens_the_spectrum_on_mnist(mnist, tmp_path):
    plain, regularized = shallow_mlp.main(
        [
            *("--dataset", "mnist", "--architectures", "shallow", "--width", "200"),
            *("--epochs", "8", "--batch-size", "300", "--attacked", "200"),
            *("--output", str(tmp_path)),
        ]
    )
    # The digit of an image is not lost, and the exponent is on its way from above.
    assert min(plain["test_accuracy"], regularized["test_accuracy"]) > 0.93
    plain, regularized = (r["spectra"]["hidden1"] for r in (plain, regularized))
    assert regularized["exponent"] < plain["exponent"] - 0.3
    assert regularized["dimension_90"] > plain["dimension_90"]


def test_data_set_from_a_file(tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.integers(256, size=(7, 28, 28)).astype("uint8"), np.arange(7)
    path = tmp_path / "mnist.npz"
    np.savez(path, x_train=x, y_train=y, x_test=x[:2], y_test=y[:2])
    (x_train, y_train), (x_test, _) = data.load("mnist", str(path))
    np.testing.assert_allclose(x_train[..., 0], x / 255, rtol=1e-6)
    assert x_train.shape == (7, 28, 28, 1) and x_train.dtype == np.float32
    np.testing.assert_array_equal(y_train, y)
    assert len(x_test) == 2


@pytest.mark.mnist
def test_data_set_through_tensorflow_datasets(mnist):
    (x_train, y_train), (x_test, y_test) = data.load("mnist")
    assert x_train.shape == (60000, 28, 28, 1) and x_test.shape == (10000, 28, 28, 1)
    assert x_train.dtype == np.float32 and (x_train.min(), x_train.max()) == (0, 1)
    np.testing.assert_array_equal(np.bincount(y_test)[:3], [980, 1135, 1032])
    np.testing.assert_allclose(x_train[:100], mnist[0][0][:100], atol=1e-7)
