"""Renewing the eigenbasis, outside `fit()` and for the callback within it."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_powerlaw.arguments import Verbose, invalid_value, validate_verbose
from keras_powerlaw.keras_internals import hold_current_weights, strategy_of
from keras_powerlaw.progress import Progress
from keras_powerlaw.spectral.basis import creating_state
from keras_powerlaw.spectral.decomposition import decompose_samples
from keras_powerlaw.spectral.layers import layers_to_renew, named_layers, units_of
from keras_powerlaw.spectral.regularizer import validate_width
from keras_powerlaw.spectral.renewal import Decomposition, Renewal, renew_layers
from keras_powerlaw.spectral.streaming import stream_covariances
from keras_powerlaw.spectrum import Covariance, Degenerate, Spectrum
from keras_powerlaw.support.layers import require_training_argument, unique_names
from keras_powerlaw.support.memory import require_memory


def refresh_eigenbasis(
    model: keras.Model,
    x: Any = None,
    *,
    max_samples: int | None = None,
    batch_size: int = 1024,
    seed: int = 0,
    verbose: Verbose = "auto",
) -> dict[str, Spectrum]:
    """Renews the eigenbasis of every regularized layer of a model.

        Σ = V Λ Vᵀ,  λ₁ ≥ λ₂ ≥ …

    A single pass over the data in inference mode measures the covariance Σ of every
    regularized layer, accumulated batch by batch in float64. LAPACK decomposes it,
    outside any compiled program.

    Without data, Σ is that of the activations in the latest training steps, in float32.
    The first call, which must come before such a step is compiled, makes them keep
    their activations. Until there are two samples per unit, nothing is renewed, and
    training goes on without the penalty.

    Call it on the model that you train or evaluate: after loading a saved model, or
    in a custom training loop. Within `fit()`, use `EigenbasisRefresh`.

    Args:
        model: A model with at least one `SpectralActivityRegularizer`.
        x: The training data; see `measure_spectrum()`. Defaults to `None`: the
            activations of training steps.
        max_samples: Maximum number of examples: a random choice from an array, random
            batches of a `PyDataset`, the first ones of another data set. Defaults to
            all, which an endless data set does not allow.
        batch_size: Examples per forward pass, for arrays. Defaults to 1024.
        seed: Seed of the random choice. Defaults to 0.
        verbose: `"auto"` shows progress when the refresh is slow, 0 never, 1 always.
            Defaults to `"auto"`.

    Returns:
        The measured `Spectrum` of each regularized layer, by layer name, or by path
        (`"tower/hidden"`) where names are equal; empty if there are too few activations
        yet. Its exponent is fitted from n = τ + 1 to n = 500 or the spectrum's end.

    Raises:
        ValueError: If no layer is regularized, or two share one regularizer; if τ is
            not less than a layer's width, or exceeds the number of directions in which
            its activations vary; if `max_samples` comes without `x`; if `x` is empty,
            does not fit the model, is not finite, or has fewer than two examples; if
            the layers have too many units for the available memory; or if the model has
            other activity regularizers under `tf.distribute`.

    Example:

    ```python
    import keras
    import numpy as np
    import keras_powerlaw as kp

    regularizer = kp.SpectralActivityRegularizer(tau=5)
    model = keras.Sequential(
        [
            keras.Input((20,)),
            keras.layers.Dense(50, activity_regularizer=regularizer, name="hidden"),
        ]
    )
    x = np.random.default_rng(0).normal(size=(500, 20))
    spectra = kp.refresh_eigenbasis(model, x)
    print(spectra["hidden"].exponent)
    ```

    Reference:
        Nassar et al. (2020), eq. (3) and section 3.2.
    """
    if x is None:
        if max_samples is not None:
            raise invalid_value(
                "max_samples",
                "None without `x`: the basis then comes from the training steps",
                max_samples,
            )
        validate_verbose(verbose)
        open_windows(model)
        renewals = renew_from_windows(model) or {}
    else:
        renewals = renew_from_data(
            model,
            x,
            max_samples=max_samples,
            batch_size=batch_size,
            seed=seed,
            verbose=verbose,
        )
    return {name: renewal.spectrum for name, renewal in renewals.items()}


def renew_from_data(
    model: keras.Model,
    x: Any,
    *,
    max_samples: int | None,
    batch_size: int,
    seed: int,
    verbose: Verbose,
    keeps_degenerate: bool = False,
) -> dict[str, Renewal]:
    """Implements `refresh_eigenbasis(model, x)`, with a `Renewal` per layer name."""
    progress = Progress("Eigenbasis", validate_verbose(verbose))
    layers = layers_to_renew(model)
    try:
        statistics = stream_covariances(
            model,
            x,
            layers,
            [layer.activity_regularizer.reduction for layer in layers],
            batch_size=batch_size,
            max_samples=max_samples,
            seed=seed,
            progress=progress,
        )
    except Degenerate as error:
        return renew_layers(model, layers, [error] * len(layers), keeps_degenerate)
    found = [_decompose(running) for running in statistics]
    return renew_layers(model, layers, found, keeps_degenerate)


def _decompose(statistics: Covariance) -> Decomposition:
    eigenvalues, eigenvectors = statistics.eigenvectors()
    return Decomposition(
        eigenvalues,
        eigenvectors,
        statistics.variances(),
        statistics.floor(),
        lambda basis: statistics.variances_along(ops.convert_to_numpy(basis)),
    )


def open_windows(model: keras.Model) -> None:
    """Makes training steps keep their latest activations, from now on.

    Raises:
        ValueError: If a layer's number of units is unknown, or does not suit its
            regularizer, or is too large for the memory.
    """
    layers = [
        layer
        for layer in layers_to_renew(model)
        if not layer.activity_regularizer.keeps_window
    ]
    if not layers:
        return
    require_training_argument(model)
    strategy = strategy_of(model)
    replicas = getattr(strategy, "num_replicas_in_sync", 1)
    if replicas > 1 and replicas != len(strategy.extended.worker_devices):
        raise ValueError(
            "With several workers, each would take the eigenbasis from its own "
            "batches. Give `x`, the training data, the same on every worker."
        )
    widths = [(layer.name, _units(layer)) for layer in layers]
    known = [(name, units) for name, units in widths if units is not None]
    require_memory(known, in_training=True)
    with creating_state(model, is_new=True):
        for layer, (_, units) in zip(layers, widths, strict=True):
            layer.activity_regularizer.keep_window(units, replicas)


def _units(layer: keras.layers.Layer) -> int | None:
    units = units_of(layer)
    if units is not None:
        validate_width(layer.activity_regularizer, units)
    elif keras.backend.backend() != "tensorflow":  # there, the first step makes it
        raise ValueError(
            f"The number of units of layer '{layer.name}' is not known yet. Call the "
            "model on a batch first."
        )
    return units


def forget_windows(model: keras.Model) -> None:
    """Forgets the activations of an earlier training, and the bases made of them."""
    regularizers = [layer.activity_regularizer for layer in layers_to_renew(model)]
    trained = [each for each in regularizers if each.window and each.window.count]
    with creating_state(model, is_new=bool(trained)):
        for regularizer in trained:
            regularizer.forget()


def discard_unknown_bases(model: keras.Model) -> list[tuple[str, int, int]]:
    """Takes back the room for bases that never became known, and their windows.

    Training without a basis is then an error again, instead of training without the
    penalty.

    Returns:
        The names of their layers, how many samples these have, and how many they need.
    """
    missing = []
    with creating_state(model, is_new=True):
        for name, layer in named_layers(model).items():
            regularizer = layer.activity_regularizer
            window = regularizer.window
            if window is not None and not regularizer.eigenbasis.is_known:
                missing.append((name, window.count, window.needed))
                regularizer.forget()
    return missing


def renew_from_windows(
    model: keras.Model, keeps_degenerate: bool = False, measures: bool = True
) -> dict[str, Renewal] | None:
    """Implements `refresh_eigenbasis(model)`; the results are those of `renew_layers`.

    Returns:
        None if a window has too few samples yet; then nothing has changed.
    """
    layers = layers_to_renew(model)
    hold_current_weights(model)
    windows = [layer.activity_regularizer.window for layer in layers]
    if not all(window.is_filled for window in windows):
        return None
    found: list[Decomposition | Degenerate] = []
    for name, layer, window in zip(
        unique_names(model, layers), layers, windows, strict=True
    ):
        try:
            found.append(decompose_samples(window.samples(), layer.compute_dtype))
        except Degenerate as error:
            found.append(Degenerate(f"Layer '{name}': {error}"))
    return renew_layers(model, layers, found, keeps_degenerate, measures)
