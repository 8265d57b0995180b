"""Renewing the eigenbasis, outside `fit()` and for the callback within it."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from keras_powerlaw.spectral.basis import renewing
from keras_powerlaw.spectral.covariance import eigendecomposition, variances_along
from keras_powerlaw.spectral.measuring import stream_covariances
from keras_powerlaw.spectral.regularizer import (
    SpectralActivityRegularizer,
    penalty_of_variances,
    regularized_layers,
    validate_width,
)
from keras_powerlaw.spectral.spectrum import Spectrum
from keras_powerlaw.support.arguments import invalid_value, validate_verbose
from keras_powerlaw.support.keras_internals import (
    flatten_layers,
    hold_current_weights,
    strategy_of,
)
from keras_powerlaw.support.progress import Progress
from keras_powerlaw.support.types import Verbose


def refresh_eigenbasis(
    model: keras.Model,
    x: Any,
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

    Call it on the model that you train or evaluate: after loading a saved model, or
    in a custom training loop. Within `fit()`, use `EigenbasisRefresh`.

    Args:
        model: A model with at least one `SpectralActivityRegularizer`.
        x: The training data: array, nested arrays for several inputs,
            `tf.data.Dataset`, `keras.utils.PyDataset`, or another iterable of batches
            that can be iterated more than once. Labels, if any, are ignored.
        max_samples: Maximum number of examples: a random choice from an array, the
            first ones of a data set. Defaults to all.
        batch_size: Examples per forward pass, for arrays. Defaults to 1024.
        seed: Seed of the random choice. Defaults to 0.
        verbose: `"auto"` shows progress when the refresh is slow, 0 never, 1 always.
            Defaults to `"auto"`.

    Returns:
        The measured `Spectrum` of each regularized layer, by layer name. Its exponent
        is fitted from n = τ + 1 to n = 500 or the spectrum's end.

    Raises:
        ValueError: If no layer is regularized, or two share one regularizer; if τ is
            not less than a layer's width, or exceeds the number of directions in which
            its activations vary; if `x` is empty, does not fit the model, is not
            finite, or has fewer than two examples; if the layers have too many units
            for the available memory; or if the model has other activity regularizers
            under `tf.distribute`.

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
    renewals = renew_bases(
        model,
        x,
        max_samples=max_samples,
        batch_size=batch_size,
        seed=seed,
        verbose=verbose,
    )
    return {name: renewal.spectrum for name, renewal in renewals.items()}


@dataclasses.dataclass(frozen=True)
class Renewal:
    """What a refresh measured for one layer.

    Attributes:
        spectrum: The spectrum of its activations on the data of the refresh.
        staleness: The share of the penalty that the previous basis no longer showed,
            from 0 to 1; NaN at the first refresh.
    """

    spectrum: Spectrum
    staleness: float


def renew_bases(
    model: keras.Model,
    x: Any,
    *,
    max_samples: int | None,
    batch_size: int,
    seed: int,
    verbose: Verbose,
) -> dict[str, Renewal]:
    """Implements `refresh_eigenbasis()`, and returns a `Renewal` per layer name."""
    progress = Progress("Eigenbasis", validate_verbose(verbose))
    layers = layers_with_basis(model)
    if not layers:
        raise invalid_value(
            "model",
            "a model with at least one layer whose `activity_regularizer` is a "
            "SpectralActivityRegularizer that uses an eigenbasis",
            f"'{model.name}', which has none",
        )
    _refuse_other_regularizers_on_replicas(model)
    hold_current_weights(model)
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
    renewals, eigenvectors_of = {}, []
    for layer, running in zip(layers, statistics, strict=True):
        sigma = running.covariance()
        eigenvalues, eigenvectors = eigendecomposition(sigma)
        renewals[layer.name] = Renewal(
            _spectrum(layer, eigenvalues),
            _staleness(layer.activity_regularizer, sigma, eigenvalues),
        )
        eigenvectors_of.append(eigenvectors)

    # Last, so that an error in one layer leaves all bases unchanged.
    bases = [layer.activity_regularizer.eigenbasis for layer in layers]
    with renewing(model, bases):
        for basis, eigenvectors in zip(bases, eigenvectors_of, strict=True):
            basis.renew(eigenvectors)
    return renewals


def layers_with_basis(model: keras.Model) -> list[keras.layers.Layer]:
    """The regularized layers of `model` whose penalty uses an eigenbasis."""
    return [
        layer
        for layer in regularized_layers(model)
        if not layer.activity_regularizer.exact
    ]


def _spectrum(layer: keras.layers.Layer, eigenvalues: NDArray[np.float64]) -> Spectrum:
    """The spectrum of a layer, with its exponent fitted from n = τ + 1."""
    regularizer = layer.activity_regularizer
    validate_width(regularizer, len(eigenvalues))
    spectrum = Spectrum(eigenvalues)
    if spectrum.rank < regularizer.tau:
        raise ValueError(
            f"The activations of layer '{layer.name}' on `x` vary in only "
            f"{spectrum.rank} of {len(eigenvalues)} directions: most units are "
            "constant (dead or saturated), or there are too few examples. The "
            f"penalty needs at least tau={regularizer.tau}."
        )
    last = min(500, spectrum.rank)
    if regularizer.tau + 1 < last:
        return Spectrum(eigenvalues, (regularizer.tau + 1, last))
    return spectrum


def _staleness(
    regularizer: SpectralActivityRegularizer,
    sigma: NDArray[np.float64],
    eigenvalues: NDArray[np.float64],
) -> float:
    """The share of the penalty that the regularizer's current basis does not show."""
    if regularizer.basis is None:
        return float("nan")
    variances = variances_along(sigma, regularizer.eigenbasis.to_float32())
    shown, true = (
        float(penalty_of_variances(regularizer, ops.convert_to_tensor(tail)))
        for tail in (variances, eigenvalues[regularizer.tau - 1 :].astype("float32"))
    )
    return max(0.0, 1 - shown / true) if true else 0.0


def _refuse_other_regularizers_on_replicas(model: keras.Model) -> None:
    # A collective operation makes Keras lose the losses that layers recorded before it.
    strategy = strategy_of(model)
    if getattr(strategy, "num_replicas_in_sync", 1) == 1:
        return
    others = [
        layer.name
        for layer in flatten_layers(model)
        if layer.activity_regularizer is not None
        and not isinstance(layer.activity_regularizer, SpectralActivityRegularizer)
    ]
    if others:
        raise invalid_value(
            "model",
            "a model without other activity regularizers under a `tf.distribute` "
            "strategy of several replicas, since Keras mixes up their losses",
            f"'{model.name}' with activity regularizers of layers {others}",
        )
