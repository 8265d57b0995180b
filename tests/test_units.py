"""What the units of an activity are, from the penalty to the measurements."""

import keras
import numpy as np
import pytest
import reference
from backend import BACKEND, to_numpy
from datasets import gaussian
from keras import layers, ops
from models import compiled, feature_map, hidden, network

import keras_powerlaw as kp
from keras_powerlaw.keras_internals import mask_of
from keras_powerlaw.units import count_units, to_samples

REDUCTIONS = ["flatten", "channels", "mean"]
# Of what has positions and channels: image, volume, sequence.
SHAPES = {"2-D": (4, 3, 2, 5), "3-D": (4, 2, 3, 2, 5), "sequence": (4, 6, 5)}


@pytest.fixture(params=["channels_last", "channels_first"])
def data_format(request):
    before = keras.config.image_data_format()
    keras.config.set_image_data_format(request.param)
    yield request.param
    keras.config.set_image_data_format(before)


class TestSamples:
    @pytest.mark.parametrize("reduction", REDUCTIONS)
    @pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
    def test_are_those_of_numpy(self, shape, reduction, data_format):
        activity = np.random.default_rng(0).normal(size=shape)
        expected = reference.samples(activity, reduction)
        if data_format == "channels_first" and len(shape) > 3:
            activity = np.moveaxis(activity, -1, 1)
        if reduction == "flatten":  # the paper's: the order of its units is the array's
            expected = activity.reshape(len(activity), -1)
        tensor = ops.convert_to_tensor(activity, "float32")
        np.testing.assert_allclose(
            to_numpy(to_samples(tensor, reduction)), expected, atol=1e-6
        )
        assert count_units(activity.shape, reduction) == expected.shape[1]

    @pytest.mark.parametrize("reduction", REDUCTIONS)
    @pytest.mark.parametrize("shape", [(4, 7), (4,)])
    def test_are_the_examples_where_there_are_no_positions(self, shape, reduction):
        activity = np.random.default_rng(0).normal(size=shape).astype("float32")
        found = to_numpy(to_samples(ops.convert_to_tensor(activity), reduction))
        np.testing.assert_array_equal(found.ravel(), activity.ravel())

    def test_need_no_known_number_of_positions_unless_they_are_flattened(self):
        counts = [count_units((None, None, None, 8), each) for each in REDUCTIONS]
        assert counts == [None, 8, 8]

    def test_of_one_example_have_a_covariance_if_they_are_its_positions(self):
        one = ops.convert_to_tensor(gaussian(1, (4, 4, 5))[0])
        for reduction, is_penalized in (("channels", True), ("mean", False)):
            regularizer = kp.SpectralActivityRegularizer(
                tau=2, exact=True, reduction=reduction
            )
            assert (float(regularizer.penalty(one)) > 0) == is_penalized


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_spectrum_basis_loss_and_file_are_of_the_same_units(reduction, tmp_path):
    data = gaussian(60, (6, 6, 2))
    model = compiled(network(feature_map(6), layers.Flatten(), shape=(6, 6, 2)))
    map_of = keras.Model(model.inputs, model.get_layer("map").output)
    samples = reference.samples(to_numpy(map_of(data[0])), reduction)
    expected = reference.eigenvalues(samples)
    measured = kp.measure_spectrum(
        model, data[0], "map", reduction=reduction, batch_size=7
    )
    tolerance = 1e-6 * expected[0]
    np.testing.assert_allclose(measured.eigenvalues, expected, atol=tolerance)

    kp.add_spectral_regularizer(model, "map", 1.5, 2, 3.0, reduction=reduction)
    refreshed = kp.refresh_eigenbasis(model, data[0], batch_size=25)["map"]
    np.testing.assert_allclose(refreshed.eigenvalues, expected, atol=tolerance)
    basis = to_numpy(model.get_layer("map").activity_regularizer.basis)
    along = reference.variances(samples, basis)
    np.testing.assert_allclose(along, expected[1:], atol=tolerance)
    model(data[0])
    penalty = reference.penalty(np.r_[expected[0], along], 1.5, 2, 3.0)
    np.testing.assert_allclose(float(sum(model.losses)), penalty, rtol=1e-4)

    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    kp.refresh_eigenbasis(loaded, data[0])
    assert loaded.get_layer("map").activity_regularizer.reduction == reduction
    np.testing.assert_allclose(
        loaded.evaluate(*data, verbose=0), model.evaluate(*data, verbose=0), 1e-5
    )


