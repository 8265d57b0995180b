"""A model as a classifier: its logits, its losses, and its compiled programs."""

import re

import keras
import numpy as np
import pytest
from backend import to_numpy
from models import hidden
from problems import classifier

from keras_powerlaw.robustness.classifier import LOSSES

PIXELS, CLASSES = 12, 3


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).random((60, PIXELS), "float32")


def dense(*last, units=CLASSES, activation=None):
    """One dense layer with always the same weights, and what comes after it."""
    rng = np.random.default_rng(2)
    layer = keras.layers.Dense(units, activation=activation)
    model = keras.Sequential([keras.Input((PIXELS,)), layer, *last])
    model.set_weights([rng.normal(size=(PIXELS, units)), rng.normal(size=units)])
    return model


def operation(function, **options):
    inputs = keras.Input((PIXELS,))
    return keras.Model(inputs, function(dense(**options)(inputs)))


ENDINGS = {
    "activation": lambda name, **options: dense(activation=name, **options),
    "Activation layer": lambda name, **options: dense(
        keras.layers.Activation(name), **options
    ),
    "operation": lambda name, **options: operation(getattr(keras.ops, name), **options),
    "in a nested model": lambda name, **options: keras.Sequential(
        [keras.Input((PIXELS,)), dense(activation=name, **options)]
    ),
    "after a nested model": lambda name, **options: keras.Sequential(
        [dense(**options), keras.layers.Activation(name)]
    ),
}


class TestLogits:
    @pytest.mark.parametrize("ending", ENDINGS)
    def test_a_softmax_at_the_end_is_left_out(self, images, ending):
        model = ENDINGS[ending]("softmax")
        config, outputs = model.get_config(), to_numpy(model(images))
        expected = images @ np.array(model.get_weights()[0]) + model.get_weights()[1]
        logits = classifier(model, images)(images)
        np.testing.assert_allclose(to_numpy(logits), expected, rtol=1e-4, atol=1e-5)
        # The model itself keeps it.
        assert model.get_config() == config
        np.testing.assert_array_equal(to_numpy(model(images)), outputs)

    def test_so_is_a_softmax_layer(self, images):
        model = dense(keras.layers.Softmax())
        logits = to_numpy(classifier(model, images)(images))
        np.testing.assert_allclose(logits, to_numpy(dense()(images)), atol=1e-6)

    @pytest.mark.parametrize("ending", ENDINGS)
    def test_one_sigmoid_unit_is_two_classes(self, images, ending):
        model = ENDINGS[ending]("sigmoid", units=1)
        kernel, bias = model.get_weights()
        of_two = classifier(model, images)
        logits = to_numpy(of_two(images))
        assert of_two.classes == 2
        np.testing.assert_array_equal(logits[:, 0], 0)
        np.testing.assert_allclose(
            logits[:, 1:], images @ kernel + bias, rtol=1e-4, atol=1e-5
        )

    def test_a_shared_layer_keeps_its_other_softmax(self, images):
        """Only the last of the calls is without it."""
        inputs = keras.Input((CLASSES,))
        shared = keras.layers.Dense(CLASSES, activation="softmax")
        model = keras.Model(inputs, shared(shared(inputs)))
        kernel, bias = shared.get_weights()
        x = images[:, :CLASSES]
        first = np.exp(x @ kernel + bias)
        first /= first.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(
            to_numpy(classifier(model, x)(x)),
            first @ kernel + bias,
            rtol=1e-4,
            atol=1e-5,
        )

    def test_an_activation_within_a_layer_stays(self):
        """An LSTM has the softmax in every step: its outputs are the logits."""
        lstm = keras.layers.LSTM(3, activation="softmax")
        model = keras.Sequential([keras.Input((4, 3)), lstm])
        x = np.random.default_rng(0).random((10, 4, 3)).astype("float32")
        np.testing.assert_allclose(
            to_numpy(classifier(model, x)(x)), to_numpy(model(x)), rtol=1e-5
        )

    @pytest.mark.parametrize(
        "outputs, message",
        [
            (lambda h: [h, h], "a model with one output"),
            (
                keras.layers.Dense(1),
                "or one that ends in a single sigmoid unit (if the output is the logit "
                "of such a unit, give `keras.Sequential([model, "
                'keras.layers.Activation("sigmoid")])`). Received: model=outputs of ',
            ),
            (keras.layers.Reshape((3, 4)), "and shape (60, 3, 4)"),
            (
                lambda h: keras.ops.exp(h) / keras.ops.sum(keras.ops.exp(h), 1, True),
                "a model that returns logits; give the model without its softmax",
            ),
        ],
    )
    def test_unsuitable_outputs_are_refused(self, images, outputs, message):
        inputs = keras.Input((PIXELS,))
        model = keras.Model(inputs, outputs(hidden(PIXELS)(inputs)))
        with pytest.raises(ValueError, match="^Invalid value for argument `model`. "):
            classifier(model, images)
        with pytest.raises(ValueError, match=re.escape(message)):
            classifier(model, images)


class TestLosses:
    @pytest.mark.parametrize("classes", [2, 3, 10])
    def test_are_those_of_their_papers(self, classes):
        rng = np.random.default_rng(0)
        z = rng.normal(size=(20, classes)).astype("float32") * 5
        y = rng.integers(classes, size=20)
        margins = []
        for row, label in zip(z.astype(float), y, strict=True):
            ordered = np.sort(row)[::-1]
            margin = max(np.delete(row, label)) - row[label]
            margins.append(
                margin if classes == 2 else margin / (ordered[0] - ordered[2])
            )
        entropies = np.log(np.exp(z.astype(float)).sum(axis=1)) - z[np.arange(20), y]
        logits, targets = map(keras.ops.convert_to_tensor, (z, y))
        for name, expected in (("dlr", margins), ("ce", entropies)):
            found = to_numpy(LOSSES[name](logits, targets))
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


class TestPrograms:
    def test_predict_for_any_number_of_images_with_the_weights_of_now(self, images):
        model = dense()
        predict = classifier(model, images).predict
        for factor, count in ((1, 60), (2, 7), (3, 1)):
            model.set_weights([factor * weight for weight in dense().get_weights()])
            np.testing.assert_allclose(
                predict(images[:count]),
                factor * to_numpy(dense()(images[:count])),
                rtol=1e-5,
                atol=1e-5,
            )
