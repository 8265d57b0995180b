"""Passing a data set through a model and looking at what its layers do."""

from __future__ import annotations

import contextlib
import functools
import math
import operator
import time

import keras
import numpy as np
from keras import ops

from keras_powerlaw.spectral.spectra import (
    Spectrum,
    StreamingCovariance,
    channel_axis,
    check_reduction,
    count_units,
    eigendecomposition,
    to_samples,
)
from keras_powerlaw.support.arguments import invalid_value
from keras_powerlaw.support.gradients import no_gradients
from keras_powerlaw.support.memory import check_memory


def measure_spectrum(
    model,
    x,
    layer,
    *,
    reduction="flatten",
    fit_range=None,
    max_samples=None,
    batch_size=1024,
    seed=0,
    verbose="auto",
) -> Spectrum:
    """Measures the covariance spectrum of a layer's activations over a data set.

    The data pass through the model in inference mode, batch by batch; only the
    `(units, units)` covariance is kept, in float64.

    Args:
        model: A built Keras model.
        x: The data: array, nested arrays for several inputs, `tf.data.Dataset`,
            `keras.utils.PyDataset`, or another iterable of batches that can be
            iterated again. Labels, if any, are ignored.
        layer: A layer of the model, or its name.
        reduction: What the units and the samples of an output with more than two
            dimensions are: `"flatten"`, `"channels"` or `"mean"`; see
            `SpectralActivityRegularizer`, and give what that was given. Defaults to
            `"flatten"`.
        fit_range: `(first, last)`, 1-based and inclusive: eigenvalues that the
            exponent is fitted to. Defaults to `(11, 500)`, cut at the spectrum's end.
        max_samples: Measure on at most so many examples: a random choice of an
            array, the first ones of a data set. Defaults to all.
        batch_size: Examples per forward pass, for arrays. Defaults to 1024.
        seed: Seed of the random choice.
        verbose: `"auto"` shows progress when the measurement is slow, 0 never,
            1 always.

    Returns:
        A `Spectrum`, with `.eigenvalues`, `.exponent`, `.exponent_interval`,
        `.fit_range`, `.dimension_90` and `.participation_ratio`.

    Raises:
        ValueError: If there is no such layer or reduction, `x` is empty, does not fit
            the model, is not finite, or has fewer than two examples, or the layer has
            too many units for the memory there is.

    Example:

    ```python
    import keras
    import numpy as np
    import keras_powerlaw as kp

    model = keras.Sequential(
        [
            keras.Input((20,)),
            keras.layers.Dense(50, activation="tanh", name="hidden"),
            keras.layers.Dense(10),
        ]
    )
    x = np.random.default_rng(0).normal(size=(500, 20))
    spectrum = kp.measure_spectrum(model, x, "hidden")
    print(spectrum.exponent, spectrum.dimension_90)
    ```

    Reference:
        Nassar et al. (2020), Figure 2A; Stringer et al. (2019) for the fit.
    """
    found = find_layer(model, layer)
    [statistics] = stream_covariances(
        model,
        x,
        [found],
        [reduction],
        batch_size=batch_size,
        max_samples=max_samples,
        seed=seed,
        progress=Progress("Spectrum", verbose),
    )
    eigenvalues, _ = eigendecomposition(statistics.covariance())
    return Spectrum(eigenvalues, fit_range)


