"""Nonsense is refused where it is given, everywhere alike, with the usual sentence."""

import re

import keras
import numpy as np
import pytest
from models import Subclassed, compiled, feature_map, hidden, network

import keras_powerlaw as kp
from keras_powerlaw import arguments
from keras_powerlaw.spectrum import Covariance

X = np.random.default_rng(0).random((30, 6)).astype("float32")
Y = np.arange(30) % 3

# What is not an integer of at least 1, and not None.
NO_COUNTS = (0, -5, 2.5, "3", True, float("nan"))
NO_NUMBERS = (-1, float("nan"), float("inf"), "1", True, None)
NO_BOOLEANS = ("no", 1, 0, None)
NONSENSE = {
    **dict.fromkeys(["alpha", "beta", "ridge"], NO_NUMBERS),
    **dict.fromkeys(["every_epochs", "every_steps", "components"], NO_COUNTS),
    **dict.fromkeys(["batch_size", "tau"], (*NO_COUNTS, None)),
    **dict.fromkeys(["pgd_steps", "restarts", "noise_draws"], (*NO_COUNTS, None)),
    **dict.fromkeys(["exact", "use_batch_statistics"], NO_BOOLEANS),
    "attacks": ([], "fgsm", ["none"], ["noise"] * 2),
    "backup_dir": (3, True),
    "clip": ((1, 0), (0,), "01", (0, float("inf"))),
    "epsilons": ([], [-1], [0.2, 0.1], "1", [[0.1]]),
    "fit_range": ((1,), (3, 2), (0, 5), (1, 9), "12"),
    "form": ("ratio", None, True, ["log"]),
    "images": (-1, 1.5, "2", True, None),
    "layers": ([], ()),
    "max_samples": (*NO_COUNTS, 1),
    "momentum": (1, -0.1, float("nan"), "0.9", True, None),
    "norm": (1, "2", True, None),
    "pgd_step_size": (0, -1, "1", True, float("inf")),
    "projections": (0, 4, 1.5, "1", True),
    "reduction": ("rows", None, 3, ["flatten"]),
    "seed": (-1, 0.5, "0", True, None),
    "verbose": ("loud", 2, -1, None, X),
}
PASS = "batch_size verbose"
SAMPLE = f"{PASS} max_samples seed"
EVERY = "every_epochs every_steps"
# What is called, the arguments of which the above is no value, and more of these.
CALLS = {
    "measure_spectrum": (
        lambda model, _, **bad: kp.measure_spectrum(model, X, "hidden", **bad),
        f"{SAMPLE} reduction fit_range components",
        {},
    ),
    "SpectrumMonitor": (
        lambda *_, **bad: kp.SpectrumMonitor(X, **{"layers": "hidden", **bad}),
        f"{SAMPLE} {EVERY} reduction layers",
        {},
    ),
    "refresh_eigenbasis": (
        lambda _, regularized, **bad: kp.refresh_eigenbasis(regularized, X, **bad),
        SAMPLE,
        {},
    ),
    "EigenbasisRefresh": (
        lambda *_, **bad: kp.EigenbasisRefresh(**{"x": X, **bad}),
        f"{SAMPLE} {EVERY} backup_dir",
        {"x": (3, "train", [], iter([X])), "max_samples": ("all",)},
    ),
    "sensitivity_maps": (
        lambda model, _, **bad: kp.sensitivity_maps(
            model, X, "hidden", **{"components": (1, 2), **bad}
        ),
        f"{PASS} images reduction",
        {"components": ((), (0,), (2, 1), (1, 1), (1.5,), (True,), 2)},
    ),
    "SpectralActivityRegularizer": (
        lambda *_, **bad: kp.SpectralActivityRegularizer(**bad),
        "alpha tau beta exact form reduction",
        {},
    ),
    "add_spectral_regularizer": (
        lambda model, _, **bad: kp.add_spectral_regularizer(
            model, **{"layers": "hidden", "tau": 2, **bad}
        ),
        "layers tau exact reduction",
        {"layers": (None, 2, {}, ["hidden", "hidden"]), "tau": ([1, 2], 9)},
    ),
    "add_jacobian_regularizer": (
        lambda model, _, **bad: kp.add_jacobian_regularizer(model, **bad),
        "projections",
        {"beta": NO_NUMBERS[:-1]},
    ),
    "WhiteningLayer": (
        lambda *_, **bad: kp.WhiteningLayer(**bad),
        "momentum ridge use_batch_statistics",
        {},
    ),
    "evaluate_robustness": (
        lambda model, _, **bad: kp.evaluate_robustness(
            model, X, Y, **{"epsilons": [0.1], "attacks": ["noise"], **bad}
        ),
        f"{PASS} seed pgd_steps pgd_step_size restarts noise_draws norm clip epsilons "
        "attacks",
        {},
    ),
}
CASES = [
    pytest.param(call, argument, values, id=f"{name}-{argument}")
    for name, (call, common, more) in CALLS.items()
    for argument, values in (*((a, NONSENSE[a]) for a in common.split()), *more.items())
]


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return network(hidden(8), shape=(6,), classes=3)


