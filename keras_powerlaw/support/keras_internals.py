"""Everything that this package uses of Keras without a documented name.

No other module names an underscored attribute of Keras or `keras.src`. What is used is
looked for at import, so that another version of Keras fails there, with a sentence,
and not in training, silently.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import keras

from keras_powerlaw.support.types import Tensor


def _missing_names() -> list[str]:
    """What this package needs of Keras and does not find."""
    wanted = {
        keras.layers.Layer: ("_get_own_losses", "_clear_losses", "_flatten_layers"),
        keras.Model: ("make_train_function", "make_test_function"),
        keras: ("StatelessScope", "Function"),
    }
    missing = [
        f"{owner.__name__}.{name}"
        for owner, names in wanted.items()
        for name in names
        if not hasattr(owner, name)
    ]
    try:
        from keras.src.backend import get_stateless_scope  # noqa: F401
    except ImportError:
        missing.append("get_stateless_scope")
    return missing


if _missing := _missing_names():
    raise ImportError(
        "This keras_powerlaw needs Keras 3.12 or newer, and was tested up to 3.15. "
        f"Keras {keras.__version__} has no {', '.join(_missing)}: install another "
        "version of Keras, or a newer keras_powerlaw."
    )

# Nothing public tells the scope in which JAX traces a training step.
from keras.src.backend import get_stateless_scope  # noqa: E402


@dataclasses.dataclass
class _Call:
    """A batch of activations and, once it was asked for, its loss."""

    activity: Tensor
    loss: Tensor = None


class DeferredLoss(keras.layers.Layer):  # type: ignore[misc]
    """A layer whose loss is computed when `losses` is read, and not before.

    Training and `evaluate()` read the losses. `predict()`, attacks and exported graphs
    do not, and so are spared the work.

    Subclasses call `record(activity)` in their `call()`, and define
    `loss_of(activity)`.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._calls_of_scopes: weakref.WeakKeyDictionary[Any, list[_Call]] = (
            weakref.WeakKeyDictionary()
        )
        self._calls_of_thread = threading.local()

    def record(self, activity: Tensor) -> None:
        """Keeps the activations of a call, for a loss of their own."""
        self._calls().append(_Call(activity))

    def loss_of(self, activity: Tensor) -> Tensor:
        """The loss, a scalar, of the activations of one call."""
        raise NotImplementedError

    def _get_own_losses(self) -> list[Tensor]:
        calls = self._calls()
        for call in calls:
            if call.loss is None:
                call.loss = self.loss_of(call.activity)
        return [call.loss for call in calls]

    def _clear_losses(self) -> None:
        super()._clear_losses()
        # Keras opens a scope for each JAX training step, but clears the losses in it at
        # each call of a layer, so that a shared layer would keep only its last one.
        if get_stateless_scope() is None:
            self._calls().clear()

    def _calls(self) -> list[_Call]:
        """The calls since the model was last called, in this scope or thread.

        Each replica of `tf.distribute.MirroredStrategy` is a thread, and they take
        turns.
        """
        scope = get_stateless_scope()
        if scope is not None:
            return self._calls_of_scopes.setdefault(scope, [])
        calls: list[_Call] = vars(self._calls_of_thread).setdefault("calls", [])
        return calls


def flatten_layers(model: keras.Model) -> list[keras.layers.Layer]:
    """The model and all layers in it, at any depth, each once."""
    # Keras has no public way into layers that are not in a nested model's `layers`.
    return list(model._flatten_layers())


@contextlib.contextmanager
def replaced_activity_regularizers(
    model: keras.Model, replacements: Mapping[int, Any]
) -> Iterator[None]:
    """Within this context, the layers of `model` have other activity regularizers.

    Keras hands a layer's activations to its activity regularizer, in every kind of
    model and however deeply the layer is nested, so a function in its place sees them.

    Args:
        model: The model.
        replacements: What to put in the place of the regularizer, by the `id` of the
            layer. Layers that are not named have none.
    """
    replaced = []
    for layer in flatten_layers(model):
        if layer.activity_regularizer is None and id(layer) not in replacements:
            continue
        # Behind the back of Keras's tracking, which refuses changes to a built layer.
        attributes = vars(layer)
        original = attributes.get("activity_regularizer", _ABSENT)
        replaced.append((attributes, original))
        attributes["activity_regularizer"] = replacements.get(id(layer))
    try:
        yield
    finally:
        for attributes, original in replaced:
            if original is _ABSENT:
                del attributes["activity_regularizer"]
            else:
                attributes["activity_regularizer"] = original


_ABSENT = object()


def compile_arguments(model: keras.Model) -> dict[str, Any]:
    """The arguments of a model's `compile()`, the very objects that were given.

    `get_compile_config()` would need a loss or metric of the user's own to be
    registered with Keras.
    """
    arguments: dict[str, Any] = model._compile_config.config
    return arguments


def hold_current_weights(model: keras.Model) -> None:
    """Gives the variables of a model the values that `fit()` has reached.

    Within `fit()` on the JAX backend, the newest values are the training loop's.
    """
    if hasattr(model, "jax_state_sync"):
        model.jax_state_sync()


def retrace(model: keras.Model) -> None:
    """Has a compiled model trace its training and test step anew."""
    model.make_train_function(force=True)
    model.make_test_function(force=True)