def stream_covariances(
    model, x, layers, reductions, *, batch_size, max_samples, seed, progress
):
    """Covariances of several layers' activations from one pass over the data.

    Returns:
        One `StreamingCovariance` per layer. A layer that is called several times per
        forward pass contributes the activations of every call.
    """
    known = []
    for layer, reduction in zip(layers, reductions, strict=True):
        check_reduction(reduction)
        if (units := output_units(layer, reduction)) is not None:
            known.append((layer.name, units))
    check_memory(known)
    converts = [functools.partial(_to_array, reduction=each) for each in reductions]
    batches, total = input_batches(x, batch_size, max_samples, seed)
    statistics = [StreamingCovariance() for _ in layers]
    examples = 0
    for index, batch in enumerate(batches):
        if index == 0:
            _check_input_shape(model, batch)
        examples += len(keras.tree.flatten(batch)[0])
        _check_finite(batch, f"Invalid value for argument `x`: batch {index}")
        with no_gradients(), observe(model, layers, converts) as observed:
            model(batch, training=False)
        if index == 0:
            check_memory(
                [
                    (layer.name, activities[0].shape[1])
                    for layer, activities in zip(layers, observed, strict=True)
                    if activities
                ]
            )
        for layer, activities, running in zip(
            layers, observed, statistics, strict=True
        ):
            if not activities:
                raise ValueError(
                    f"Layer '{layer.name}' was not called by model '{model.name}', so "
                    "it has no activations to measure."
                )
            for activity in activities:
                _check_finite(
                    activity,
                    f"Invalid activations of layer '{layer.name}' on `x`",
                    "samples",
                )
                if running.count and activity.shape[1] != running.units:
                    raise ValueError(
                        f"The activations of layer '{layer.name}' must have the same "
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
    return statistics


@contextlib.contextmanager
def observe(model, layers, converts=None):
    """Within this context, every call of one of `layers` leaves its activations.

    Args:
        model: The model that will be called.
        layers: Layers in it.
        converts: One function per layer: what to make of the tensor of activations.
            Defaults to arrays of shape `(batch, units)`.

    Yields:
        One list per layer, to which each call appends.
    """
    converts = converts or [_to_array] * len(layers)
    observed = [[] for _ in layers]
    watched = {
        id(layer): (seen, convert)
        for layer, seen, convert in zip(layers, observed, converts, strict=True)
    }

    def recorder(seen, convert):
        def record(activity):
            seen.append(convert(activity))
            return ops.zeros(())

        return record

    # Keras hands a layer's activations to its activity regularizer, in every kind of
    # model and however deeply the layer is nested. All regularizers step aside
    # meanwhile, since eagerly their penalties would be computed in vain. Attributes
    # are replaced behind the back of Keras' tracking, which refuses changes to a
    # built layer.
    replaced = []
    for every in flatten_layers(model):
        if every.activity_regularizer is not None or id(every) in watched:
            attributes = vars(every)
            replaced.append((attributes, attributes.get("activity_regularizer", ())))
            watcher = watched.get(id(every))
            attributes["activity_regularizer"] = (
                None if watcher is None else recorder(*watcher)
            )
    try:
        yield observed
    finally:
        for attributes, original in replaced:
            if original == ():
                del attributes["activity_regularizer"]
            else:
                attributes["activity_regularizer"] = original


def _to_array(activity, reduction="flatten"):
    if keras.backend.standardize_dtype(activity.dtype) in ("float16", "bfloat16"):
        activity = ops.cast(activity, "float32")  # as the regularizer does
    return np.asarray(ops.convert_to_numpy(to_samples(activity, reduction)))


def output_units(layer, reduction):
    """The number of units of a layer's output; None if the layer does not know it.

    Raises:
        ValueError: If the channels are not where `reduction` looks for them.
    """
    try:
        shape = layer.output.shape
    except AttributeError:  # of a subclassed model, or several outputs
        return None
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


def flatten_layers(model):
    """The model and all layers in it, at any depth, each once."""
    # Keras has no public way into layers that are not in a nested model's `layers`.
    return list(model._flatten_layers())


def find_layer(model, layer):
    """The layer of `model` that `layer`, a name or the layer itself, stands for."""
    layers = flatten_layers(model)
    if isinstance(layer, keras.layers.Layer):
        if any(layer is other for other in layers):
            return layer
        layer = layer.name
    found = [other for other in layers if other.name == layer]
    if len(found) != 1:
        names = [other.name for other in layers if other is not model]
        raise invalid_value(
            "layer",
            f"a layer of model '{model.name}', or the name of exactly one; its layers "
            f"are {names}",
            repr(layer),
        )
    return found[0]


class Progress:
    """A progress bar that appears once the work has lasted for some seconds."""

    def __init__(self, label, verbose="auto", patience=5.0):
        self._label = label
        self._begin = time.monotonic()
        self._delay = {"auto": patience, 0: math.inf, 1: 0.0}.get(verbose, patience)
        self._bar = None
        self._done = 0

    def update(self, done, total):
        """Reports that `done` of `total` (None: unknown) batches are through."""
        self._done = done
        if self._bar is None and time.monotonic() - self._begin >= self._delay:
            print(self._label, flush=True)
            self._bar = keras.utils.Progbar(total, unit_name="batch")
        if self._bar is not None:
            self._bar.update(done, finalize=False)

    def finish(self):
        if self._bar is not None:
            self._bar.target = self._done
            self._bar.update(self._done, finalize=True)


def input_batches(x, batch_size, max_samples, seed):
    """An iterator over the inputs in `x`, and the number of batches if known."""
    if max_samples is not None and (
        not isinstance(max_samples, int | np.integer) or max_samples < 2
    ):
        raise invalid_value(
            "max_samples", "None or an integer of at least 2", repr(max_samples)
        )
    if not isinstance(batch_size, int | np.integer) or batch_size < 1:
        raise invalid_value("batch_size", "an integer of at least 1", repr(batch_size))
    if isinstance(x, keras.utils.PyDataset):
        total = x.num_batches
        stream = (x[index] for index in range(total)) if total is not None else None
    elif _is_arrays(x):
        return _array_batches(x, batch_size, max_samples, seed)
    elif (
        hasattr(x, "__iter__")
        and not isinstance(x, str | list | tuple | dict)
        and iter(x) is not x
    ):
        total = len(x) if _has_length(x) else None
        infinite = hasattr(x, "cardinality") and int(x.cardinality()) == -1
        stream = None if infinite else iter(x)
    else:
        raise invalid_value(
            "x",
            "an array, a nested structure of arrays, a `tf.data.Dataset`, a "
            "`keras.utils.PyDataset`, or an iterable of batches that can be iterated "
            "again (not a generator)",
            f"{x} (of type {type(x)})",
        )
    if stream is None:
        raise invalid_value("x", "a finite data set", f"{x}, which has no end")
    inputs = (keras.utils.unpack_x_y_sample_weight(batch)[0] for batch in stream)
    return _first_samples(inputs, max_samples), total if max_samples is None else None


def _is_arrays(x):
    leaves = keras.tree.flatten(x)
    return bool(leaves) and all(
        hasattr(leaf, "shape") and hasattr(leaf, "dtype") and hasattr(leaf, "ndim")
        for leaf in leaves
    )


def _has_length(x):
    try:
        return len(x) >= 0
    except TypeError:  # a tf.data.Dataset of unknown or infinite length
        return False


def _array_batches(x, batch_size, max_samples, seed):
    lengths = {len(leaf) if leaf.ndim else 0 for leaf in keras.tree.flatten(x)}
    if len(lengths) > 1:
        raise invalid_value(
            "x", "arrays with the same number of examples", f"lengths {sorted(lengths)}"
        )
    [length] = lengths
    order = None
    if max_samples is not None and max_samples < length:
        order = np.random.default_rng(seed).choice(length, max_samples, replace=False)
        order.sort()
        length = max_samples

    def batch(start):
        rows = slice(start, min(start + batch_size, length))
        if order is None:
            return keras.tree.map_structure(lambda leaf: leaf[rows], x)
        return keras.tree.map_structure(
            lambda leaf: ops.convert_to_numpy(leaf)[order[rows]], x
        )

    starts = range(0, length, batch_size)
    return (batch(start) for start in starts), len(starts)


def _first_samples(batches, max_samples):
    if max_samples is None:
        yield from batches
        return
    seen = 0
    for batch in batches:
        needed = max_samples - seen
        yield keras.tree.map_structure(operator.itemgetter(slice(needed)), batch)
        seen += len(keras.tree.flatten(batch)[0])
        if seen >= max_samples:
            return


def _check_input_shape(model, batch):
    if not getattr(model, "inputs", None):  # a subclassed model has no fixed input
        return
    shapes = [tuple(leaf.shape) for leaf in keras.tree.flatten(batch)]
    wanted = [tuple(tensor.shape) for tensor in model.inputs]
    if len(shapes) != len(wanted) or not all(map(_fits, shapes, wanted)):
        raise invalid_value(
            "x",
            f"batches of shape {wanted[0] if len(wanted) == 1 else wanted} (the input "
            f"of model '{model.name}')",
            f"a batch of shape {shapes[0] if len(shapes) == 1 else shapes}",
        )


def _fits(shape, wanted):
    # Keras itself adds or drops a last dimension of size one.
    return any(
        len(candidate) == len(wanted)
        and all(w is None or w == s for s, w in zip(candidate, wanted, strict=True))
        for candidate in (shape, (*shape, 1), shape[:-1] if shape[-1] == 1 else ())
    )


def _check_finite(nested, what, rows="examples"):
    for leaf in keras.tree.flatten(nested):
        array = np.asarray(ops.convert_to_numpy(leaf))
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ValueError(
                f"{what}. Expected finite numbers. Received: NaN or infinity in "
                f"{np.sum(~np.isfinite(array).reshape(len(array), -1).all(axis=1))} of "
                f"{len(array)} {rows}"
            )
