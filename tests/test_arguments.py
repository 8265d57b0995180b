"""Nonsense is refused where it is given, everywhere alike, with the usual sentence."""

import re

import keras
import numpy as np
import pytest
from models import hidden, network

import keras_powerlaw as kp

X = np.random.default_rng(0).random((30, 6)).astype("float32")
Y = np.arange(30) % 3

# What is not an integer of at least 1, and not None.
NO_COUNTS = (0, -5, 2.5, "3", True, float("nan"))
NO_BOOLEANS = ("no", 1, 0, None)


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(8, activation="tanh", name="hidden"),
            keras.layers.Dense(3),
        ]
    )


@pytest.fixture(scope="module")
def regularized(model):
    return kp.add_spectral_regularizer(model, "hidden", tau=2)


def options_of_a_pass():
    """Those of everything that passes data through a model."""
    yield from (("batch_size", value) for value in (*NO_COUNTS, None))
    yield from (("verbose", value) for value in ("loud", 2, -1, None, X))


def options_of_a_sample():
    yield from options_of_a_pass()
    yield from (("max_samples", value) for value in (*NO_COUNTS, 1))
    yield from (("seed", value) for value in (-1, 0.5, "0", True, None))


CALLS = {
    "measure_spectrum": (
        lambda model, regularized, **bad: kp.measure_spectrum(
            model, X, "hidden", **bad
        ),
        [
            *options_of_a_sample(),
            *(("reduction", value) for value in ("rows", None, 3)),
            *(("fit_range", value) for value in ((1,), (3, 2), (0, 5), (1, 9), "12")),
            *(("components", value) for value in NO_COUNTS),
        ],
    ),
    "refresh_eigenbasis": (
        lambda model, regularized, **bad: kp.refresh_eigenbasis(regularized, X, **bad),
        [*options_of_a_sample()],
    ),
    "EigenbasisRefresh": (
        lambda model, regularized, **bad: kp.EigenbasisRefresh(X, **bad),
        [
            *options_of_a_sample(),
            ("max_samples", "all"),
            *(("every_epochs", value) for value in NO_COUNTS),
            *(("every_steps", value) for value in NO_COUNTS),
        ],
    ),
    "sensitivity_maps": (
        lambda model, regularized, **bad: kp.sensitivity_maps(
            model, X, "hidden", **{"components": (1, 2), **bad}
        ),
        [
            *options_of_a_pass(),
            *(("images", value) for value in (-1, 1.5, "2", True, None)),
            *(
                ("components", value)
                for value in ((), (0,), (2, 1), (1.0,), (True,), 2)
            ),
            ("reduction", "rows"),
        ],
    ),
    "SpectralActivityRegularizer": (
        lambda model, regularized, **bad: kp.SpectralActivityRegularizer(**bad),
        [
            *(("tau", value) for value in (*NO_COUNTS, None)),
            *(
                (name, value)
                for name in ("alpha", "beta")
                for value in (-1, float("nan"), float("inf"), "1", True, None)
            ),
            *(("exact", value) for value in NO_BOOLEANS),
            *(("form", value) for value in ("ratio", None, True, ["log"])),
            *(("reduction", value) for value in ("rows", None, ["flatten"])),
        ],
    ),
    "add_spectral_regularizer": (
        lambda model, regularized, **bad: kp.add_spectral_regularizer(
            model, **{"layers": "hidden", "tau": 2, **bad}
        ),
        [
            *(("layers", value) for value in ([], None, 2, {}, ["hidden", "hidden"])),
            *(("tau", value) for value in (*NO_COUNTS, None, [1, 2], 9)),
            *(("exact", value) for value in NO_BOOLEANS),
        ],
    ),
    "add_jacobian_regularizer": (
        lambda model, regularized, **bad: kp.add_jacobian_regularizer(model, **bad),
        [
            *(("beta", value) for value in (-1, float("nan"), "1", True)),
            *(("projections", value) for value in (0, 4, 1.5, "1", True)),
        ],
    ),
    "WhiteningLayer": (
        lambda model, regularized, **bad: kp.WhiteningLayer(**bad),
        [
            *(("momentum", value) for value in (1, -0.1, float("nan"), "0.9", True)),
            *(("ridge", value) for value in (-1, float("inf"), "0", True, None)),
            *(("use_batch_statistics", value) for value in NO_BOOLEANS),
        ],
    ),
    "evaluate_robustness": (
        lambda model, regularized, **bad: kp.evaluate_robustness(
            model, X, Y, **{"epsilons": [0.1], "attacks": ["noise"], **bad}
        ),
        [
            *options_of_a_pass(),
            *(
                (name, value)
                for name in ("pgd_steps", "restarts", "noise_draws")
                for value in (*NO_COUNTS, None)
            ),
            *(("pgd_step_size", value) for value in (0, -1, "1", True, float("inf"))),
            *(("seed", value) for value in (-1, 0.5, "0", True, None)),
            *(("norm", value) for value in (1, "2", True, None)),
            *(("clip", value) for value in ((1, 0), (0,), "01", (0, float("inf")))),
            *(("epsilons", value) for value in ([], [-1], [0.2, 0.1], "1", [[0.1]])),
            *(("attacks", value) for value in ([], "fgsm", ["none"], ["noise"] * 2)),
            *(("checks", value) for value in NO_BOOLEANS),
        ],
    ),
}
CASES = [
    pytest.param(call, argument, value, id=f"{name}-{argument}={value!r}")
    for name, (call, cases) in CALLS.items()
    for argument, value in cases
]


