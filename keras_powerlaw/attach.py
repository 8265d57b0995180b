"""Attaching to a model that exists, in place: penalties, and whatever only looks.

Keras gives what a layer computes to the layer's `activity_regularizer`, in every kind
of model and at any depth. So whatever needs the activations is attached there.
"""

from __future__ import annotations

import contextlib
import inspect
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_powerlaw.arguments import (
    Form,
    Reduction,
    Tensor,
    invalid_value,
    require_memory,
)
from keras_powerlaw.keras_internals import (
    call_once,
    flatten_layers,
    retrace,
    set_activity_regularizer,
)
from keras_powerlaw.layers import (
    find_layer,
    regularized_layers,
    require_called,
    require_one_output,
)
from keras_powerlaw.regularizer import SpectralActivityRegularizer, validate_width
from keras_powerlaw.targets import Target
from keras_powerlaw.units import output_units


def add_spectral_regularizer(
    model: keras.Model,
    layers: keras.layers.Layer | str | Sequence[keras.layers.Layer | str],
    alpha: float | Sequence[float] = 1.0,
    tau: int | Sequence[int] = 10,
    beta: float | Sequence[float] = 0.5,
    *,
    exact: bool = False,
    form: Form = "nearest",
    reduction: Reduction = "flatten",
    target: Target | float | Sequence[Target | float] | None = None,
) -> keras.Model:
    """Gives layers of an existing model a `SpectralActivityRegularizer`, in place.

    Nothing else of the model changes: weights, compilation, the optimizer and its
    state, and whatever was set on any of them. The next `fit()` trains with the
    penalty.

    Args:
        model: A model of any kind, fresh or trained, compiled or not.
        layers: A layer of the model or its name, or a list of them, at any depth:
            layers of models in the model, and those within a wrapper that calls them
            as layers, too.
        alpha: Exponent α: a number for all layers, or a list with one per layer.
            Defaults to 1.
        tau: Index τ of the first eigenvalue of the power law: an integer for all
            layers, or a list with one per layer. Defaults to 10.
        beta: Strength β: a number for all layers, or a list with one per layer.
            Defaults to 0.5.
        exact: See `SpectralActivityRegularizer`; the same for all layers. Defaults to
            `False`.
        form: Likewise. Defaults to `"nearest"`.
        reduction: Likewise. Defaults to `"flatten"`.
        target: Instead of α, what the spectra are pulled toward: one target for all
            layers, or a list with one per layer. Defaults to `None`: n^(−α).

    Returns:
        The same model.

    Warns:
        UserWarning: If `form` is not the one for a layer that is rectified.

    Raises:
        ValueError: If a layer does not exist, has several outputs, can't carry the
            penalty or save it, has an activity regularizer of another kind, or has no
            more than τ units or too many for the memory; or if a list does not have
            one entry per layer. The model is then as it was.

    Example:

    ```python
    import keras
    import keras_powerlaw as kp

    model = keras.Sequential(
        [
            keras.Input((20,)),
            keras.layers.Dense(50, activation="tanh", name="first"),
            keras.layers.Dense(50, activation="tanh", name="last"),
            keras.layers.Dense(10),
        ]
    )
    kp.add_spectral_regularizer(model, ["first", "last"], alpha=[1.5, 1.0], tau=5)
    ```

    Reference:
        Nassar et al. (2020), eq. (2) and section 4.3; its section 5 suggests exponents
        that vary with depth.
    """
    targets = _find_targets(model, layers)
    regularizers = [
        SpectralActivityRegularizer(
            *values, target=each, exact=exact, form=form, reduction=reduction
        )
        for *values, each in zip(
            _one_per_layer("alpha", alpha, targets),
            _one_per_layer("tau", tau, targets),
            _one_per_layer("beta", beta, targets),
            _one_per_layer("target", target, targets),
            strict=True,
        )
    ]
    widths = []
    for layer, regularizer in zip(targets, regularizers, strict=True):
        _require_carrier(model, layer)
        units = output_units(layer, reduction)
        if units is not None:
            validate_width(regularizer, units)
            widths.append((layer.name, units))
        _warn_if_rectified(layer, form)
    require_memory(widths)
    present = [layer.activity_regularizer for layer in targets]
    try:
        for layer, regularizer in zip(targets, regularizers, strict=True):
            set_activity_regularizer(layer, regularizer)
            _require_saved(layer)
    except ValueError:
        for layer, before in zip(targets, present, strict=True):
            set_activity_regularizer(layer, before)
        raise
    if model.compiled and not all(each.supports_jit for each in regularizers):
        model.jit_compile = False
    retrace(model)
    return model


