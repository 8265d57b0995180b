"""Everything undocumented in Keras that this package relies on.

No other module names an underscored attribute of Keras or `keras.src`. The names are
looked up at import, so that an incompatible version of Keras fails there, with an
explanation, rather than silently in training.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import itertools
import threading
import warnings
import weakref
from collections.abc import Iterator
from typing import Any

import keras
from keras import ops

from keras_powerlaw.arguments import Tensor


def _missing_names() -> list[str]:
    """The names that this package needs and the installed Keras lacks."""
    required = {
        keras.layers.Layer: (
            *("_get_own_losses", "_clear_losses", "_flatten_layers"),
            "_initialize_tracker",
        ),
        keras.Model: ("make_train_function", "make_test_function"),
        keras: ("StatelessScope", "Function"),
    }
    missing = [
        f"{owner.__name__}.{name}"
        for owner, names in required.items()
        for name in names
        if not hasattr(owner, name)
    ]
    return missing


def _incompatible(missing: list[str]) -> ImportError:
    return ImportError(
        "This keras_powerlaw needs Keras 3.12 or newer, and was tested up to 3.15. "
        f"Keras {keras.__version__} has no {', '.join(missing)}: install another "
        "version of Keras, or a newer keras_powerlaw."
    )


if _missing := _missing_names():
    raise _incompatible(_missing)

# No public function returns the scope in which JAX traces a training step, the mask of
# a tensor, which is an attribute only where tensors have some, what layers inherit from
# the call of a model, or what `compile()` makes of a loss.
try:
    from keras.src.backend import get_keras_mask, get_stateless_scope
    from keras.src.backend.common.global_state import get_global_attribute
    from keras.src.trainers.compile_utils import get_loss
except ImportError as error:
    raise _incompatible([str(error)]) from error


@dataclasses.dataclass
class _Call:
    """What one call recorded and, once it has been requested, its loss."""

    recorded: tuple[Any, ...]
    loss: Tensor = None


class DeferredLoss(keras.layers.Layer):  # type: ignore[misc]
    """A layer whose loss is computed only when `losses` is read.

    Training and `evaluate()` read the losses. `predict()`, attacks and exported graphs
    do not, and so skip the work.

    Subclasses call `record(…)` in their `call()`, and define `loss_of(…)` of the same
    arguments.
    """

    second_pass = False  # whether it needs that of `call_twice()`

    def __init__(self, **kwargs: Any) -> None:
        # What a call records would be lost when it is rematerialized.
        with keras.RematScope(mode=None):
            super().__init__(**kwargs)
        self._calls_of_scopes: weakref.WeakKeyDictionary[Any, list[_Call]] = (
            weakref.WeakKeyDictionary()
        )
        self._calls_of_thread = threading.local()

    def record(self, *recorded: Any) -> None:
        """Stores what the loss of one call needs, which adds one entry to `losses`."""
        if in_second_pass() and not self.second_pass:
            return
        self._calls().append(_Call(recorded))

    def loss_of(self, *recorded: Any) -> Tensor:
        """The loss of one call, a scalar."""
        raise NotImplementedError

    def quantize(self, *args: Any, **kwargs: Any) -> None:
        # Keras quantizes layers that contain no other; it warns with this message.
        raise NotImplementedError(
            f"quantize() skips layers with a {type(self).__name__}. Take it off "
            "first: keras_powerlaw.remove_spectral_regularizer(model).quantize(...)"
        )

    def _get_own_losses(self) -> list[Tensor]:
        calls = self._calls()
        for call in calls:
            if call.loss is None:
                # Keras adds up losses in floatx.
                loss = self.loss_of(*call.recorded)
                call.loss = ops.cast(loss, keras.backend.floatx())
        return [call.loss for call in calls]

    def _clear_losses(self) -> None:
        super()._clear_losses()
        # Keras opens one scope per JAX training step, but clears the losses in it at
        # every call of a layer: a shared layer would keep only its last one.
        if get_stateless_scope() is None:
            self._calls().clear()

    def _calls(self) -> list[_Call]:
        """The calls since the model was last called, in this scope or thread.

        Each replica of `tf.distribute.MirroredStrategy` has its own thread, and the
        threads take turns.
        """
        scope = get_stateless_scope()
        if scope is not None:
            return self._calls_of_scopes.setdefault(scope, [])
        calls: list[_Call] = vars(self._calls_of_thread).setdefault("calls", [])
        return calls


_PASS = threading.local()


def in_second_pass() -> bool:
    """Whether this thread is in the second pass of `call_twice()`."""
    return getattr(_PASS, "is_second", False)


def call_twice(model: keras.Model) -> None:
    """Makes training steps call a model once more, in inference mode, and silently.

    Keras has no hook that sees the inputs of a model: `call` is replaced on the object,
    which neither its config nor its files contain.
    """
    once = model.call

    @functools.wraps(once)
    def twice(*args: Any, training: bool | None = None, **kwargs: Any) -> Any:
        outputs = once(*args, training=training, **kwargs)
        if training and not in_second_pass():
            with _second_pass(model):
                once(*args, training=False, **kwargs)
        return outputs

    twice.once = once  # type: ignore[attr-defined]
    vars(model)["call"] = twice


def call_once(model: keras.Model) -> None:
    """Undoes `call_twice()` of a model and all models in it."""
    for each in flatten_layers(model):
        if hasattr(vars(each).get("call"), "once"):
            del vars(each)["call"]


@contextlib.contextmanager
def _second_pass(model: keras.Model) -> Iterator[None]:
    context, scope = get_global_attribute("current_call_ctx"), get_stateless_scope()
    lists = [each._losses for each in flatten_layers(model)]
    lists += [] if scope is None else [scope.losses]
    lengths = [len(losses) for losses in lists]
    _PASS.is_second = True
    if context is not None:  # which layers inherit that are told nothing
        context.set_value("training", False)
    try:
        yield
    finally:
        _PASS.is_second = False
        if context is not None:
            context.set_value("training", True)
        for losses, length in zip(lists, lengths, strict=True):
            del losses[length:]  # the others count the first pass


def has_noise(layer: keras.layers.Layer) -> bool:
    """Whether a layer draws random numbers in training."""
    draws = any(
        isinstance(each, keras.random.SeedGenerator) for each in vars(layer).values()
    )
    rates = [getattr(layer, name, None) for name in ("dropout", "recurrent_dropout")]
    # Recurrent layers have a generator, whether or not they use it.
    return draws and (rates == [None, None] or any(rates))


def compiled_loss(loss: Any, y: Tensor, outputs: Tensor) -> keras.losses.Loss:
    """The loss that `compile()` makes of its argument `loss`, a name for example."""
    return get_loss(loss, y, outputs)


def mask_of(tensor: Tensor) -> Tensor | None:
    """The mask that Keras has attached to a layer's output, or None."""
    return get_keras_mask(tensor)


