"""Which runs an experiment has, which of them are chosen, and their networks."""

import itertools

import numpy as np
import pytest

import keras_powerlaw as kp
from research import experiments, train
from research.matching import best_strengths, select_best
from research.networks import build_model
from research.settings import run_name, select


def runs_of(*arguments):
    return train.runs_of(train.parser().parse_args(["--preset", *arguments]))[0]


def test_runs_are_what_the_command_line_asks_for():
    def names(*arguments):
        return [run_name(settings) for settings in runs_of("smoke", *arguments)]

    assert len(names()) == 2 * 2 + 2 * 8
    chosen = "--architectures", "cnn", "--conditions", "jacobian"
    assert names(*chosen) == ["digits-cnn-jacobian-seed0"]
    assert names(
        *("--dataset", "mnist", "--architectures", "shallow", "--seeds", "0", "7"),
        *("--betas", "1", "2.5"),
    ) == [
        f"mnist-shallow-{kind}-seed{seed}"
        for seed in (0, 7)
        for kind in ("vanilla", "last-beta1", "last-beta2.5")
    ]


def test_architectures_and_conditions_that_do_not_meet_are_named():
    with pytest.raises(SystemExit, match="--architectures and --conditions"):
        train.main(
            ["--preset", "smoke", "--architectures", "shallow", "--conditions", "all"]
        )


def test_comparisons_are_what_they_say():
    sizes = {(s["width"], s["batch_size"]) for s in runs_of("widths")}
    assert sizes == {
        *((500, 750), (500, 3000), (1000, 1500), (1000, 3000), (2000, 3000)),
        *((4000, 3000), (4000, 6000)),
    }

    swept = runs_of("exponents", "--dataset", "fashion_mnist", "--seeds", "3")
    assert [s["alpha"] for s in swept] == [None, *experiments.ALPHAS]
    differ = ("alpha", "beta", "condition", "form", "tau", "variant")
    assert len({str({**s, **dict.fromkeys(differ)}) for s in swept}) == 1

    controls = runs_of("controls", "--seeds", "3")
    ways = {(s["condition"], s["form"], s["alpha"]) for s in controls[1:]}
    assert len(controls) == 16 and len(ways) == 15
    assert {s["seed"] for s in controls} == {3}

    grid = runs_of("matched", "--architectures", "cnn")
    trainings = {}
    for s in grid:
        penalty = s["condition"], s["form"], s["beta"]
        training = {key: s[key] for key in experiments.GRID[0]}
        trainings.setdefault(penalty, []).append(training)
    assert len(trainings) == 7
    plain = trainings.pop(("vanilla", None, None))
    assert len(plain) == 18 and all(same == plain[:12] for same in trainings.values())
    assert all(settings["kept_out"] == 5000 for settings in (*swept, *grid))

    for runs in (swept, grid):  # each has a file of its own
        assert len({run_name(settings) for settings in runs}) == len(runs)


def trained(condition, clean, pgd, **settings):
    settings = {"architecture": "mlp", "condition": condition, **settings}
    return {"settings": settings, "kept_out": {"clean": clean, "pgd": pgd}}


def test_the_best_training_keeps_the_task():
    results = [
        trained("vanilla", 0.97, 0.5, batch=1),
        trained("vanilla", 0.98, 0.4, batch=2),
        trained("last", 0.95, 0.9, batch=3, form="log"),  # too far below 0.98
        trained("last", 0.961, 0.6, batch=4, form="log"),
        trained("last", 0.97, 0.5, batch=5, form="log"),
        trained("last", 0.5, 0.9, batch=6, form="paper"),
    ]
    assert [settings["batch"] for settings in select_best(results)] == [1, 4]


def test_best_strength_of_each_condition():
    """The most robust that keeps the task, on the first seed."""
    results = [
        trained("last", 0.97, 0.9, beta=1.0, seed=1),
        trained("vanilla", 0.98, 0.1, beta=None, seed=0),
        trained("last", 0.97, 0.2, beta=1.0, seed=0),
        trained("last", 0.961, 0.3, beta=5.0, seed=0),
        trained("all", 0.97, 0.2, beta=1.0, seed=0),
        trained("all", 0.959, 0.6, beta=5.0, seed=0),  # too far below 0.98
        trained("whitened-last", 0.7, 0.2, beta=1.0, seed=0),  # neither keeps the task
        trained("whitened-last", 0.8, 0.1, beta=5.0, seed=0),
    ]
    best = {"vanilla": None, "last": 5.0, "all": 1.0, "whitened-last": 5.0}
    assert best_strengths(results) == best


def test_conditions_are_what_they_say():
    def model(architecture, condition):
        chosen = {"architectures": [architecture], "conditions": [condition]}
        [settings] = select("smoke", **chosen, width=30)
        return build_model(settings, (8, 8, 1))[0]

    def penalized(model):
        return {
            layer.name: layer.activity_regularizer.alpha
            for layer in model.layers
            if layer.activity_regularizer is not None
        }

    last = {"hidden3": 1.0}
    alphas = {
        **{"vanilla": {}, "last": last, "whitened": {}, "whitened-last": last},
        "all": {"hidden1": 1.0, "hidden2": 1.0, "hidden3": 1.0},
        "tapered": {"hidden1": 1.5, "hidden2": 1.25, "hidden3": 1.0},
    }
    for architecture, condition in itertools.product(("mlp", "cnn"), alphas):
        built = model(architecture, condition)
        assert penalized(built) == alphas[condition]
        names = [layer.name for layer in built.layers]
        before = built.layers[names.index("hidden2") - 1]
        whitened = isinstance(before, kp.WhiteningLayer)
        assert whitened == condition.startswith("whitened")
    assert model("mlp", "jacobian").projections is None
    assert model("mlp", "output-jacobian").projections == 1


def test_networks_have_the_sizes_of_the_paper():
    sizes = {}
    for architecture in ("shallow", "mlp", "cnn"):
        chosen = {"architectures": [architecture], "conditions": ["vanilla"]}
        settings, *_ = select("paper", **chosen)
        model, hidden = build_model(settings, (28, 28, 1))
        sizes[architecture] = [
            int(np.prod(model.get_layer(name).output.shape[1:])) for name in hidden
        ]
    assert sizes == {
        "shallow": [2000],
        "mlp": [1000, 1000, 1000],
        "cnn": [2704, 800, 1000],
    }