def remove_spectral_regularizer(
    model: keras.Model,
    layers: keras.layers.Layer | str | Sequence[keras.layers.Layer | str] | None = None,
) -> keras.Model:
    """Takes the `SpectralActivityRegularizer` off layers of a model, in place.

    The plain model back, after training: `quantize()` skips layers with the
    regularizer, and other programs need no `keras_powerlaw` to load it.

    Args:
        model: A model of any kind.
        layers: A layer of the model or its name, or a list of them. Defaults to all
            that have the regularizer.

    Returns:
        The same model.

    Raises:
        ValueError: If no layer, or one of `layers`, has no
            `SpectralActivityRegularizer`.

    Example:

    ```python
    import keras
    import keras_powerlaw as kp

    model = keras.Sequential(
        [
            keras.Input((20,)),
            keras.layers.Dense(
                50, activity_regularizer=kp.SpectralActivityRegularizer()
            ),
        ]
    )
    kp.remove_spectral_regularizer(model)
    model.quantize("int8")
    ```
    """
    regularized = regularized_layers(model)
    targets = regularized if layers is None else _find_targets(model, layers)
    others = [layer.name for layer in targets if layer not in regularized]
    if others or not targets:
        raise invalid_value(
            "layers",
            "layers with a SpectralActivityRegularizer, of which model "
            f"'{model.name}' has {[layer.name for layer in regularized]}",
            layers if layers is None else others,
        )
    call_once(model)
    for layer in targets:
        set_activity_regularizer(layer, None)
    retrace(model)
    return model


@contextlib.contextmanager
def observe(
    model: keras.Model,
    layers: Sequence[keras.layers.Layer],
    converts: Sequence[Callable[[Tensor], Any]],
) -> Iterator[list[list[Any]]]:
    """Records what `layers` compute at every call in this thread and context.

    Their activity regularizers, and those of all other layers, are silent meanwhile.
    Other threads go on as if nothing were attached, or wait if they observe.

    Args:
        model: The model that will be called.
        layers: Layers in it.
        converts: One function per layer, applied to its activations before they are
            recorded.

    Yields:
        One list per layer, to which each call appends its converted activations.
    """
    observed: list[list[Any]] = [[] for _ in layers]
    records = {
        id(layer): lambda activity, to=to, convert=convert: to.append(convert(activity))
        for layer, to, convert in zip(layers, observed, converts, strict=True)
    }
    attached = []
    with _OBSERVING:
        try:
            for layer in flatten_layers(model):
                if layer.activity_regularizer is not None or id(layer) in records:
                    attached.append(_Observer(layer, records.get(id(layer))))
            yield observed
        finally:
            for observer in attached:
                observer.detach()


_OBSERVING = threading.Lock()
_ABSENT = object()