def last_operation(model: keras.Model) -> tuple[Any, list[Any]]:
    """What computes the first output of a Sequential or Functional model, and of what.

    Returns:
        The layer, model or `keras.ops` operation, and its symbolic inputs in this
        model. A shared layer has others elsewhere, and then no attribute `input`.
    """
    operation, node_index, _ = model.outputs[0]._keras_history
    return operation, list(operation._inbound_nodes[node_index].input_tensors)


def operations_of(
    model: keras.Model,
) -> list[tuple[Any, list[keras.KerasTensor], list[keras.KerasTensor]]]:
    """What a Functional model calls, in order, each time with inputs and outputs."""
    return [
        (node.operation, list(node.input_tensors), list(node.output_tensors))
        for depth in sorted(model._nodes_by_depth, reverse=True)
        for node in model._nodes_by_depth[depth]
    ]


def view_of_layer(layer: keras.layers.Layer, **attributes: Any) -> keras.layers.Layer:
    """A built layer with other attributes, which shares all else with `layer`.

    It has the same variables, quantized or of LoRA too, and follows every change of
    theirs. Neither Keras nor `copy.copy()` copies a layer without copying its state.
    """
    view = object.__new__(type(layer))
    vars(view).update(vars(layer), **attributes)
    return view


def flatten_layers(model: keras.Model) -> list[keras.layers.Layer]:
    """The model and all layers in it, at any depth, each once."""
    # No public attribute lists the sub-layers of a layer that is not itself a model.
    return list(model._flatten_layers())


def paths_of_layers(model: keras.Model) -> dict[int, str]:
    """The shortest way to each layer in `model`, keyed by the `id` of the layer.

    The names of what contains it, and its own: `"tower/hidden"`. Keras's `Layer.path`
    is None until the layer is built, and leaves out the containers after
    `keras.saving.load_model()`.
    """
    paths = {id(model): ""}
    queue = collections.deque([model])
    while queue:
        parent = queue.popleft()
        prefix = paths[id(parent)] + "/" if parent is not model else ""
        for layer in parent._flatten_layers(include_self=False, recursive=False):
            if id(layer) not in paths:
                paths[id(layer)] = prefix + layer.name
                queue.append(layer)
    return paths


