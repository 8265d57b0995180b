"""A model as a function from images to logits, and the programs compiled of it.

The model may end in a softmax, or in one sigmoid unit. It is left as it is: other
threads may predict with it meanwhile.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from keras_powerlaw.arguments import Tensor, invalid_value
from keras_powerlaw.backends import vjp
from keras_powerlaw.keras_internals import last_operation, view_of_layer
from keras_powerlaw.layers import is_sequential_or_functional

# Maps a batch of tensors to a batch of tensors.
Function = Callable[[Tensor], Tensor]

# Maps logits and labels to one value per example.
Loss = Callable[[Tensor, Tensor], Tensor]

# Maps NumPy arrays to NumPy arrays.
Program = Callable[..., Any]

# Indices of images.
Indices = NDArray[np.int64]


@dataclasses.dataclass(eq=False)
class Classifier:
    """A model as a function from images to logits, for one evaluation.

    Attributes:
        model: The model, whose variables the function uses.
        logits: Maps images to logits, shape `(batch, classes)`.
        classes: The number of classes.
        batch_size: The most images to give it at once.
        at_end: What is called when the evaluation ends.
        programs: What has been compiled, by key. A later evaluation compiles anew:
            nothing tells whether a model has changed since.
    """

    model: keras.Model
    logits: Function
    classes: int
    batch_size: int
    at_end: ExitStack
    programs: dict[Any, Any] = dataclasses.field(default_factory=dict)

    def __call__(self, images: Any) -> Tensor:
        """The logits of `images`, in float32."""
        return ops.cast(self.logits(images), "float32")

    def predict(self, images: Any) -> NDArray[np.float32]:
        """The logits of one batch, by a compiled program."""
        program = self.compiled("logits", lambda forward, images: forward(images))
        logits: NDArray[np.float32] = program(images)
        return logits

    def is_correct(self, images: Any, labels: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which images of one batch are classified correctly."""
        return has_largest(self.predict(images), labels)

    def gradient(self, images: Any, labels: NDArray[np.int64]) -> NDArray[np.float32]:
        """The gradient of each image's cross-entropy with respect to the image."""
        program = self.compiled(
            "gradient", functools.partial(logits_and_gradient, loss=cross_entropy)
        )
        slopes: NDArray[np.float32] = program(images, labels)[1]
        return slopes

    def compiled(self, key: Any, function: Callable[..., Any]) -> Program:
        """A program that maps NumPy arrays to NumPy arrays.

        Args:
            key: Identifies `function`. Later calls with the same key return the first
                program, which is compiled once per shape of its arguments.
            function: `function(forward, *arrays)`, which maps tensors to a tensor or a
                tuple of tensors. `forward` maps a batch of images to logits in
                float32. Arguments with dimensions have the batch first; the others are
                scalars.
        """
        if key not in self.programs:
            compilers = {"tensorflow": _tensorflow, "jax": _jax, "torch": _torch}
            compile_on = compilers[keras.backend.backend()]
            self.programs[key] = compile_on(self, function)
        program: Program = self.programs[key]
        return program


