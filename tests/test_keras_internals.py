"""What is undocumented in Keras is there, or the import fails with a sentence."""

import subprocess
import sys

import keras
import numpy as np
import pytest
from backend import only, to_numpy
from datasets import gaussian
from keras import layers
from models import compiled, hidden, network

from keras_powerlaw import keras_internals as internals


@pytest.mark.parametrize(
    "removed, named",
    [
        ("del keras.layers.Layer._flatten_layers", "Layer._flatten_layers"),
        ("import keras.src.backend as b; del b.get_stateless_scope", "get_stateless"),
    ],
)
def test_another_keras_is_refused_at_import(removed, named):
    code = f"import keras; {removed}; import keras_powerlaw"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    error = result.stderr.strip().splitlines()[-1]
    assert "ImportError: This keras_powerlaw needs Keras 3.12 or newer" in error
    assert named in error


def test_a_view_of_a_layer_shares_all_but_what_is_changed():
    layer = layers.Dense(3, activation="softmax")
    x = gaussian(5)[0]
    layer(x)
    view = internals.view_of_layer(layer, activation=keras.activations.linear)
    layer.kernel.assign(2 * layer.kernel)
    found, expected = to_numpy(keras.ops.softmax(view(x))), to_numpy(layer(x))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert layer.activation is keras.activations.softmax


def test_the_shape_of_an_output_is_known_where_it_is_the_only_one():
    shared = hidden(4)
    network(shared)
    assert internals.output_shapes(shared) == {(None, 4)}
    unbuilt, called = layers.Dense(4), layers.Dense(4)
    called(gaussian(5)[0])
    assert internals.output_shapes(unbuilt) == set()
    assert internals.output_shapes(called) == {(5, 4)}
    several = layers.LSTM(4, return_state=True)
    several(gaussian(5, (3, 2))[0])
    assert internals.output_shapes(several) == set()
    assert internals.count_outputs(several) > 1


@only("jax", why="elsewhere, the variables of a model hold their values")
def test_values_that_another_model_trains_are_missed_with_a_sentence():
    model = compiled(network(hidden(4)))
    other = keras.Model(model.inputs, model.layers[0].output)
    seen = []

    def look(batch, logs):
        with pytest.raises(ValueError, match="`jax_state_sync..` of that model first"):
            internals.hold_current_weights(other)
        internals.hold_current_weights(model)
        internals.hold_current_weights(other)
        seen.append(np.array(model.layers[0].bias))

    callback = keras.callbacks.LambdaCallback(on_train_batch_end=look)
    model.fit(*gaussian(20), batch_size=10, verbose=0, callbacks=[callback])
    assert len(seen) == 2 and not np.array_equal(*seen)
