"""∂λₙ/∂x against differences of eigenvalues in NumPy float64."""

import keras
import numpy as np
import pytest
from datasets import Batches, gaussian
from keras import layers
from models import hidden, network

import keras_powerlaw as kp

IMAGES, SIDE, UNITS = 30, 3, 6
COMPONENTS = (1, 2, 5)


@pytest.fixture
def model():
    return network(layers.Flatten(), hidden(UNITS), shape=(SIDE, SIDE, 1))


@pytest.fixture
def x():
    return gaussian(IMAGES, (SIDE, SIDE, 1))[0]


def eigenvalues(weights, x):
    kernel, bias = (np.asarray(weight, "float64") for weight in weights)
    activity = np.tanh(x.reshape(len(x), -1) @ kernel + bias)
    return np.linalg.eigvalsh(np.cov(activity, rowvar=False))[::-1]


def differences(function, x, step=1e-5):
    """∂function/∂x by central differences, one pixel of one image at a time."""
    x = x.astype("float64")
    result = np.empty((len(function(x)), *x.shape))
    for position in np.ndindex(x.shape):
        above, below = x.copy(), x.copy()
        above[position] += step
        below[position] -= step
        change = function(above) - function(below)
        result[(slice(None), *position)] = change / (2 * step)
    return result


@pytest.mark.parametrize("batch_size", [IMAGES, 7], ids=["one batch", "batches of 7"])
def test_is_the_derivative_of_the_eigenvalues(model, x, batch_size):
    weights = model.get_layer("hidden").get_weights()
    found = kp.sensitivity_maps(
        model, x, "hidden", COMPONENTS, images=IMAGES, batch_size=batch_size
    )
    rows = np.array(COMPONENTS) - 1
    expected = differences(lambda x: eigenvalues(weights, x)[rows], x)
    assert found.components == COMPONENTS
    assert found.maps.shape == expected.shape == (3, IMAGES, SIDE, SIDE, 1)
    for n in range(3):
        scale = np.abs(expected[n]).max()
        np.testing.assert_allclose(found.maps[n], expected[n], atol=1e-4 * scale)
        np.testing.assert_allclose(
            found.total[n], expected[n].sum(axis=0), atol=1e-3 * scale
        )
    np.testing.assert_allclose(
        found.eigenvalues, eigenvalues(weights, x)[rows], rtol=1e-5
    )


def test_linear_layer_in_closed_form(x):
    """For h = Wᵀx the derivative is 2/(M − 1) (vₙ · Wᵀ(x − x̄)) W vₙ."""
    model = keras.Sequential(
        [keras.Input((SIDE, SIDE, 1)), layers.Flatten(), layers.Dense(UNITS, name="h")]
    )
    kernel = model.get_layer("h").get_weights()[0].astype("float64")
    flat = x.reshape(IMAGES, -1).astype("float64")
    h = flat @ kernel
    vectors = np.linalg.eigh(np.cov(h, rowvar=False))[1][:, ::-1]
    found = kp.sensitivity_maps(model, x, "h", (1, 4), images=IMAGES)
    for row, n in enumerate((1, 4)):
        v = vectors[:, n - 1]
        projected = (h - h.mean(0)) @ v
        expected = 2 / (IMAGES - 1) * np.outer(projected, kernel @ v)
        np.testing.assert_allclose(
            found.maps[row].reshape(IMAGES, -1), expected, atol=1e-5
        )
        # In a linear layer, moving all images together changes no covariance.
        np.testing.assert_allclose(found.total[row], 0, atol=1e-5)


def test_deep_network_with_pooling_and_normalization(x):
    model = keras.Sequential(
        [
            keras.Input((SIDE, SIDE, 1)),
            layers.Conv2D(4, 2, activation="tanh"),
            layers.MaxPooling2D(),
            layers.BatchNormalization(),
            layers.Flatten(),
            layers.Dense(UNITS, activation="tanh", name="hidden"),
        ]
    )
    model.get_layer("batch_normalization").moving_variance.assign([0.5] * 4)
    found = kp.sensitivity_maps(model, x, "hidden", (1, 3), images=1)

    # Differences of float32 networks: one large step along the map itself.
    for n, gradient in zip(found.components, found.maps[:, 0], strict=True):
        direction = gradient / np.abs(gradient).max()
        above, below = x.copy(), x.copy()
        above[0] += 0.02 * direction
        below[0] -= 0.02 * direction
        change = [
            kp.measure_spectrum(model, moved, "hidden").eigenvalues[n - 1]
            for moved in (above, below)
        ]
        assert (change[0] - change[1]) / 0.04 == pytest.approx(
            np.sum(gradient * direction), rel=0.02
        )


def test_keeps_the_maps_of_the_first_images_only(model, x):
    every = kp.sensitivity_maps(model, x, "hidden", COMPONENTS, images=IMAGES)
    for images in (0, 9):
        some = kp.sensitivity_maps(
            model, x, "hidden", COMPONENTS, images=images, batch_size=7
        )
        assert some.maps.shape[1] == images
        np.testing.assert_allclose(some.maps, every.maps[:, :images], atol=1e-6)
        np.testing.assert_allclose(some.total, every.total, atol=1e-5)


def test_takes_any_finite_stream_of_batches(model, x):
    batches = Batches(x, np.zeros(IMAGES), size=10)
    expected = kp.sensitivity_maps(model, x, "hidden", COMPONENTS)
    found = kp.sensitivity_maps(model, batches, "hidden", COMPONENTS)
    np.testing.assert_allclose(found.total, expected.total, atol=1e-5)


def test_regularized_model_and_integer_pixels(model, x):
    regularized = kp.add_spectral_regularizer(model, "hidden", tau=2)
    pixels = (50 * x).astype("int32")
    expected = kp.sensitivity_maps(model, pixels.astype("float32"), "hidden", (1,))
    found = kp.sensitivity_maps(regularized, pixels, "hidden", (1,))
    np.testing.assert_allclose(found.total, expected.total, atol=1e-6)


@pytest.mark.parametrize("components", [(), (0,), (2, 1), (1, 1), (1.5,), 3])
def test_components_are_increasing_indices(model, x, components):
    with pytest.raises(ValueError, match="`components`. Expected one or more incr"):
        kp.sensitivity_maps(model, x, "hidden", components)


def test_components_have_to_be_in_the_spectrum(model, x):
    with pytest.raises(ValueError, match="Expected indices of at most 6"):
        kp.sensitivity_maps(model, x, "hidden", (1, UNITS + 1))
    with pytest.raises(ValueError, match="Expected indices of at most 4"):
        kp.sensitivity_maps(model, x[:5], "hidden", (1, 5))


@pytest.mark.parametrize("images", [-1, 1.5, True])
def test_images_is_a_count(model, x, images):
    with pytest.raises(ValueError, match="`images`. Expected an integer of at least 0"):
        kp.sensitivity_maps(model, x, "hidden", (1,), images=images)


def test_model_with_several_inputs(x):
    a, b = keras.Input((2,)), keras.Input((2,))
    model = keras.Model([a, b], layers.Add(name="sum")([a, b]))
    data = [np.random.default_rng(0).normal(size=(10, 2)).astype("f4")] * 2
    with pytest.raises(ValueError, match="Expected a model with one input"):
        kp.sensitivity_maps(model, data, "sum", (1,))