class _Observer:
    """Stands in for the activity regularizer of a layer while one thread looks."""

    def __init__(self, layer: keras.layers.Layer, record: Any) -> None:
        # Past Keras's tracking: what stands in for a moment is no state of the layer.
        self._attributes = vars(layer)
        left = self._attributes.get("activity_regularizer")
        if isinstance(left, _Observer):  # by a thread that was killed
            left.detach()
        self._original = self._attributes.get("activity_regularizer", _ABSENT)
        self._regularizer = layer.activity_regularizer
        self._record = record
        self._thread = threading.get_ident()
        self._attributes["activity_regularizer"] = self

    def detach(self) -> None:
        if self._original is _ABSENT:
            del self._attributes["activity_regularizer"]
        else:
            self._attributes["activity_regularizer"] = self._original

    def __call__(self, activity: Tensor) -> Tensor:
        if threading.get_ident() == self._thread:
            if self._record is not None:
                self._record(activity)
        elif self._regularizer is not None:
            return self._regularizer(activity)
        return ops.zeros(())


def _require_carrier(model: keras.Model, layer: keras.layers.Layer) -> None:
    """Raises a `ValueError` if a layer of `model` can't carry a regularizer."""
    require_one_output(layer)
    require_called(model, layer)
    present = layer.activity_regularizer
    if present is not None and not isinstance(present, SpectralActivityRegularizer):
        raise invalid_value(
            "layers",
            "layers without another activity regularizer",
            f"'{layer.name}', which has {present}",
        )
    if isinstance(layer, keras.Model):
        last = f" its last layer, '{layer.layers[-1].name}', or" if layer.layers else ""
        raise _refusal(layer, f"instead of a model,{last}")
    arguments = inspect.signature(type(layer).__init__).parameters.values()
    if not any(
        each.name == "activity_regularizer" or each.kind is each.VAR_KEYWORD
        for each in arguments
    ):
        raise _refusal(layer, "add `**kwargs` to its constructor, or put")


def _require_saved(layer: keras.layers.Layer) -> None:
    """Raises a `ValueError` if the config of a layer leaves its regularizer out."""
    try:
        config = layer.get_config()
    except NotImplementedError:  # the layer is not saved at all
        return
    if config.get("activity_regularizer") is None:
        raise _refusal(layer, "put")


def _refusal(layer: keras.layers.Layer, instead: str) -> ValueError:
    return invalid_value(
        "layers",
        f"layers that save an `activity_regularizer` of theirs: {instead} a "
        "`keras.layers.Identity(activity_regularizer=...)` behind it",
        f"'{layer.name}' (of type {type(layer).__name__})",
    )


def _warn_if_rectified(layer: keras.layers.Layer, form: Form) -> None:
    activation = getattr(layer, "activation", None)
    is_rectified = activation is keras.activations.relu or isinstance(
        layer, keras.layers.ReLU
    )
    if is_rectified and form != "nearest":
        warnings.warn(
            f"The units of layer '{layer.name}' are rectified, and form='{form}' can "
            "end in dead ones and a loss of accuracy. Take the default form, "
            '"nearest", or put the penalty before the ReLU.',
            stacklevel=3,
        )


def _find_targets(model: keras.Model, layers: Any) -> list[keras.layers.Layer]:
    if isinstance(layers, str | keras.layers.Layer):
        layers = [layers]
    if (
        not isinstance(layers, list | tuple)
        or not layers
        or not all(isinstance(layer, str | keras.layers.Layer) for layer in layers)
    ):
        raise invalid_value(
            "layers", "at least one layer: its name, or a list of names", repr(layers)
        )
    targets = [find_layer(model, layer) for layer in layers]
    for index, target in enumerate(targets):
        if any(target is other for other in targets[:index]):
            raise invalid_value(
                "layers", "each layer at most once", f"'{target.name}' more than once"
            )
    return targets


def _one_per_layer(
    argument: str, value: Any, layers: Sequence[keras.layers.Layer]
) -> Sequence[Any]:
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if not isinstance(value, list | tuple):
        return [value] * len(layers)
    if len(value) != len(layers):
        raise invalid_value(
            argument,
            f"one for all, or a list with one for each of the {len(layers)} layers",
            value,
        )
    return value
