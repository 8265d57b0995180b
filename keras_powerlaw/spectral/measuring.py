"""Measuring covariances and spectra of a model's layers over a data set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

import keras

from keras_powerlaw.arguments import (
    LayerChoice,
    Reduction,
    Verbose,
    validate_optional_integer,
    validate_verbose,
)
from keras_powerlaw.progress import Progress
from keras_powerlaw.spectral.streaming import (
    Widths,
    stream_activations,
    stream_covariances,
)
from keras_powerlaw.spectrum import Covariance, Spectrum, validate_fit_range
from keras_powerlaw.support.batches import count_examples
from keras_powerlaw.support.layers import find_layers, unique_names
from keras_powerlaw.support.memory import require_memory_for_samples
from keras_powerlaw.units import output_units, validate_reduction


@overload
def measure_spectrum(
    model: keras.Model,
    x: Any,
    layer: keras.layers.Layer | str,
    *,
    reduction: Reduction = ...,
    fit_range: tuple[int, int] | None = ...,
    components: int | None = ...,
    max_samples: int | None = ...,
    batch_size: int = ...,
    seed: int = ...,
    verbose: Verbose = ...,
) -> Spectrum: ...


@overload
def measure_spectrum(
    model: keras.Model,
    x: Any,
    layer: type[keras.layers.Layer] | Sequence[LayerChoice],
    *,
    reduction: Reduction = ...,
    fit_range: tuple[int, int] | None = ...,
    components: int | None = ...,
    max_samples: int | None = ...,
    batch_size: int = ...,
    seed: int = ...,
    verbose: Verbose = ...,
) -> dict[str, Spectrum]: ...


def measure_spectrum(
    model: keras.Model,
    x: Any,
    layer: LayerChoice | Sequence[LayerChoice],
    *,
    reduction: Reduction = "flatten",
    fit_range: tuple[int, int] | None = None,
    components: int | None = None,
    max_samples: int | None = None,
    batch_size: int = 1024,
    seed: int = 0,
    verbose: Verbose = "auto",
) -> Spectrum | dict[str, Spectrum]:
    """Measures the covariance spectrum of a layer's activations, or of many layers'.

    The data pass through the model in inference mode, batch by batch, once for all
    layers. Only the `(units, units)` covariance of each is stored, in float64. The
    model keeps the state that it has, even a stateful LSTM. It may be measured in a
    callback, and while other threads measure it or predict with it, but not while
    another thread trains it.

    Args:
        model: A built Keras model.
        x: The data, in any form that `fit()` takes except a generator: array, data
            frame, sparse matrix (made dense batch by batch), a list or dictionary of
            them for several inputs, `tf.data.Dataset`, `keras.utils.PyDataset`, or
            another iterable of batches that can be iterated more than once. Labels in
            the batches are ignored. An array in a file may be larger than the memory.
        layer: A layer of the model with one output, or its name; or several: a list of
            layers and names, a class, for all layers of that class, such as
            `keras.layers.Conv2D`, or a list of classes.
        reduction: How an output with more than two dimensions is divided into samples
            and units: `"flatten"`, `"channels"` or `"mean"`; see
            `SpectralActivityRegularizer`, and use the same as for the layer's
            regularizer. Defaults to `"flatten"`.
        fit_range: `(first, last)`, 1-based and inclusive: the eigenvalues to which the
            exponent is fitted. Defaults to `(11, 500)`, cut off where eigenvalues are
            rounding error.
        components: Compute only so many of the largest eigenvalues of each layer; see
            `Spectrum.from_samples()`. Then a layer may be too wide for a covariance: of
            one with fewer samples than units, the samples are kept instead. Defaults to
            `None`: all.
        max_samples: Maximum number of examples: a random choice from an array, random
            batches of a `PyDataset`, the first ones of another data set. Defaults to
            all, which an endless data set does not allow.
        batch_size: Examples per forward pass, for arrays. Defaults to 1024.
        seed: Seed of the random choice. Defaults to 0.
        verbose: `"auto"` shows progress when the measurement is slow, 0 never,
            1 always. Defaults to `"auto"`.

    Returns:
        A `Spectrum`, with `.eigenvalues`, `.exponent`, `.exponent_interval`,
        `.fit_range`, `.floor`, `.dimension_90` and more. Of several layers, a
        dictionary of them by name, or by path (`"tower/hidden"`) where names are equal,
        which `plot_spectrum` takes.

    Raises:
        ValueError: If there is no such layer or reduction; if the layer has several
            outputs, as with `return_state=True`; if `x` is empty, does not fit the
            model, is endless or not finite, or has fewer than two examples; or if the
            layers have too many units for the available memory.

    Example:

    ```python
    import keras
    import numpy as np
    import keras_powerlaw as kp

    model = keras.Sequential(
        [
            keras.Input((20,)),
            keras.layers.Dense(50, activation="tanh", name="hidden"),
            keras.layers.Dense(10, name="logits"),
        ]
    )
    x = np.random.default_rng(0).normal(size=(500, 20))
    spectrum = kp.measure_spectrum(model, x, "hidden")
    print(spectrum.exponent, spectrum.dimension_90)
    spectra = kp.measure_spectrum(model, x, keras.layers.Dense)
    print(list(spectra))  # ['hidden', 'logits']
    ```

    Reference:
        Nassar et al. (2020), Figure 2A; Stringer et al. (2019) for the fit.
    """
    targets, is_one = find_layers(model, layer)
    validate_reduction(reduction)
    validate_optional_integer("components", components, minimum=1)
    for target in targets:
        units = output_units(target, reduction)
        if fit_range is not None and units is not None:
            # Before the pass over the data.
            validate_fit_range(fit_range, min(units, components or units))
    names = unique_names(model, targets)
    options: dict[str, Any] = {
        "batch_size": batch_size,
        "max_samples": max_samples,
        "seed": seed,
        "progress": Progress("Spectrum", validate_verbose(verbose)),
    }
    reductions = [reduction] * len(targets)
    if components is None:
        covariances = stream_covariances(model, x, targets, reductions, **options)
        found = _decomposed(covariances, fit_range)
    else:
        running = [
            Covariance(target.compute_dtype, keeps_samples=True) for target in targets
        ]
        count = count_examples(model, x, max_samples)

        def require(widths: Widths) -> None:
            require_memory_for_samples(widths, count, components)

        stream_activations(model, x, targets, reductions, running, require, **options)
        found = [
            Spectrum(each.eigenvalues(components), fit_range, each.floor(), each.total)
            for each in running
        ]
    return found[0] if is_one else dict(zip(names, found, strict=True))


def _decomposed(
    covariances: list[Covariance], fit_range: tuple[int, int] | None
) -> list[Spectrum]:
    """The spectra of covariances, each of which is let go once it is decomposed."""
    spectra = []
    while covariances:
        running = covariances.pop(0)
        spectra.append(Spectrum(running.eigenvalues(), fit_range, running.floor()))
    return spectra
