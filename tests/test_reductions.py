"""What the units of a feature map are, from the penalty to the measurements."""

import os

import keras
import numpy as np
import pytest
import reference
from backend import BACKEND, only, to_numpy, value_and_gradient
from datasets import gaussian
from keras import layers, ops
from models import Subclassed, compiled, feature_map, hidden, network

import keras_powerlaw as kp
from keras_powerlaw import arguments as memory
from keras_powerlaw.keras_internals import mask_of
from keras_powerlaw.spectrum import Covariance
from keras_powerlaw.units import count_units, to_samples

# XLA takes longer to compile these networks than to run them; JAX knows nothing else.
JIT_COMPILE = BACKEND == "jax"

REDUCTIONS = ["flatten", "channels", "mean"]
# Of what has positions and channels: image, volume, sequence.
SHAPES = {"2-D": (20, 3, 2, 5), "3-D": (20, 2, 3, 2, 5), "sequence": (20, 6, 5)}


@pytest.fixture(params=["channels_last", "channels_first"])
def data_format(request):
    before = keras.config.image_data_format()
    keras.config.set_image_data_format(request.param)
    yield request.param
    keras.config.set_image_data_format(before)


def samples(activity, reduction, data_format="channels_last"):
    """In NumPy, one example and one position at a time."""
    if data_format == "channels_first" and activity.ndim > 3:
        activity = np.stack([np.moveaxis(example, 0, -1) for example in activity])
    rows = []
    for example in activity:
        positions = [example[index] for index in np.ndindex(example.shape[:-1])]
        if reduction == "flatten":
            rows.append(np.concatenate(positions))
        elif reduction == "channels":
            rows.extend(positions)
        else:
            rows.append(sum(positions) / len(positions))
    return np.stack(rows)


def eigenvalues(rows):
    return np.linalg.eigvalsh(np.cov(rows, rowvar=False))[::-1]


def arranged(shape, data_format):
    """A shape with its channels where the data format has them."""
    if data_format == "channels_first" and len(shape) > 3:
        return (shape[0], shape[-1], *shape[1:-1])
    return shape


class TestSamples:
    @pytest.mark.parametrize("reduction", REDUCTIONS)
    @pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
    def test_are_those_of_numpy(self, shape, reduction, data_format):
        activity = np.random.default_rng(0).normal(size=arranged(shape, data_format))
        found = to_numpy(
            to_samples(ops.convert_to_tensor(activity, "float32"), reduction)
        )
        expected = samples(activity, reduction, data_format)
        if reduction == "flatten":  # the paper's: the order of its units is the array's
            expected = activity.reshape(len(activity), -1)
        np.testing.assert_allclose(found, expected, atol=1e-6)
        assert count_units(activity.shape, reduction) == expected.shape[1]

    @pytest.mark.parametrize("reduction", REDUCTIONS)
    @pytest.mark.parametrize("shape", [(4, 7), (4,)])
    def test_are_the_same_without_positions(self, shape, reduction, data_format):
        activity = np.random.default_rng(0).normal(size=shape).astype("float32")
        found = to_samples(ops.convert_to_tensor(activity), reduction)
        np.testing.assert_array_equal(to_numpy(found).ravel(), activity.ravel())

    def test_positions_need_no_known_number_unless_they_are_flattened(self):
        shape = (None, None, None, 8)
        assert count_units(shape, "flatten") is None
        assert count_units(shape, "channels") == 8
        assert count_units(shape, "mean") == 8

    @pytest.mark.parametrize("bad", ["max", None, 1, ["flatten"]])
    def test_refuses_other_reductions(self, bad):
        model = keras.Sequential([keras.Input((3,)), layers.Dense(4, name="hidden")])
        x = np.ones((9, 3), "float32")
        text = "argument `reduction`. Expected 'flatten', 'channels' or 'mean'"
        for call in (
            lambda: kp.SpectralActivityRegularizer(reduction=bad),
            lambda: kp.add_spectral_regularizer(model, "hidden", reduction=bad),
            lambda: kp.measure_spectrum(model, x, "hidden", reduction=bad),
            lambda: kp.sensitivity_maps(model, x, "hidden", reduction=bad),
        ):
            with pytest.raises(ValueError, match=text):
                call()