def count_outputs(layer: keras.layers.Layer) -> int:
    """The number of outputs of a layer, 1 where it is not known.

    It is known in Sequential and Functional models, and of recurrent layers.
    """
    counts = [len(node.output_tensors) for node in layer._inbound_nodes]
    if getattr(layer, "return_state", False):
        counts.append(2)  # or more
    return max(counts, default=1)


def output_shapes(layer: keras.layers.Layer) -> set[tuple[int | None, ...]]:
    """The shapes of a layer's only output, in all models that it is in.

    None is known of a layer with several outputs. In a subclassed model, the shape is
    that for the input which the layer was built for.
    """
    if count_outputs(layer) > 1:
        return set()
    shapes = {tuple(node.output_tensors[0].shape) for node in layer._inbound_nodes}
    if not shapes and layer.built:
        with contextlib.suppress(Exception):  # not every layer can tell
            config = layer.get_build_config()
            shapes = {tuple(layer.compute_output_shape(config["input_shape"]))}
    return shapes


def set_activity_regularizer(layer: keras.layers.Layer, regularizer: Any) -> None:
    """Gives a layer another activity regularizer, or None; a built layer, too."""
    set_sublayer(layer, "activity_regularizer", regularizer)


def set_sublayer(layer: keras.layers.Layer, name: str, sublayer: Any) -> None:
    """Gives a layer another value of an attribute that may be a layer.

    Keras itself unlocks the tracker of a built layer where it adds state to it, for
    LoRA and quantization.
    """
    tracker = layer._tracker
    was_locked = tracker.locked
    tracker.untrack(getattr(layer, name))
    tracker.unlock()
    delattr(layer, name)  # where PyTorch had a module, it takes nothing else
    setattr(layer, name, sublayer)
    if was_locked:
        tracker.lock()


def compile_arguments(model: keras.Model) -> dict[str, Any]:
    """The arguments passed to a model's `compile()`, as the same objects.

    `get_compile_config()` would require a user-defined loss or metric to be registered
    with Keras.
    """
    if not hasattr(model, "_compile_config"):  # which `compile()` sets: not at import
        raise _incompatible(["Model._compile_config"])
    arguments: dict[str, Any] = model._compile_config.config
    return arguments


def hold_current_weights(model: keras.Model) -> None:
    """Updates a model's variables to the values that `fit()` has reached.

    During `fit()`, `evaluate()` and `predict()` on the JAX backend, their loop holds
    the current values, and the variables none.
    """
    if not hasattr(model, "jax_state_sync"):
        return
    model.jax_state_sync()
    if any(variable._value is None for variable in model.variables):
        raise ValueError(
            f"The variables of model '{model.name}' have no values now: another model "
            "that has the same layers is in training on the JAX backend. Call "
            "`jax_state_sync()` of that model first."
        )


def retrace(model: keras.Model) -> None:
    """Makes a model, if it is compiled, trace its training and test steps again."""
    if model.compiled:
        model.make_train_function(force=True)
        retrace_evaluation(model)


def retrace_evaluation(model: keras.Model) -> None:
    """Makes a compiled model trace its test step again.

    On JAX, every step takes all state, that of the test step too.
    """
    model.make_test_function(force=True)
    if keras.backend.backend() == "jax":
        model.make_train_function(force=True)


def warn_at_step(model: keras.Model, step: int, message: str) -> None:
    """Warns once, when a compiled model has trained by so many more steps.

    A compiled step runs no Python of ours, so its function is counted from outside.
    """
    if not model.compiled:
        return
    stop_warning(model)
    model.make_train_function()
    function, calls = model.train_function, itertools.count(1)

    def counted(*args: Any) -> Any:
        if next(calls) == step:
            warnings.warn(message, stacklevel=2)
            stop_warning(model)
        return function(*args)

    counted.function = function  # type: ignore[attr-defined]
    model.train_function = counted


def stop_warning(model: keras.Model) -> None:
    """Undoes `warn_at_step()`."""
    model.train_function = getattr(
        model.train_function, "function", model.train_function
    )


def strategy_of(model: keras.Model) -> Any:
    """The `tf.distribute` strategy that a model was made under, or None."""
    return getattr(model, "distribute_strategy", None)
