"""What does not work, and what docs/limits.md says to do instead."""

import keras
import pytest
from backend import only
from datasets import gaussian
from models import compiled, hidden, network

import keras_powerlaw as kp


@only("tensorflow", why="TensorFlow Lite converts its graphs")
def test_tensorflow_lite_has_no_triangular_solve():
    import tensorflow as tf

    def converter(*parts):
        return tf.lite.TFLiteConverter.from_keras_model(network(*parts))

    regularizer = kp.SpectralActivityRegularizer(tau=2)
    assert converter(hidden(8, regularizer)).convert()
    whitening = converter(hidden(8), kp.WhiteningLayer())
    with pytest.raises(Exception, match="MatrixTriangularSolve"):
        whitening.convert()
    whitening.target_spec.supported_ops = [
        tf.lite.OpsSet.TFLITE_BUILTINS,
        tf.lite.OpsSet.SELECT_TF_OPS,
    ]
    assert whitening.convert()


class TestRematerialization:
    @only("tensorflow", "jax", why="its steps are not compiled")
    def test_activations_work_in_a_copy_too(self):
        x, y = gaussian(60)
        with keras.RematScope(mode="activations"):
            model = compiled(network(hidden(9)))
        copy = kp.add_spectral_regularizer(model, "hidden", tau=2)
        assert copy.get_layer("hidden")._remat_mode.mode == "activations"
        copy.fit(x, y, verbose=0, callbacks=[kp.EigenbasisRefresh(x)])

    @only("tensorflow", why="there, Keras calls no dense layer in it")
    @pytest.mark.parametrize(
        "regularizer", [None, kp.SpectralActivityRegularizer(tau=2)]
    )
    def test_full_fails_with_any_dense_layer(self, regularizer):
        x, y = gaussian(60)
        with keras.RematScope(mode="full"):
            model = compiled(network(hidden(9, regularizer)))
        callbacks = [kp.EigenbasisRefresh(x)] if regularizer else []
        with pytest.raises(ValueError, match="custom_gradient decorator"):
            model.fit(x, y, verbose=0, callbacks=callbacks)