class TestPenalty:
    """Against the paper's equation in NumPy and against finite differences."""

    @pytest.mark.parametrize("reduction", ["channels", "mean"])
    @pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
    @pytest.mark.parametrize("exact", [False, True], ids=["frozen", "exact"])
    def test_value_and_gradient(self, shape, reduction, exact, data_format):
        rng = np.random.default_rng(1)
        activity = rng.normal(size=arranged(shape, data_format))
        basis = reference.orthonormal(5, rng)
        regularizer = kp.SpectralActivityRegularizer(
            1.5, 2, 3.0, exact=exact, reduction=reduction
        )
        if not exact:
            regularizer.eigenbasis.renew(basis)

        def variances(x):
            rows = samples(x, reduction, data_format)
            return eigenvalues(rows) if exact else reference.variances(rows, basis)

        fixed = variances(activity)

        def penalty(x):
            return reference.penalty(variances(x), 1.5, 2, 3.0, kappa_from=fixed)

        value, gradient = value_and_gradient(regularizer.penalty, activity)
        np.testing.assert_allclose(value, penalty(activity), rtol=1e-4)
        directions = rng.normal(size=(5, *activity.shape))
        computed = [np.sum(gradient * direction) for direction in directions]
        expected = [
            reference.directional_derivative(penalty, activity, direction)
            for direction in directions
        ]
        error = np.linalg.norm(np.subtract(computed, expected))
        assert error <= 1e-3 * np.linalg.norm(expected)

    def test_one_example_has_a_covariance_if_its_positions_are_samples(self):
        one = np.random.default_rng(2).normal(size=(1, 4, 4, 5))
        for reduction, penalized in (("channels", True), ("mean", False)):
            regularizer = kp.SpectralActivityRegularizer(
                tau=2, exact=True, reduction=reduction
            )
            value, _ = value_and_gradient(regularizer.penalty, one)
            assert (value > 0) == penalized

    def test_error_for_too_large_a_tau_tells_the_units(self):
        model = convolutional_model()
        with pytest.raises(
            ValueError, match=r"at most .* 6 units \(with reduction='mean'\)"
        ):
            kp.add_spectral_regularizer(model, "map", tau=7, reduction="mean")
        kp.add_spectral_regularizer(model, "map", tau=7)  # of 6 · 6 · 6


def convolutional_model():
    pooled = layers.GlobalAveragePooling2D(name="pooled")
    model = network(feature_map(6), pooled, shape=(8, 8, 2))
    return compiled(model, keras.optimizers.SGD(0.1), jit_compile=JIT_COMPILE)


@pytest.fixture
def data():
    return gaussian(60, (8, 8, 2))


def activity_of(model, x):
    return to_numpy(keras.Model(model.inputs, model.get_layer("map").output)(x))


class TestMeasurements:
    @pytest.mark.parametrize("reduction", REDUCTIONS)
    @pytest.mark.parametrize("batch_size", [1024, 7])
    def test_spectrum(self, data, reduction, batch_size):
        model = convolutional_model()
        spectrum = kp.measure_spectrum(
            model, data[0], "map", reduction=reduction, batch_size=batch_size
        )
        expected = eigenvalues(samples(activity_of(model, data[0]), reduction))
        np.testing.assert_allclose(
            spectrum.eigenvalues, expected, atol=1e-6 * expected[0]
        )

    def test_mean_is_what_global_pooling_hands_on(self, data):
        model = convolutional_model()
        mean = kp.measure_spectrum(model, data[0], "map", reduction="mean")
        pooled = kp.measure_spectrum(model, data[0], "pooled")
        np.testing.assert_allclose(mean.eigenvalues, pooled.eigenvalues, rtol=1e-5)

    def test_wide_batches_are_added_in_pieces(self):
        rows = np.random.default_rng(3).normal(size=(4_500_000, 2)).astype("f4")
        running = Covariance()
        running.update(rows)  # three pieces
        np.testing.assert_allclose(
            running.matrix(), np.cov(rows, rowvar=False), atol=1e-12
        )

    @pytest.mark.parametrize("reduction", REDUCTIONS)
    def test_refresh_takes_the_reduction_of_the_regularizer(self, data, reduction):
        model = kp.add_spectral_regularizer(
            convolutional_model(), "map", tau=2, reduction=reduction
        )
        measured = kp.refresh_eigenbasis(model, data[0], batch_size=25)["map"]
        rows = samples(activity_of(model, data[0]), reduction)
        basis = to_numpy(model.get_layer("map").activity_regularizer.basis)
        np.testing.assert_allclose(
            reference.variances(rows, basis), measured.eigenvalues[1:], atol=1e-6
        )

    @pytest.mark.parametrize("reduction", ["channels", "mean"])
    def test_sensitivity_is_the_derivative_of_the_eigenvalues(self, data, reduction):
        model, x = convolutional_model(), data[0]
        found = kp.sensitivity_maps(
            model, x, "map", (1, 3), reduction=reduction, images=60, batch_size=25
        )
        kernel, bias = (np.float64(w) for w in model.get_layer("map").get_weights())

        def spectrum(x):
            patches = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))
            activity = np.tanh(np.einsum("bhwcij,ijco->bhwo", patches, kernel) + bias)
            return eigenvalues(samples(activity, reduction))[[0, 2]]

        for direction in np.random.default_rng(4).normal(size=(3, *x.shape)):
            expected = reference.directional_derivative(
                spectrum, x.astype("float64"), direction
            )
            computed = np.sum(found.maps * direction, axis=(1, 2, 3, 4))
            np.testing.assert_allclose(
                computed, expected, atol=1e-3 * np.linalg.norm(expected)
            )

    @only("torch", why="the other backends keep nothing for a backward pass")
    def test_a_pass_over_the_data_keeps_no_graph(self, data, monkeypatch):
        import torch

        model, recorded = convolutional_model(), []
        call = layers.GlobalAveragePooling2D.call
        monkeypatch.setattr(
            layers.GlobalAveragePooling2D,
            "call",
            lambda self, x: recorded.append(torch.is_grad_enabled()) or call(self, x),
        )
        kp.measure_spectrum(model, data[0], "map")
        assert recorded == [False]


