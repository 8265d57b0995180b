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


class TestRecurrent:
    @pytest.mark.parametrize("kind", ["LSTM", "GRU"])
    @only("torch", why="elsewhere, Keras trains stateful layers")
    def test_keras_trains_no_stateful_layer(self, kind):
        """Regularized or not."""
        recurrent = getattr(keras.layers, kind)(6, stateful=True)
        inputs = keras.Input(batch_shape=(20, 3, 4))
        model = compiled(keras.Sequential([inputs, recurrent, keras.layers.Dense(4)]))
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            model.fit(*gaussian(20, (3, 4)), batch_size=20, verbose=0)

    def test_a_simple_one_drops_its_regularizer(self):
        regularizer = kp.SpectralActivityRegularizer(tau=2)
        layer = keras.layers.SimpleRNN(6, activity_regularizer=regularizer)
        assert layer.activity_regularizer is None
        model = network(layer, shape=(3, 4))
        with pytest.raises(ValueError, match="at least one layer whose"):
            kp.refresh_eigenbasis(model, gaussian(20, (3, 4))[0])

    def test_a_cell_has_an_output_for_every_step(self):
        regularizer = kp.SpectralActivityRegularizer(tau=2)
        cell = keras.layers.LSTMCell(6, activity_regularizer=regularizer, name="cell")
        model = network(keras.layers.RNN(cell), shape=(3, 4))
        with pytest.raises(ValueError, match="not of the cell .*Received.*'cell'"):
            kp.refresh_eigenbasis(model, gaussian(20, (3, 4))[0])

    def test_a_layer_within_time_distributed_is_not_called(self):
        inner = hidden(6, kp.SpectralActivityRegularizer(tau=2))
        steps = keras.layers.TimeDistributed(inner)
        model = network(steps, keras.layers.Flatten(), shape=(3, 4))
        with pytest.raises(ValueError, match="the layer around it.*'hidden', which"):
            kp.refresh_eigenbasis(model, gaussian(20, (3, 4))[0])


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
