"""Forward passes through a model that leave its state as it is."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from keras_powerlaw.arguments import Tensor
from keras_powerlaw.backends import recurrent_states
from keras_powerlaw.keras_internals import flatten_layers


class InferencePasses:
    """Passes batches through a model, in inference mode, one after another.

    The state that a pass leaves behind, such as that of a stateful LSTM, is what the
    next one begins with, as in `predict()`. The model itself keeps the state it has.

    Args:
        model: The model.
    """

    def __init__(self, model: keras.Model) -> None:
        self._model = model
        self._variables: list[keras.Variable] = []  # those that passes have changed
        self._values: list[Tensor] = []

    def __call__(self, inputs: Any) -> None:
        """Passes a batch through the model."""
        self.go_on_from(self.run(inputs))

    def run(self, inputs: Any) -> list[Tensor]:
        """Passes a batch through the model, and returns what `go_on_from()` takes.

        It is apart for functions that are differentiated, whose tensors JAX does not
        let out but as results.
        """
        if not self._model.built:  # there is no state yet
            self._model(inputs, training=False)
            return []
        state = zip(self._variables, self._values, strict=True)
        with keras.StatelessScope(list(state)) as scope:
            self._model(inputs, training=False)
        changed = [
            (variable, ops.stop_gradient(value))
            for variable in _state_of(self._model)
            if (value := scope.get_current_value(variable)) is not None
        ]
        self._variables = [variable for variable, _ in changed]
        return [value for _, value in changed]

    def go_on_from(self, values: list[Tensor]) -> None:
        """Makes the next pass begin with the state that a pass left behind."""
        self._values = values


@contextlib.contextmanager
def keeping_state(model: keras.Model) -> Iterator[None]:
    """Gives a model back the state that forward passes within this context change.

    That is the state of random generators, and whatever else layers assign in
    inference.
    """
    state = [(variable, _value_of(variable)) for variable in _state_of(model)]
    try:
        yield
    finally:
        for variable, value in state:
            if not np.array_equal(_value_of(variable), value):
                variable.assign(value)


def _value_of(variable: keras.Variable) -> NDArray[Any]:
    return np.array(ops.convert_to_numpy(variable))


def _state_of(model: keras.Model) -> list[keras.Variable]:
    """The variables that a forward pass can change."""
    recurrent = map(recurrent_states, flatten_layers(model))
    return [*model.non_trainable_variables, *itertools.chain(*recurrent)]