def has_largest(logits: NDArray[Any], labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether the largest logit in each row is that of the label."""
    if np.isnan(logits).any():
        raise ValueError(
            "The model returned NaN, so its accuracy is not defined. "
            "Check its weights for NaN and infinity."
        )
    correct: NDArray[np.bool_] = logits.argmax(axis=1) == labels
    return correct


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """−log softmax(z)_y of each example, shape `(batch,)`."""
    return ops.sparse_categorical_crossentropy(labels, logits, from_logits=True)


# Below every logit; infinity would alarm the debugging aids of the backends.
LARGEST = float(np.finfo("float32").max)


def logit_ratio(logits: Tensor, labels: Tensor) -> Tensor:
    """The DLR loss of each example, which does not depend on the scale of the logits.

    `−(z_y − max_{i≠y} z_i) / (z_π1 − z_π3)`, where π sorts the logits from the largest
    down. With only two classes, there is no denominator.

    Reference:
        Croce & Hein (2020), equation (6).
    """
    classes = logits.shape[-1]
    truth = ops.cast(ops.one_hot(labels, classes), "bool")
    zero = ops.zeros_like(logits)
    true_logit = ops.sum(ops.where(truth, logits, zero), axis=-1)
    other = ops.max(ops.where(truth, zero - LARGEST, logits), axis=-1)
    if classes < 3:
        return other - true_logit
    largest, _ = ops.top_k(logits, 3)
    return (other - true_logit) / (largest[:, 0] - largest[:, 2] + 1e-12)


LOSSES: dict[str, Loss] = {"ce": cross_entropy, "dlr": logit_ratio}


def logits_and_gradient(
    forward: Function, images: Tensor, labels: Tensor, loss: Loss
) -> tuple[Tensor, Tensor]:
    """Logits of `images`, and the gradient of each loss with respect to its image."""

    def losses_and_logits(images: Tensor) -> tuple[Tensor, Tensor]:
        logits = forward(images)
        return loss(logits, labels), logits

    losses, product, logits = vjp(losses_and_logits, images, has_aux=True)
    gradient = product(ops.ones_like(losses))
    return ops.stop_gradient(logits), ops.stop_gradient(gradient)


def classifier_of(
    model: keras.Model, images: NDArray[np.float32], batch_size: int, at_end: ExitStack
) -> Classifier:
    """A model as a classifier: without a softmax, and with two classes for a sigmoid.

    Args:
        model: The model.
        images: Some images, on which to try what is left out at the end.
        batch_size: The most images to give it at once.
        at_end: Gets what is to be called when the evaluation ends.

    Raises:
        ValueError: If the outputs of the model are not those of a classifier, or are
            probabilities whose logits cannot be had.
    """
    outputs = model(images, training=False)
    shape = tuple(getattr(outputs, "shape", ()))
    logits, activation = _ending_of(model)
    single = shape[1:] == (1,)
    if len(shape) != 2 or (single and activation != "sigmoid"):
        raise invalid_value(
            "model",
            "a model with one output, of shape (batch, classes) with at least 2 "
            "classes, or one that ends in a single sigmoid unit (if the output is the "
            "logit of such a unit, give "
            '`keras.Sequential([model, keras.layers.Activation("sigmoid")])`)',
            f"outputs of type {type(outputs)} and shape {shape}",
        )
    if single:
        logits = functools.partial(_of_two_classes, logits)
    elif activation != "softmax":
        _refuse_probabilities(outputs)
        logits = functools.partial(model, training=False)
    # The losses that layers keep from their last call are then tensors of no graph.
    at_end.callback(model, images[:1], training=False)
    return Classifier(model, logits, max(shape[1], 2), batch_size, at_end)


_ACTIVATIONS = {
    "softmax": keras.activations.softmax,
    "sigmoid": keras.activations.sigmoid,
}

# The layers whose last step is their activation.
_LAYERS = keras.layers.Activation, keras.layers.Dense, keras.layers.EinsumDense


def _ending_of(model: keras.Model) -> tuple[Function, str]:
    """The model without the activation that it ends in, and this one's name.

    The model itself and "" if no softmax or sigmoid can be left out. One that a layer
    uses within, such as that of an LSTM, cannot.
    """
    whole = functools.partial(model, training=False), ""
    if not is_sequential_or_functional(model):
        return whole
    last, inputs = last_operation(model)
    if len(inputs) != 1:
        return whole
    # The layer `Softmax` and the operations `keras.ops.softmax` and `sigmoid`.
    activation = type(last).__name__.lower()
    linear: Function = keras.activations.linear
    if isinstance(last, keras.Model):
        linear, activation = _ending_of(last)
        if not activation:
            return whole
    elif activation not in _ACTIVATIONS:
        function = getattr(last, "activation", None)
        names = [name for name, known in _ACTIVATIONS.items() if function is known]
        if not names or type(last) not in _LAYERS:
            return whole
        [activation] = names
        if type(last) is not keras.layers.Activation:
            linear = view_of_layer(
                last, activation=keras.activations.linear, activity_regularizer=None
            )
    # Made of the model's own layers, which it does not change.
    before = keras.Model(model.inputs[0], inputs[0])
    return lambda images: linear(before(images, training=False)), activation


def _of_two_classes(logit: Function, images: Tensor) -> Tensor:
    """The logits of two classes whose softmax is (1 − σ(z), σ(z))."""
    z = logit(images)
    return ops.concatenate([ops.zeros_like(z), z], axis=-1)


def _refuse_probabilities(outputs: Tensor) -> None:
    values = ops.convert_to_numpy(ops.cast(outputs, "float32"))
    if values.min() >= 0.0 and np.all(np.abs(values.sum(axis=1) - 1.0) < 1e-3):
        raise invalid_value(
            "model",
            "a model that returns logits; give the model without its softmax",
            "outputs that are probabilities (every row sums to 1)",
        )


def _tensorflow(classifier: Classifier, function: Callable[..., Any]) -> Program:
    import tensorflow as tf

    by_shape: dict[Any, Any] = {}

    def program(*arrays: Any) -> Any:
        tensors = [tf.convert_to_tensor(array) for array in arrays]
        # For any batch size, to avoid recompiling when examples leave the batch.
        signature = tuple(
            tf.TensorSpec([None, *t.shape[1:]] if t.shape.rank else [], t.dtype)
            for t in tensors
        )
        if signature not in by_shape:
            by_shape[signature] = tf.function(
                lambda *tensors: function(classifier, *tensors),
                input_signature=signature,
                autograph=False,
            )
        return _to_arrays(by_shape[signature](*tensors))

    return program


def _jax(classifier: Classifier, function: Callable[..., Any]) -> Program:
    import jax
    import jax.numpy as jnp

    @jax.jit  # type: ignore[untyped-decorator]
    def stateless(values: Any, *tensors: Tensor) -> Any:
        # The weights are arguments of the program. As constants, they would keep the
        # values of its first call.
        scope = keras.StatelessScope(
            list(zip(_variables(classifier.model), values, strict=True))
        )
        with scope:
            return function(classifier, *tensors)

    def program(*arrays: Any) -> Any:
        [count] = {len(array) for array in arrays if jnp.ndim(array)}
        # Padded to a power of two, since JAX compiles once per batch size.
        padded = 1 << (count - 1).bit_length()

        def pad(array: Any) -> Any:
            if not jnp.ndim(array):
                return array
            widths = [(0, padded - count)] + [(0, 0)] * (jnp.ndim(array) - 1)
            return jnp.pad(jnp.asarray(array), widths, mode="edge")

        values = [variable.value for variable in _variables(classifier.model)]
        results = _to_arrays(stateless(values, *map(pad, arrays)))
        return keras.tree.map_structure(
            lambda result: result[:count] if result.ndim else result, results
        )

    return program


def _variables(model: keras.Model) -> list[keras.Variable]:
    return [*model.trainable_variables, *model.non_trainable_variables]


def _torch(classifier: Classifier, function: Callable[..., Any]) -> Program:
    import torch

    def program(*arrays: Any) -> Any:
        tensors = [ops.convert_to_tensor(array) for array in arrays]
        with torch.no_grad():
            return _to_arrays(function(classifier, *tensors))

    return program


def _to_arrays(results: Any) -> Any:
    return keras.tree.map_structure(ops.convert_to_numpy, results)