@pytest.fixture(scope="module")
def regularized():
    model = network(hidden(8), shape=(6,), classes=3)
    return kp.add_spectral_regularizer(model, "hidden", tau=2)


@pytest.mark.parametrize("call, argument, values", CASES)
def test_nonsense_is_refused(model, regularized, call, argument, values):
    sentence = rf"Invalid value for argument `{argument}`\. Expected .*\. Received: "
    for value in values:
        with pytest.raises(ValueError) as error:
            call(model, regularized, **{argument: value})
        found = str(error.value)
        assert re.fullmatch(rf"{sentence}{argument}=.*", found, re.DOTALL), found


def test_the_sentence_says_what_was_expected_and_received():
    with pytest.raises(ValueError) as error:
        kp.SpectralActivityRegularizer(tau="10")
    assert str(error.value) == (
        "Invalid value for argument `tau`. Expected an integer of at least 1. "
        "Received: tau='10'"
    )


@pytest.mark.parametrize("verbose", ["auto", 0, 1, False, True])
def test_verbose_is_that_of_keras(model, verbose):
    assert kp.measure_spectrum(model, X, "hidden", verbose=verbose).rank > 0


def test_integers_of_numpy_are_integers(model):
    refresh = kp.EigenbasisRefresh(X, every_steps=np.int32(3), batch_size=np.int16(8))
    assert type(refresh.every_steps) is int
    options = {"max_samples": np.int64(20), "seed": np.int64(1)}
    assert len(kp.measure_spectrum(model, X, "hidden", **options).eigenvalues) == 8


def test_labels_are_no_argument_of_the_refresh():
    with pytest.raises(TypeError, match="positional arguments"):
        kp.EigenbasisRefresh(X, Y)


@pytest.mark.parametrize(
    "call",
    [
        lambda model: kp.measure_spectrum(model, X, "hidden"),
        lambda model: kp.sensitivity_maps(model, X, "hidden", (1,)),
        lambda model: kp.refresh_eigenbasis(model, X),
        lambda model: kp.add_spectral_regularizer(model, "hidden"),
    ],
    ids=["spectrum", "sensitivity", "refresh", "attaching"],
)
@pytest.mark.parametrize("model", [2, "model", X], ids=type)
def test_what_is_no_model_is_refused(call, model):
    with pytest.raises(ValueError, match="`model`. Expected a Keras model. Received"):
        call(model)


@pytest.mark.parametrize("reports", ["ab", [1, 2]], ids=str)
def test_what_are_no_reports_is_refused(reports):
    with pytest.raises(ValueError, match="Expected a list of reports. Received: rep"):
        kp.combine_reports(reports)