class TestTraining:
    @pytest.mark.parametrize("reduction", REDUCTIONS)
    def test_model_losses_are_the_penalty(self, data, reduction):
        model = kp.add_spectral_regularizer(
            convolutional_model(), "map", 1.5, 2, 3.0, reduction=reduction
        )
        kp.refresh_eigenbasis(model, data[0])
        model(data[0], training=True)
        rows = samples(activity_of(model, data[0]), reduction)
        basis = reference.eigenvectors(rows)
        variances = reference.variances(rows, basis)
        model(data[0], training=True)
        np.testing.assert_allclose(
            float(sum(model.losses)),
            reference.penalty(variances, 1.5, 2, 3.0),
            rtol=1e-4,
        )

    @pytest.mark.parametrize("reduction", ["channels", "mean"])
    def test_moves_the_spectrum_that_is_measured(self, digits, reduction):
        (x, y), _ = digits
        model = network(feature_map(16), layers.Flatten(), shape=(8, 8, 1), classes=10)
        model = kp.add_spectral_regularizer(
            model, "map", tau=2, beta=2.0, form="paper", reduction=reduction
        )
        compiled(model, keras.optimizers.Adam(1e-2), jit_compile=JIT_COMPILE)

        def exponent():
            return kp.measure_spectrum(
                model, x, "map", reduction=reduction, fit_range=(2, 9)
            ).exponent

        # (One 3×3 convolution of one channel has nine dimensions, but for the tanh.)
        before = exponent()
        refresh = kp.EigenbasisRefresh(x)
        model.fit(x, y, batch_size=200, epochs=12, verbose=0, callbacks=[refresh])
        assert abs(exponent() - 1) < 0.75 * abs(before - 1)

    def test_network_with_skip_connections(self, data):
        """Pieces of a ResNet: convolution, normalization, sum, activation."""

        def block(x, filters, name):
            skip = layers.Conv2D(filters, 1)(x)
            x = layers.Conv2D(filters, 3, padding="same")(x)
            x = layers.Add()([skip, layers.BatchNormalization()(x)])
            return layers.Activation("relu", name=name)(x)

        x, y = data
        inputs = keras.Input((None, None, 2))  # images of any size
        outputs = block(block(inputs, 8, "early"), 12, "late")
        outputs = layers.Dense(4)(layers.GlobalAveragePooling2D()(outputs))
        plain = keras.Model(inputs, outputs)
        model = kp.add_spectral_regularizer(
            plain, ["early", "late"], tau=[2, 3], reduction="channels"
        )
        compiled(model, jit_compile=JIT_COMPILE)
        refresh = kp.EigenbasisRefresh(x, batch_size=20)
        history = model.fit(
            x, y, batch_size=20, epochs=2, verbose=0, callbacks=[refresh]
        ).history
        assert np.all(np.isfinite(history["loss"]))
        widths = {name: len(s.eigenvalues) for name, s in refresh.spectra.items()}
        assert widths == {"early": 8, "late": 12}

    @pytest.mark.parametrize("reduction", REDUCTIONS)
    def test_is_in_configs_and_files(self, data, reduction, tmp_path):
        model = kp.add_spectral_regularizer(
            convolutional_model(), "map", tau=2, reduction=reduction
        )
        kp.refresh_eigenbasis(model, data[0])
        model.save(tmp_path / "model.keras")
        loaded = keras.saving.load_model(tmp_path / "model.keras")
        kp.refresh_eigenbasis(loaded, data[0])
        regularizer = loaded.get_layer("map").activity_regularizer
        assert regularizer.reduction == regularizer.get_config()["reduction"]
        assert regularizer.reduction == reduction
        np.testing.assert_allclose(
            loaded.evaluate(*data, verbose=0), model.evaluate(*data, verbose=0), 1e-5
        )

    @pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
    @pytest.mark.parametrize("reduction", ["channels", "mean"])
    def test_in_mixed_precision_it_is_float32(self, data, reduction, policy):
        before = keras.config.dtype_policy()
        keras.config.set_dtype_policy(policy)
        try:
            model = kp.add_spectral_regularizer(
                convolutional_model(), "map", tau=2, reduction=reduction
            )
        finally:
            keras.config.set_dtype_policy(before)
        spectrum = kp.refresh_eigenbasis(model, data[0])["map"]
        rows = samples(activity_of(model, data[0]), reduction)  # rounded
        expected = eigenvalues(rows)
        np.testing.assert_allclose(
            spectrum.eigenvalues, expected, rtol=1e-3, atol=1e-6 * expected[0]
        )
        model(data[0], training=True)
        [penalty] = [loss for loss in model.losses if float(loss) > 0]
        assert keras.backend.standardize_dtype(penalty.dtype) == "float32"
        np.testing.assert_allclose(
            float(penalty), reference.penalty(expected, 1.0, 2, 0.5), rtol=1e-3
        )

    @pytest.mark.parametrize("regularized", [False, True])
    def test_a_layer_that_is_of_another_length_in_another_model(self, regularized):
        regularizer = kp.SpectralActivityRegularizer(tau=3) if regularized else None
        layer = hidden(4, regularizer)
        shorter = keras.Input((2, 5))
        keras.Model(shorter, layer(shorter))  # where it has 8 units
        model = compiled(network(layer, layers.Flatten(), shape=(8, 5)))
        x, y = gaussian(200, (8, 5))
        refresh = kp.EigenbasisRefresh() if regularized else None
        model.fit(x, y, batch_size=20, epochs=1, verbose=0, callbacks=refresh)
        spectrum = kp.measure_spectrum(model, x, "hidden", fit_range=(3, 30))
        assert len(spectrum.eigenvalues) == 32

    def test_masks_are_ignored_and_passed_on(self, recwarn):
        symbols = np.random.default_rng(0).integers(3, size=(50, 4))
        embedded = layers.Embedding(3, 6, mask_zero=True)(symbols)
        regularizer = kp.SpectralActivityRegularizer(tau=2, reduction="channels")
        regularized = layers.Identity(activity_regularizer=regularizer)(embedded)
        np.testing.assert_array_equal(to_numpy(mask_of(regularized)), symbols != 0)
        assert not [each for each in recwarn if "mask" in str(each.message)]


