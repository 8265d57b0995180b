"""One pass over the data, which adds up the activations of several layers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from keras_powerlaw.arguments import Reduction, Tensor, invalid_value
from keras_powerlaw.backends import no_gradients
from keras_powerlaw.keras_internals import hold_current_weights
from keras_powerlaw.progress import Progress
from keras_powerlaw.spectrum import Covariance, Degenerate
from keras_powerlaw.support.batches import (
    input_batches,
    require_finite,
    validate_input_shape,
)
from keras_powerlaw.support.layers import (
    observe,
    require_one_output,
    unique_names,
)
from keras_powerlaw.support.memory import require_memory
from keras_powerlaw.support.passes import InferencePasses
from keras_powerlaw.units import output_units, to_samples

# The name and the number of units of layers.
Widths: TypeAlias = list[tuple[str, int]]


def stream_covariances(
    model: keras.Model,
    x: Any,
    layers: Sequence[keras.layers.Layer],
    reductions: Sequence[Reduction],
    **options: Any,
) -> list[Covariance]:
    """Covariances of several layers' activations, from one pass over the data.

    Returns:
        One `Covariance` per layer. A layer that is called several times per
        forward pass contributes the activations of every call.
    """
    statistics = [Covariance(layer.compute_dtype) for layer in layers]
    stream_activations(
        model, x, layers, reductions, statistics, require_memory, **options
    )
    return statistics


def stream_activations(
    model: keras.Model,
    x: Any,
    layers: Sequence[keras.layers.Layer],
    reductions: Sequence[Reduction],
    statistics: Sequence[Covariance],
    require: Callable[[Widths], None],
    *,
    batch_size: int,
    max_samples: int | None,
    seed: int,
    progress: Progress,
) -> None:
    """Adds several layers' activations to `statistics`, in one pass over the data.

    `require` raises an error if layers of some names and numbers of units are too wide.
    """
    hold_current_weights(model)
    names = unique_names(model, layers)
    widths = []
    for name, layer, reduction in zip(names, layers, reductions, strict=True):
        require_one_output(layer)
        if (units := output_units(layer, reduction)) is not None:
            widths.append((name, units))
    require(widths)
    converts = [functools.partial(_to_array, reduction=each) for each in reductions]
    batches, total = input_batches(model, x, batch_size, max_samples, seed)
    examples, run = 0, InferencePasses(model)
    for index, batch in enumerate(batches):
        if index == 0:
            validate_input_shape(model, batch)
        examples += len(keras.tree.flatten(batch)[0])
        require_finite(batch, f"Invalid value for argument `x`: batch {index}")
        with no_gradients(), observe(model, layers, converts) as observed:
            run(batch)
        if index == 0:
            require(
                [
                    (name, activities[0].shape[1])
                    for name, activities in zip(names, observed, strict=True)
                    if activities
                ]
            )
        for name, activities, running in zip(names, observed, statistics, strict=True):
            if not activities:
                raise invalid_value(
                    "layer",
                    f"a layer that model '{model.name}' calls as a layer (of one "
                    "within `TimeDistributed` or within the `call()` of another, take "
                    "the layer around it)",
                    f"'{name}', which was not called",
                )
            for activity in activities:
                require_finite(
                    activity,
                    f"Invalid activations of layer '{name}' on `x`",
                    "samples",
                    Degenerate,
                )
                if running.count and activity.shape[1] != running.units:
                    raise ValueError(
                        f"The activations of layer '{name}' must have the same "
                        "shape in every batch and call. Received: "
                        f"{activity.shape[1]} units after {running.units}"
                    )
                running.update(activity)
        progress.update(index + 1, total)
    if examples < 2:
        raise invalid_value(
            "x",
            "at least two examples, since fewer have no covariance",
            f"{examples} example(s)",
        )
    progress.finish()


def _to_array(activity: Tensor, reduction: Reduction) -> NDArray[Any]:
    if keras.backend.standardize_dtype(activity.dtype) in ("float16", "bfloat16"):
        activity = ops.cast(activity, "float32")  # like the regularizer
    return np.asarray(ops.convert_to_numpy(to_samples(activity, reduction)))
