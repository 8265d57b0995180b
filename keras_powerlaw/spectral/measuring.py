"""Measuring covariances and spectra of a model's layers over a data set."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from keras_powerlaw.spectral.covariance import (
    Degenerate,
    StreamingCovariance,
    eigendecomposition,
)
from keras_powerlaw.spectral.spectrum import Spectrum, validate_fit_range
from keras_powerlaw.support.arguments import invalid_value, validate_verbose
from keras_powerlaw.support.batches import (
    input_batches,
    require_finite,
    validate_input_shape,
)
from keras_powerlaw.support.gradients import no_gradients
from keras_powerlaw.support.keras_internals import hold_current_weights
from keras_powerlaw.support.layers import (
    find_layer,
    observe,
    require_one_output,
    unique_names,
)
from keras_powerlaw.support.memory import require_memory
from keras_powerlaw.support.passes import InferencePasses
from keras_powerlaw.support.progress import Progress
from keras_powerlaw.support.types import Reduction, Tensor, Verbose
from keras_powerlaw.support.units import (
    output_units,
    to_samples,
    validate_reduction,
)


def measure_spectrum(
    model: keras.Model,
    x: Any,
    layer: keras.layers.Layer | str,
    *,
    reduction: Reduction = "flatten",
    fit_range: tuple[int, int] | None = None,
    max_samples: int | None = None,
    batch_size: int = 1024,
    seed: int = 0,
    verbose: Verbose = "auto",
) -> Spectrum:
    """Measures the covariance spectrum of a layer's activations over a data set.

    The data pass through the model in inference mode, batch by batch. Only the
    `(units, units)` covariance is stored, in float64. The model keeps the state that it
    has, even a stateful LSTM. It may be measured in a callback, and while other threads
    measure it or predict with it, but not while another thread trains it.

    Args:
        model: A built Keras model.
        x: The data, in any form that `fit()` takes except a generator: array, data
            frame, sparse matrix (made dense batch by batch), a list or dictionary of
            them for several inputs, `tf.data.Dataset`, `keras.utils.PyDataset`, or
            another iterable of batches that can be iterated more than once. Labels in
            the batches are ignored. An array in a file may be larger than the memory.
        layer: A layer of the model with one output, or its name.
        reduction: How an output with more than two dimensions is divided into samples
            and units: `"flatten"`, `"channels"` or `"mean"`; see
            `SpectralActivityRegularizer`, and use the same as for the layer's
            regularizer. Defaults to `"flatten"`.
        fit_range: `(first, last)`, 1-based and inclusive: the eigenvalues to which the
            exponent is fitted. Defaults to `(11, 500)`, cut off where eigenvalues are
            rounding error.
        max_samples: Maximum number of examples: a random choice from an array, random
            batches of a `PyDataset`, the first ones of another data set. Defaults to
            all, which an endless data set does not allow.
        batch_size: Examples per forward pass, for arrays. Defaults to 1024.
        seed: Seed of the random choice. Defaults to 0.
        verbose: `"auto"` shows progress when the measurement is slow, 0 never,
            1 always. Defaults to `"auto"`.

    Returns:
        A `Spectrum`, with `.eigenvalues`, `.exponent`, `.exponent_interval`,
        `.fit_range`, `.floor`, `.dimension_90` and `.participation_ratio`.

    Raises:
        ValueError: If there is no such layer or reduction; if the layer has several
            outputs, as with `return_state=True`; if `x` is empty, does not fit the
            model, is endless or not finite, or has fewer than two examples; or if the
            layer has too many units for the available memory.

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
    target = find_layer(model, layer)
    units = output_units(target, validate_reduction(reduction))
    if fit_range is not None and units is not None:
        validate_fit_range(fit_range, units)  # before the pass over the data
    [statistics] = stream_covariances(
        model,
        x,
        [target],
        [reduction],
        batch_size=batch_size,
        max_samples=max_samples,
        seed=seed,
        progress=Progress("Spectrum", validate_verbose(verbose)),
    )
    eigenvalues, _ = eigendecomposition(statistics.covariance())
    return Spectrum(eigenvalues, fit_range, statistics.floor())


def stream_covariances(
    model: keras.Model,
    x: Any,
    layers: Sequence[keras.layers.Layer],
    reductions: Sequence[Reduction],
    *,
    batch_size: int,
    max_samples: int | None,
    seed: int,
    progress: Progress,
) -> list[StreamingCovariance]:
    """Covariances of several layers' activations, from one pass over the data.

    Returns:
        One `StreamingCovariance` per layer. A layer that is called several times per
        forward pass contributes the activations of every call.
    """
    hold_current_weights(model)
    names = unique_names(model, layers)
    widths = []
    for name, layer, reduction in zip(names, layers, reductions, strict=True):
        require_one_output(layer)
        if (units := output_units(layer, reduction)) is not None:
            widths.append((name, units))
    require_memory(widths)
    converts = [functools.partial(_to_array, reduction=each) for each in reductions]
    batches, total = input_batches(model, x, batch_size, max_samples, seed)
    statistics = [StreamingCovariance(layer.compute_dtype) for layer in layers]
    examples, run = 0, InferencePasses(model)
    for index, batch in enumerate(batches):
        if index == 0:
            validate_input_shape(model, batch)
        examples += len(keras.tree.flatten(batch)[0])
        require_finite(batch, f"Invalid value for argument `x`: batch {index}")
        with no_gradients(), observe(model, layers, converts) as observed:
            run(batch)
        if index == 0:
            require_memory(
                [
                    (name, activities[0].shape[1])
                    for name, activities in zip(names, observed, strict=True)
                    if activities
                ]
            )
        for name, activities, running in zip(names, observed, statistics, strict=True):
            if not activities:
                raise ValueError(
                    f"Layer '{name}' was not called by model '{model.name}', so "
                    "it has no activations to measure."
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
    return statistics


def _to_array(activity: Tensor, reduction: Reduction) -> NDArray[Any]:
    if keras.backend.standardize_dtype(activity.dtype) in ("float16", "bfloat16"):
        activity = ops.cast(activity, "float32")  # like the regularizer
    return np.asarray(ops.convert_to_numpy(to_samples(activity, reduction)))
