"""∂λₙ/∂x against differences of eigenvalues in NumPy float64, and closed forms."""

import keras
import numpy as np
import pytest
import reference
from datasets import Batches, gaussian
from keras import layers
from models import feature_map, hidden, network

import keras_powerlaw as kp

IMAGES, SIDE, UNITS = 30, 3, 6
COMPONENTS = (1, 2, 5)


@pytest.fixture
def model():
    return network(layers.Flatten(), hidden(UNITS), shape=(SIDE, SIDE, 1))


@pytest.fixture
def x():
    return gaussian(IMAGES, (SIDE, SIDE, 1))[0]


@pytest.mark.parametrize("batch_size", [IMAGES, 7], ids=["one batch", "batches of 7"])
def test_is_the_derivative_of_the_eigenvalues(model, x, batch_size):
    kernel, bias = map(np.float64, model.get_layer("hidden").get_weights())
    rows = np.array(COMPONENTS) - 1

    def eigenvalues(x):
        activity = np.tanh(x.reshape(len(x), -1) @ kernel + bias)
        return reference.eigenvalues(activity)[rows]

    found = kp.sensitivity_maps(
        model, x, "hidden", COMPONENTS, images=IMAGES, batch_size=batch_size
    )
    assert found.components == COMPONENTS
    assert found.maps.shape == (3, IMAGES, SIDE, SIDE, 1)
    np.testing.assert_allclose(found.eigenvalues, eigenvalues(x), rtol=1e-5)
    expected = np.empty(found.maps.shape)
    for position in np.ndindex(x.shape):  # one pixel of one image at a time
        pixel = np.zeros(x.shape)
        pixel[position] = 1
        expected[(slice(None), *position)] = reference.directional_derivative(
            eigenvalues, np.float64(x), pixel
        )
    for n in range(3):
        scale = np.abs(expected[n]).max()
        np.testing.assert_allclose(found.maps[n], expected[n], atol=1e-4 * scale)
        total = expected[n].sum(axis=0)
        np.testing.assert_allclose(found.total[n], total, atol=1e-3 * scale)


@pytest.mark.parametrize("reduction", ["channels", "mean"])
def test_is_that_of_the_samples_that_a_reduction_takes(reduction):
    model, x = network(feature_map(6), shape=(8, 8, 2)), gaussian(60, (8, 8, 2))[0]
    kernel, bias = map(np.float64, model.get_layer("map").get_weights())

    def eigenvalue(x, n):
        patches = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))
        activity = np.tanh(np.einsum("bhwcij,ijco->bhwo", patches, kernel) + bias)
        return reference.eigenvalues(reference.samples(activity, reduction))[n - 1]

    found = kp.sensitivity_maps(
        model, x, "map", (1, 3), reduction=reduction, images=60, batch_size=25
    )
    for n, gradient in zip(found.components, found.maps, strict=True):
        reference.assert_is_gradient(
            gradient,
            lambda x, n=n: eigenvalue(x, n),
            np.float64(x),
            np.random.default_rng(4),
        )


def test_of_a_linear_layer_has_a_closed_form(x):
    """For h = Wᵀx the derivative is 2/(M − 1) (vₙ · Wᵀ(x − x̄)) W vₙ."""
    model = network(layers.Flatten(), shape=(SIDE, SIDE, 1), classes=UNITS)
    kernel = np.float64(model.get_layer("logits").get_weights()[0])
    h = np.float64(x).reshape(IMAGES, -1) @ kernel
    vectors = reference.eigenvectors(h)
    found = kp.sensitivity_maps(model, x, "logits", (1, 4), images=IMAGES)
    for maps, total, n in zip(found.maps, found.total, (1, 4), strict=True):
        v = vectors[:, n - 1]
        expected = 2 / (IMAGES - 1) * np.outer((h - h.mean(0)) @ v, kernel @ v)
        np.testing.assert_allclose(maps.reshape(IMAGES, -1), expected, atol=1e-5)
        # In a linear layer, moving all images together changes no covariance.
        np.testing.assert_allclose(total, 0, atol=1e-5)


def test_of_a_deep_network_is_the_change_of_its_spectrum(x):
    norm = layers.BatchNormalization()
    convolution = layers.Conv2D(4, 2, activation="tanh")
    parts = [convolution, layers.MaxPooling2D(), norm, layers.Flatten(), hidden(UNITS)]
    model = network(*parts, shape=(SIDE, SIDE, 1))
    norm.moving_variance.assign([0.5] * 4)
    found = kp.sensitivity_maps(model, x, "hidden", (1, 3), images=1)
    # Differences of float32 networks: one large step along the map itself.
    for n, gradient in zip(found.components, found.maps[:, 0], strict=True):
        direction = gradient / np.abs(gradient).max()

        def eigenvalue(first, n=n):
            moved = np.concatenate([first[np.newaxis], x[1:]])
            return kp.measure_spectrum(model, moved, "hidden").eigenvalues[n - 1]

        slope = reference.directional_derivative(eigenvalue, x[0], direction, 0.02)
        assert slope == pytest.approx(np.sum(gradient * direction), rel=0.02)


def test_keeps_the_maps_of_the_first_images_of_any_stream_of_batches(model, x):
    every = kp.sensitivity_maps(model, x, "hidden", COMPONENTS, images=IMAGES)
    for images, data in ((0, x), (9, x), (9, Batches(x, np.zeros(IMAGES), size=10))):
        some = kp.sensitivity_maps(
            model, data, "hidden", COMPONENTS, images=images, batch_size=7
        )
        assert some.maps.shape[1] == images
        np.testing.assert_allclose(some.maps, every.maps[:, :images], atol=1e-6)
        np.testing.assert_allclose(some.total, every.total, atol=1e-5)


def test_is_the_same_with_a_penalty_and_for_integer_pixels(model, x):
    pixels = (50 * x).astype("int32")
    expected = kp.sensitivity_maps(model, pixels.astype("float32"), "hidden", (1,))
    kp.add_spectral_regularizer(model, "hidden", tau=2)
    found = kp.sensitivity_maps(model, pixels, "hidden", (1,))
    np.testing.assert_allclose(found.total, expected.total, atol=1e-6)


def test_components_have_to_be_in_the_spectrum(model, x):
    with pytest.raises(ValueError, match="Expected indices of at most 6"):
        kp.sensitivity_maps(model, x, "hidden", (1, UNITS + 1))
    with pytest.raises(ValueError, match="Expected indices of at most 4"):
        kp.sensitivity_maps(model, x[:5], "hidden", (1, 5))


def test_a_model_with_several_inputs_is_refused():
    one, two = keras.Input((2,)), keras.Input((2,))
    model = keras.Model([one, two], layers.Add(name="sum")([one, two]))
    with pytest.raises(ValueError, match="Expected a model with one input"):
        kp.sensitivity_maps(model, [gaussian(10, (2,))[0]] * 2, "sum", (1,))