def test_layers_in_an_error_are_those_of_the_user(regularized):
    with pytest.raises(
        ValueError, match=r"its layers are \['\w+', 'hidden', 'logits'\]"
    ):
        kp.measure_spectrum(regularized, X, "none")


class TestMemory:
    """(units, units) arrays that can't fit are refused before they are made."""

    X = np.ones((216, 8, 8, 2), "float32")  # of fewer, the samples would be kept

    @pytest.fixture
    def installed(self, monkeypatch):
        def set_to(value):
            monkeypatch.setattr(arguments, "installed_memory", lambda: value)

        return set_to

    @staticmethod
    def maps():
        return compiled(network(feature_map(6), shape=(8, 8, 2)))

    @pytest.mark.parametrize(
        "most, match",
        [
            ("memory", r"Expected at most 0.0 GiB, the memory .*: about 0.0 GiB. "),
            ("lapack", r"Expected at most 215 units, the limit of LAPACK.*: 216 units"),
        ],
    )
    def test_by_every_way_in(self, most, match, installed, monkeypatch):
        model, regularized = self.maps(), self.maps()
        kp.add_spectral_regularizer(regularized, "map", tau=2)
        unknown = Subclassed(feature_map(6))  # until it is called
        if most == "memory":
            installed(40 * 216**2 - 1)
        else:
            monkeypatch.setattr(arguments, "MOST_UNITS", 215)
        monkeypatch.setattr(Covariance, "update", lambda *_: pytest.fail("allocated"))
        match = rf"'map' \(216 units\). {match}.*reduction=\"channels\""
        for call in (
            lambda: kp.add_spectral_regularizer(model, "map", tau=2),
            lambda: kp.add_spectral_regularizer(model, "map", tau=2, exact=True),
            lambda: kp.refresh_eigenbasis(regularized, self.X),
            lambda: kp.refresh_eigenbasis(regularized),
            lambda: kp.measure_spectrum(model, self.X, "map"),
            lambda: kp.measure_spectrum(unknown, self.X, "map"),
            lambda: kp.sensitivity_maps(model, self.X, "map", (1,)),
        ):
            with pytest.raises(ValueError, match=match):
                call()

    def test_what_fits_passes_and_so_does_what_is_unknown(self, installed):
        for memory in (40 * 216**2, None):
            installed(memory)
            kp.measure_spectrum(self.maps(), self.X, "map")

    def test_a_reduction_helps_even_where_a_map_is_too_wide_anywhere(self, installed):
        installed(2**40)
        inputs = keras.Input((56, 56, 64))  # of ResNet-50
        outputs = keras.layers.Conv2D(256, 1, name="wide")(inputs)
        model = keras.Model(inputs, outputs)
        match = r"'wide' \(802,816 units\)\..* 1,024.0 GiB, .* 24,010.0 GiB"
        with pytest.raises(ValueError, match=match):
            kp.add_spectral_regularizer(model, "wide")
        kp.add_spectral_regularizer(model, "wide", reduction="channels")

    def test_layers_of_one_pass_are_added_up(self, installed):
        model = network(hidden(20, name="a"), hidden(10, name="b"))
        installed(20 * 500 + 20 * 400 - 1)
        with pytest.raises(ValueError, match=r"'a' \(20 units\), 'b' \(10 units\)"):
            kp.add_spectral_regularizer(model, ["a", "b"], tau=2)
        kp.add_spectral_regularizer(model, "a", tau=2)

    def test_the_limit_of_lapack_is_that_of_its_integers(self):
        # `syevd` needs 1 + 6N + 2N² numbers.
        most, more = (
            1 + 6 * units + 2 * units**2
            for units in (arguments.MOST_UNITS, arguments.MOST_UNITS + 1)
        )
        assert most < 2**31 <= more

    def test_installed_is_what_the_system_says(self):
        installed = arguments.installed_memory()
        assert installed is None or 2**28 < installed < 2**50