def test_a_network_with_skip_connections_takes_images_of_any_size():
    """Pieces of a ResNet: convolution, normalization, sum, activation."""

    def block(x, filters, name):
        skip = layers.Conv2D(filters, 1)(x)
        x = layers.Conv2D(filters, 3, padding="same")(x)
        x = layers.Add()([skip, layers.BatchNormalization()(x)])
        return layers.Activation("relu", name=name)(x)

    inputs = keras.Input((None, None, 2))
    outputs = block(block(inputs, 8, "early"), 12, "late")
    outputs = layers.Dense(4)(layers.GlobalAveragePooling2D()(outputs))
    model = kp.add_spectral_regularizer(
        keras.Model(inputs, outputs),
        ["early", "late"],
        tau=[2, 3],
        reduction="channels",
    )
    compiled(model, jit_compile=BACKEND == "jax")  # XLA is slower to compile than it
    data = gaussian(60, (8, 8, 2))
    refresh = kp.EigenbasisRefresh(data[0], batch_size=20)
    history = model.fit(*data, batch_size=20, verbose=0, callbacks=[refresh]).history
    assert np.all(np.isfinite(history["loss"]))
    widths = {name: len(each.eigenvalues) for name, each in refresh.spectra.items()}
    assert widths == {"early": 8, "late": 12}


@pytest.mark.parametrize("is_regularized", [False, True])
def test_a_layer_may_be_of_another_length_in_another_model(is_regularized):
    regularizer = kp.SpectralActivityRegularizer(tau=3) if is_regularized else None
    layer = hidden(4, regularizer)
    shorter = keras.Input((2, 5))
    keras.Model(shorter, layer(shorter))  # where it has 8 units
    model = compiled(network(layer, layers.Flatten(), shape=(8, 5)))
    x, y = gaussian(200, (8, 5))
    refresh = [kp.EigenbasisRefresh()] if is_regularized else []
    model.fit(x, y, batch_size=20, verbose=0, callbacks=refresh)
    spectrum = kp.measure_spectrum(model, x, "hidden", fit_range=(3, 30))
    assert len(spectrum.eigenvalues) == 32


def test_masks_are_ignored_and_passed_on(recwarn):
    symbols = np.random.default_rng(0).integers(3, size=(50, 4))
    embedded = layers.Embedding(3, 6, mask_zero=True)(symbols)
    regularizer = kp.SpectralActivityRegularizer(tau=2, reduction="channels")
    regularized = layers.Identity(activity_regularizer=regularizer)(embedded)
    np.testing.assert_array_equal(to_numpy(mask_of(regularized)), symbols != 0)
    assert not [each for each in recwarn if "mask" in str(each.message)]


def test_a_layer_that_departs_from_the_configured_data_format_is_refused():
    pool = layers.AveragePooling2D(2, data_format="channels_first", name="pool")
    model = keras.Sequential([keras.Input((2, 8, 8)), pool])
    text = "'channels_last' for reduction='channels' .*'pool' with data_format='ch"
    with pytest.raises(ValueError, match=text):
        kp.add_spectral_regularizer(model, "pool", tau=1, reduction="channels")
    with pytest.raises(ValueError, match=text):
        kp.measure_spectrum(model, np.ones((4, 2, 8, 8)), "pool", reduction="channels")
    kp.add_spectral_regularizer(model, "pool", tau=1)
