"""Adding the spectral penalty to an existing model, and taking it off."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_powerlaw.arguments import Form, Reduction, invalid_value
from keras_powerlaw.spectral.layers import regularized_layers
from keras_powerlaw.spectral.regularizer import (
    SpectralActivityRegularizer,
    validate_width,
)
from keras_powerlaw.support.copying import copy_model
from keras_powerlaw.support.layers import (
    find_layer,
    is_sequential_or_functional,
    require_one_output,
)
from keras_powerlaw.support.memory import require_memory
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
) -> keras.Model:
    """Gives layers of an existing model a `SpectralActivityRegularizer`.

    Args:
        model: A Sequential or Functional model, fresh or trained, compiled or not. It
            is left unchanged.
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

    Returns:
        A new model of the same class, with the same state and exactly the same
        predictions, which is checked. If `model` is compiled, so is the new one, with
        the same settings and optimizer state. The eigenbasis is no such state: it has
        none.

    Warns:
        UserWarning: If `form` is not the one for a layer that is rectified.

    Raises:
        ValueError: If the model is subclassed, or a copy would not be the same; if a
            layer does not exist, has several outputs, can't carry the penalty, has an
            activity regularizer of another kind, or has no more than τ units or too
            many for the available memory; or if a list does not have one entry per
            layer.

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
    regularized = kp.add_spectral_regularizer(
        model, ["first", "last"], alpha=[1.5, 1.0], tau=5
    )
    ```

    Reference:
        Nassar et al. (2020), eq. (2) and section 4.3; its section 5 suggests exponents
        that vary with depth.
    """
    _require_layers_known(model)
    targets = _find_targets(model, layers)
    regularizers, widths = {}, []
    for layer, layer_alpha, layer_tau, layer_beta in zip(
        targets,
        _one_per_layer("alpha", alpha, targets),
        _one_per_layer("tau", tau, targets),
        _one_per_layer("beta", beta, targets),
        strict=True,
    ):
        require_one_output(layer)
        present = layer.activity_regularizer
        if present is not None and not isinstance(present, SpectralActivityRegularizer):
            raise invalid_value(
                "layers",
                "layers without another activity regularizer",
                f"'{layer.name}', which has {present}",
            )
        regularizer = SpectralActivityRegularizer(
            layer_alpha,
            layer_tau,
            layer_beta,
            exact=exact,
            form=form,
            reduction=reduction,
        )
        units = output_units(layer, reduction)
        if units is not None:
            validate_width(regularizer, units)
            widths.append((layer.name, units))
        _warn_if_rectified(layer, form)
        regularizers[id(layer)] = regularizer
    require_memory(widths)
    return copy_model(model, regularizers)


def remove_spectral_regularizer(
    model: keras.Model,
    layers: keras.layers.Layer | str | Sequence[keras.layers.Layer | str] | None = None,
) -> keras.Model:
    """Takes the `SpectralActivityRegularizer` off layers of a model.

    The plain model back, after training: `quantize()` skips layers with the
    regularizer, and other programs need no `keras_powerlaw` to load it.

    Args:
        model: A Sequential or Functional model, which is left unchanged.
        layers: A layer of the model or its name, or a list of them. Defaults to all
            that have the regularizer.

    Returns:
        A new model with the same weights, predictions, compilation and optimizer state,
        as from `add_spectral_regularizer()`.

    Raises:
        ValueError: If the model is subclassed, or a copy would not be the same; or if
            no layer, or one of `layers`, has no `SpectralActivityRegularizer`.

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
    plain = kp.remove_spectral_regularizer(model)
    plain.quantize("int8")
    ```
    """
    _require_layers_known(model)
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
    return copy_model(model, {id(layer): None for layer in targets})


def _require_layers_known(model: Any) -> None:
    if not is_sequential_or_functional(model):
        raise invalid_value(
            "model",
            "a Sequential or Functional model (in a subclassed model, pass "
            "`activity_regularizer=keras_powerlaw.SpectralActivityRegularizer(...)` to "
            "the layer where it is created, or leave it out)",
            f"{model} (of type {type(model)})",
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
            f"a number, or a list with one for each of the {len(layers)} layers",
            value,
        )
    return value