@pytest.mark.parametrize("call, argument, value", CASES)
def test_nonsense_is_refused(model, regularized, call, argument, value):
    with pytest.raises(ValueError) as error:
        call(model, regularized, **{argument: value})
    assert re.fullmatch(
        rf"Invalid value for argument `{argument}`\. Expected .*\. Received: "
        rf"{argument}=.*",
        str(error.value),
        re.DOTALL,
    )


@pytest.mark.parametrize("verbose", ["auto", 0, 1, False, True])
def test_verbose_is_that_of_keras(model, verbose):
    assert kp.measure_spectrum(model, X, "hidden", verbose=verbose).rank > 0


def test_integers_of_numpy_are_integers(model):
    regularizer = kp.SpectralActivityRegularizer(tau=np.int64(3))
    assert type(regularizer.tau) is int
    refresh = kp.EigenbasisRefresh(X, every_steps=np.int32(3), batch_size=np.int16(8))
    assert refresh.schedule.every_steps == 3
    spectrum = kp.measure_spectrum(
        model, X, "hidden", max_samples=np.int64(20), seed=np.int64(1)
    )
    assert len(spectrum.eigenvalues) == 8


def test_labels_are_no_argument_of_the_refresh():
    with pytest.raises(TypeError, match="positional arguments"):
        kp.EigenbasisRefresh(X, Y)


@pytest.mark.parametrize(
    "x", [3, "train", [], iter([X])], ids=["number", "text", "empty", "iterator"]
)
def test_what_are_no_data(x):
    with pytest.raises(ValueError, match=r"`x`. Expected an array.*Received: x="):
        kp.EigenbasisRefresh(x)


@pytest.mark.parametrize(
    "call",
    [
        lambda model: kp.measure_spectrum(model, X, "hidden"),
        lambda model: kp.sensitivity_maps(model, X, "hidden", (1,)),
        lambda model: kp.refresh_eigenbasis(model, X),
    ],
    ids=["spectrum", "sensitivity", "refresh"],
)
@pytest.mark.parametrize("model", [2, "model", X], ids=type)
def test_what_is_no_model(call, model):
    with pytest.raises(ValueError, match="`model`. Expected a Keras model. Received"):
        call(model)


def test_what_is_no_path():
    with pytest.raises(ValueError, match="`backup_dir`. Expected None or a path. Rec"):
        kp.EigenbasisRefresh(backup_dir=3)


@pytest.mark.parametrize("reports", [2, "ab", [1, 2]], ids=str)
def test_what_are_no_reports(reports):
    with pytest.raises(ValueError, match="Expected a list of reports. Received: rep"):
        kp.combine_reports(reports)


def test_layers_in_an_error_are_those_of_the_user():
    model = kp.add_spectral_regularizer(network(hidden(9)), "hidden", tau=2)
    with pytest.raises(
        ValueError, match=r"its layers are \['\w+', 'hidden', 'logits'\]"
    ):
        kp.measure_spectrum(model, X, "none")