class TestDataFormat:
    def test_a_layer_that_departs_from_the_configured_one_is_refused(self):
        model = keras.Sequential(
            [
                keras.Input((2, 8, 8)),
                layers.AveragePooling2D(2, data_format="channels_first", name="pool"),
            ]
        )
        text = "'channels_last' for reduction='channels' .*'pool' with data_format='ch"
        with pytest.raises(ValueError, match=text):
            kp.add_spectral_regularizer(model, "pool", tau=1, reduction="channels")
        with pytest.raises(ValueError, match=text):
            kp.measure_spectrum(
                model, np.ones((4, 2, 8, 8)), "pool", reduction="channels"
            )
        kp.add_spectral_regularizer(model, "pool", tau=1)


class TestMemory:
    """(units, units) arrays that cannot fit are refused before they are made."""

    @pytest.fixture
    def available(self, monkeypatch):
        def set_to(value):
            monkeypatch.setattr(memory, "available_bytes", lambda: value)

        return set_to

    @pytest.fixture
    def no_allocation(self, monkeypatch):
        def refuse(*_):
            raise AssertionError("allocated")

        monkeypatch.setattr(Covariance, "update", refuse)

    TEXT = (
        r"layer 'map' \(216 units\). .* at most 0.0 GiB, which are available. "
        r"Received: about 0.0 GiB. .*reduction=\"channels\""
    )

    def test_by_every_way_in(self, data, available, no_allocation):
        model = convolutional_model()
        regularized = kp.add_spectral_regularizer(model, "map", tau=2)
        available(40 * 216**2 - 1)
        for call in (
            lambda: kp.add_spectral_regularizer(model, "map", tau=2),
            lambda: kp.add_spectral_regularizer(model, "map", tau=2, exact=True),
            lambda: kp.refresh_eigenbasis(regularized, data[0]),
            lambda: kp.refresh_eigenbasis(regularized),
            lambda: kp.measure_spectrum(model, data[0], "map"),
            lambda: kp.sensitivity_maps(model, data[0], "map", (1,)),
        ):
            with pytest.raises(ValueError, match=self.TEXT):
                call()

    def test_too_wide_for_lapack(self, data, monkeypatch, no_allocation):
        model = convolutional_model()
        regularized = kp.add_spectral_regularizer(model, "map", tau=2)
        monkeypatch.setattr(memory, "MOST_UNITS", 215)
        match = "wide for LAPACK: layer 'map'. Expected at most 215 units.*: 216 units"
        for call in (
            lambda: kp.add_spectral_regularizer(model, "map", tau=2),
            lambda: kp.refresh_eigenbasis(regularized),
            lambda: kp.measure_spectrum(model, data[0], "map"),
        ):
            with pytest.raises(ValueError, match=match):
                call()

    def test_work_space_of_lapack_fits_its_integers(self):
        units = memory.MOST_UNITS
        assert (
            1 + 6 * units + 2 * units**2
            < 2**31
            <= 1 + 6 * (units + 1) + 2 * (units + 1) ** 2
        )

    def test_what_fits_passes(self, data, available):
        available(40 * 216**2)
        kp.measure_spectrum(convolutional_model(), data[0], "map")
        available(None)  # a system that does not say
        kp.measure_spectrum(convolutional_model(), data[0], "map")

    @pytest.mark.parametrize("reduction", ["channels", "mean"])
    def test_a_reduction_helps(self, data, available, reduction):
        available(40 * 6**2)
        model = kp.add_spectral_regularizer(
            convolutional_model(), "map", tau=2, reduction=reduction
        )
        kp.refresh_eigenbasis(model, data[0])

    def test_layers_of_one_pass_are_added_up(self, available):
        model = keras.Sequential(
            [keras.Input((3,)), layers.Dense(20, name="a"), layers.Dense(10, name="b")]
        )
        assert memory.needed_bytes([20, 10]) == 20 * 500 + 20 * 400
        available(20 * 500 + 20 * 400 - 1)
        with pytest.raises(ValueError, match=r"layers 'a' \(20 units\), 'b' \(10 un"):
            kp.add_spectral_regularizer(model, ["a", "b"], tau=2)
        kp.add_spectral_regularizer(model, "a", tau=2)

    def test_a_layer_whose_width_only_a_call_tells(
        self, data, available, no_allocation
    ):
        available(40 * 216**2 - 1)
        with pytest.raises(ValueError, match=self.TEXT):
            kp.measure_spectrum(Subclassed(feature_map(6)), data[0], "map")

    def test_feature_maps_of_resnet50_are_too_wide_anywhere(self, available):
        available(2**40)
        inputs = keras.Input((56, 56, 64))
        outputs = layers.Conv2D(256, 1, name="wide")(inputs)
        model = keras.Model(inputs, outputs)
        with pytest.raises(
            ValueError, match=r"'wide' \(802,816 units\)\..* 1,024.0 GiB, .* 24,010.0 G"
        ):
            kp.add_spectral_regularizer(model, "wide")
        kp.add_spectral_regularizer(model, "wide", reduction="channels")

    def test_available_is_what_the_system_says(self):
        if not hasattr(os, "sysconf"):
            pytest.skip("a system that does not say how much memory it has")
        installed = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        assert 2**20 < memory.available_bytes() <= installed

    def test_available_within_the_limits_of_control_groups(self, tmp_path):
        def group(folder, **files):
            folder = tmp_path / "sys/fs/cgroup" / folder
            folder.mkdir(parents=True, exist_ok=True)
            for name, text in files.items():
                (folder / f"memory.{name}").write_text(text)

        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/self/cgroup").write_text("0::/jobs/one\n")
        stat = "anon 5\ninactive_file 30\n"
        assert memory._group_memory(tmp_path) is None
        group("jobs/one", max="max\n", current="900\n", stat=stat)
        assert memory._group_memory(tmp_path) is None
        group("jobs", max="1000\n", current="950\n", stat=stat)
        assert memory._group_memory(tmp_path) == 80
        group("jobs/one", max="940\n")
        assert memory._group_memory(tmp_path) == 70
