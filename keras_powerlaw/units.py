"""What a layer's units are, and what its samples are, on all replicas."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast, get_args

import keras
from keras import ops

from keras_powerlaw.arguments import Reduction, Tensor, invalid_value, validate_choice
from keras_powerlaw.backends import replica_context
from keras_powerlaw.keras_internals import output_shapes

REDUCTIONS: tuple[str, ...] = get_args(Reduction)


def validate_reduction(reduction: Any) -> Reduction:
    """Returns `reduction`, or raises a `ValueError` if it is not a known one."""
    return cast(Reduction, validate_choice("reduction", reduction, REDUCTIONS))


def to_samples(activity: Tensor, reduction: Reduction = "flatten") -> Tensor:
    """Arranges activations as samples of units.

    Args:
        activity: Tensor of shape `(batch, …)`. With more than two dimensions, it holds
            C channels at each of P positions; see `channel_axis()`.
        reduction: `"flatten"`: every channel at every position is a unit.
            `"channels"`: the channels are the units, and every position of every
            example is a sample. `"mean"`: the channels are the units, and each
            example's mean over its positions is a sample.

    Returns:
        Tensor of shape `(batch, P · C)`, `(batch · P, C)` or `(batch, C)`.
    """
    units = count_units(activity.shape, reduction)
    if units is None:
        raise invalid_value(
            "activity",
            f"a number of units that is known (with reduction='{reduction}')",
            f"an activity of shape {tuple(activity.shape)}",
        )
    if reduction != "flatten" and len(activity.shape) > 2:
        channels = channel_axis(len(activity.shape))
        if reduction == "mean":
            positions = set(range(1, len(activity.shape))) - {channels}
            return ops.mean(activity, axis=tuple(sorted(positions)))
        activity = ops.moveaxis(activity, channels, -1)
    return ops.reshape(activity, (-1, units))


def count_units(
    shape: Sequence[int | None], reduction: Reduction = "flatten"
) -> int | None:
    """The number of units of activations of this shape, or None if it is not fixed."""
    if reduction == "flatten" or len(shape) < 2:
        sizes = [size for size in shape[1:] if size is not None]
        return math.prod(sizes) if len(sizes) == len(shape[1:]) else None
    return shape[channel_axis(len(shape))]


def channel_axis(rank: int) -> int:
    """The axis that holds the channels of activations with `rank` dimensions.

    It is the last one, except for images, volumes and anything else with more than
    three dimensions when `keras.config.image_data_format()` is `"channels_first"`: then
    it is axis 1.
    """
    first = rank > 3 and keras.config.image_data_format() == "channels_first"
    return 1 if first else rank - 1


def sum_over_replicas(value: Tensor) -> Tensor:
    """The sum of `value` over all replicas, the same on each of them."""
    context = replica_context()
    return value if context is None else context.all_reduce("sum", value)


def count_examples(activity: Tensor) -> Tensor:
    """The number of examples in the global batch, in the dtype of `activity`."""
    count = ops.cast(ops.shape(activity)[0], activity.dtype)
    return ops.stop_gradient(sum_over_replicas(count))


def output_units(layer: keras.layers.Layer, reduction: Reduction) -> int | None:
    """The number of units of a layer's output, or None if the layer does not know it.

    Raises:
        ValueError: If the channels are not on the axis that `reduction` assumes.
    """
    shapes = output_shapes(layer)
    if len(shapes) != 1:  # unknown, or of another length in another model
        return None
    [shape] = shapes
    rank = len(shape)
    if reduction != "flatten" and rank > 2:
        assumed = "channels_last" if channel_axis(rank) > 1 else "channels_first"
        if getattr(layer, "data_format", assumed) != assumed:
            raise invalid_value(
                "layer",
                f"a layer with data_format='{assumed}' for reduction='{reduction}' of "
                f"an output with {rank} dimensions "
                "(`keras.config.set_image_data_format()` says which it is from four "
                "dimensions on)",
                f"'{layer.name}' with data_format='{layer.data_format}'",
            )
    return count_units(shape, reduction)
