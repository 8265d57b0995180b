"""The logits of a model, which may end in a softmax or in one sigmoid unit.

The model itself is left as it is: other threads may predict with it meanwhile.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from keras_powerlaw.arguments import Tensor, invalid_value
from keras_powerlaw.keras_internals import last_operation, view_of_layer
from keras_powerlaw.layers import is_sequential_or_functional

# Maps a batch of tensors to a batch of tensors.
Function = Callable[[Tensor], Tensor]


@dataclasses.dataclass
class Classifier:
    """A model as a function from images to logits, for one evaluation.

    Attributes:
        model: The model, whose variables the function uses.
        logits: Maps images to logits, shape `(batch, classes)`.
        programs: What `compilation.compiled` has compiled, by key. A later evaluation
            compiles anew: nothing tells whether a model has changed since.
    """

    model: keras.Model
    logits: Function
    programs: dict[Any, Any] = dataclasses.field(default_factory=dict)

    def __call__(self, images: Any) -> Tensor:
        """The logits of `images`, in float32."""
        return ops.cast(self.logits(images), "float32")


def classifier_of(model: keras.Model, images: NDArray[np.float32]) -> Classifier:
    """A model as a classifier: without a softmax, and with two classes for a sigmoid.

    Args:
        model: The model.
        images: Some images, on which to try what is left out at the end.

    Raises:
        ValueError: If the outputs of the model are not those of a classifier, or are
            probabilities whose logits cannot be had.
    """
    outputs = model(images, training=False)
    if not ops.is_tensor(outputs):
        raise invalid_value(
            "model", "a model with one output", f"outputs of type {type(outputs)}"
        )
    shape = tuple(outputs.shape)
    ending = _ending_of(model)
    if ending is not None and not _is_exact(ending, images):
        ending = None
    if len(shape) == 2 and shape[1] == 1:
        if ending is None or ending.activation != "sigmoid":
            raise invalid_value(
                "model",
                "a model of at least 2 classes, with outputs of shape (batch, "
                "classes), or one that ends in a single sigmoid unit (if the output "
                "is the logit of such a unit, give "
                '`keras.Sequential([model, keras.layers.Activation("sigmoid")])`)',
                f"outputs of shape {shape}, without a sigmoid that can be left out",
            )
        return Classifier(model, functools.partial(_of_two_classes, ending.logits))
    if len(shape) != 2:
        raise invalid_value(
            "model",
            "a model with outputs of shape (batch, classes) and at least 2 classes",
            f"outputs of shape {shape}",
        )
    if ending is not None and ending.activation == "softmax":
        return Classifier(model, ending.logits)
    _refuse_probabilities(outputs)
    return Classifier(model, functools.partial(model, training=False))


@dataclasses.dataclass
class _Ending:
    """The end of a model that can be left out.

    Attributes:
        before: Maps images to what the last operation gets.
        last: The last operation.
        linear: The last operation without its activation.
        activation: `"softmax"` or `"sigmoid"`.
    """

    before: Function
    last: Function
    linear: Function
    activation: str

    def logits(self, images: Tensor) -> Tensor:
        return self.linear(self.before(images))


def _ending_of(model: keras.Model) -> _Ending | None:
    if not is_sequential_or_functional(model):
        return None
    last, inputs = last_operation(model)
    if len(inputs) != 1:
        return None
    # Made of the model's own layers, which it does not change.
    features = keras.Model(model.inputs[0], inputs[0])
    before = functools.partial(features, training=False)
    if isinstance(last, keras.Model):
        inner = _ending_of(last)
        if inner is None:
            return None
        inner_before = inner.before
        return dataclasses.replace(
            inner, before=lambda images: inner_before(before(images))
        )
    # The layer `Softmax` and the operations `keras.ops.softmax` and `sigmoid`.
    activation = type(last).__name__.lower()
    linear: Function = _identity
    if activation not in _ACTIVATIONS:
        function = getattr(last, "activation", None)
        names = [name for name, known in _ACTIVATIONS.items() if function is known]
        if not names:
            return None
        [activation] = names
        if not isinstance(last, keras.layers.Activation):
            changes = {"activation": keras.activations.linear}
            linear = view_of_layer(last, **changes, activity_regularizer=None)
    return _Ending(before, last, linear, activation)


_ACTIVATIONS = {
    "softmax": keras.activations.softmax,
    "sigmoid": keras.activations.sigmoid,
}


def _is_exact(ending: _Ending, images: NDArray[np.float32]) -> bool:
    """Whether the activation of the logits is what the last operation returns.

    It is not in a layer that uses its activation within, such as an LSTM.
    """
    features = ending.before(images)
    logits, outputs = ending.linear(features), ending.last(features)
    if len(logits.shape) != 2 or tuple(logits.shape) != tuple(outputs.shape):
        return False
    expected = _ACTIVATIONS[ending.activation](ops.cast(logits, "float32"))
    precise = keras.backend.standardize_dtype(outputs.dtype) in ("float32", "float64")
    difference = ops.convert_to_numpy(expected - ops.cast(outputs, "float32"))
    # NaN is reported elsewhere.
    return not np.nanmax(np.abs(difference), initial=0) > (1e-4 if precise else 1e-2)


def _identity(features: Tensor) -> Tensor:
    return features


def _of_two_classes(logit: Function, images: Tensor) -> Tensor:
    """The logits of two classes whose softmax is (1 − σ(z), σ(z))."""
    z = logit(images)
    return ops.concatenate([ops.zeros_like(z), z], axis=-1)


def _refuse_probabilities(outputs: Tensor) -> None:
    values = ops.convert_to_numpy(ops.cast(outputs, "float32"))
    sums_to_one = np.abs(values.sum(axis=1) - 1.0) < 1e-3
    if np.all(sums_to_one) and values.min() >= 0.0 and values.max() <= 1.0:
        raise invalid_value(
            "model",
            "a model that returns logits; give the model without its softmax",
            "outputs that are probabilities (every row sums to 1)",
        )
