"""What a refresh measures of a layer, and how it becomes the layer's eigenbasis."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from keras_powerlaw.arguments import Tensor
from keras_powerlaw.spectral.basis import renewing
from keras_powerlaw.spectral.regularizer import (
    SpectralActivityRegularizer,
    validate_width,
)
from keras_powerlaw.spectrum import Degenerate, Spectrum
from keras_powerlaw.support.layers import unique_names

# The staleness is estimated along so many directions; more would cost wide layers as
# much as the eigendecomposition.
DIRECTIONS = 256

_ADVICE = (
    "If this goes on, put the penalty on a batch normalization, give it a smaller "
    '`beta`, or another form than "paper".'
)


@dataclasses.dataclass(frozen=True)
class Renewal:
    """What a refresh found for one layer.

    Attributes:
        spectrum: The spectrum of its activations on the data of the refresh.
        staleness: The share of the penalty that the previous basis no longer showed,
            from 0 to 1; NaN at the first refresh.
        penalty: The penalty of the spectrum.
        dead: The share of units that are constant.
    """

    spectrum: Spectrum
    staleness: float
    penalty: float
    dead: float


# Before the first refresh: a spectrum without an exponent.
NO_RENEWAL = Renewal(
    Spectrum(np.zeros(1)), staleness=np.nan, penalty=np.nan, dead=np.nan
)


@dataclasses.dataclass(frozen=True)
class Decomposition:
    """A layer's covariance Σ = V Λ Vᵀ over the data of a refresh.

    Attributes:
        eigenvalues: Array of shape `(units,)`, largest first.
        eigenvectors: Array or tensor of shape `(units, units)`, one per column.
        variances: Array of shape `(units,)`, that of each unit.
        floor: Variance at or below which an eigenvalue is rounding error.
        variances_along: Returns the variances along some directions, `(directions,)`,
            given a tensor of shape `(units, directions)`.
    """

    eigenvalues: NDArray[np.floating]
    eigenvectors: Any
    variances: NDArray[np.floating]
    floor: float
    variances_along: Callable[[Tensor], Tensor]


def renew_layers(
    model: keras.Model,
    layers: Sequence[keras.layers.Layer],
    decompositions: Sequence[Decomposition | Degenerate],
    keeps_degenerate: bool,
    measures: bool = True,
) -> dict[str, Renewal]:
    """Gives layers the eigenbases that were found.

    Args:
        model: The model that is trained.
        layers: Its regularized layers.
        decompositions: What was found for each, or why there is nothing.
        keeps_degenerate: Whether a layer whose activations have become degenerate keeps
            the basis that it has, with a warning.
        measures: Whether to measure, besides, how good the old bases were.

    Returns:
        A `Renewal` per name (or path) of a layer that has a new basis; none if nothing
        is measured.

    Raises:
        ValueError: If a layer is degenerate that has no basis, or may not keep it.
    """
    renewed, renewals = [], {}
    names = unique_names(model, layers)
    for name, layer, found in zip(names, layers, decompositions, strict=True):
        try:
            if isinstance(found, Degenerate):
                raise found
            spectrum = _spectrum(name, layer.activity_regularizer, found)
            if measures:
                renewals[name] = _renewal(layer.activity_regularizer, found, spectrum)
            renewed.append((layer.activity_regularizer.eigenbasis, found))
        except Degenerate as error:
            if not (
                keeps_degenerate and layer.activity_regularizer.eigenbasis.is_known
            ):
                raise
            basis = layer.activity_regularizer.eigenbasis
            basis.weaken()
            warnings.warn(
                f"The eigenbasis of layer '{name}' could not be renewed; the penalty "
                f"goes on in the last one, at {basis.yielded_to:.2g} of its strength. "
                f"{error} {_ADVICE}",
                stacklevel=2,
            )
    # Last, so that an error in one layer leaves all bases unchanged.
    with renewing(model, [basis for basis, _ in renewed]):
        for basis, found in renewed:
            basis.renew(found.eigenvectors, found.eigenvalues)
    return renewals


def _renewal(
    regularizer: SpectralActivityRegularizer, found: Decomposition, spectrum: Spectrum
) -> Renewal:
    tail = spectrum.eigenvalues[regularizer.tau - 1 :].astype("float32")
    penalty = float(regularizer.penalty_of(ops.convert_to_tensor(tail)))
    dead = float(np.mean(found.variances <= found.floor))
    staleness = _staleness(regularizer, found, tail, penalty)
    return Renewal(spectrum, staleness, penalty, dead)


def _spectrum(
    name: str, regularizer: SpectralActivityRegularizer, found: Decomposition
) -> Spectrum:
    """The spectrum of a layer, with its exponent fitted from n = τ + 1."""
    units = len(found.eigenvalues)
    validate_width(regularizer, units)
    spectrum = Spectrum(found.eigenvalues.astype("float64"), floor=found.floor)
    if spectrum.rank < regularizer.tau:
        raise Degenerate(
            f"The activations of layer '{name}' vary in only "
            f"{spectrum.rank} of {units} directions by more than rounding "
            "errors: most units are constant (dead or saturated) or repeat others, or "
            f"there are too few examples. The penalty needs at least "
            f"tau={regularizer.tau}."
        )
    last = min(500, spectrum.rank)
    if regularizer.tau + 1 < last:
        return dataclasses.replace(spectrum, fit_range=(regularizer.tau + 1, last))
    return spectrum


def _staleness(
    regularizer: SpectralActivityRegularizer,
    found: Decomposition,
    tail: NDArray[np.float32],
    penalty: float,
) -> float:
    """The share of the penalty that the regularizer's current basis does not show."""
    if not regularizer.eigenbasis.is_known:
        return float("nan")
    if not penalty:
        return 0.0
    # All directions that fix κ, and an even choice among the rest.
    every = np.arange(len(tail))
    spaced = np.linspace(0, len(tail) - 1, DIRECTIONS).round().astype(int)
    some = np.union1d(every[: 3 * regularizer.tau + 1], spaced)
    basis = ops.take(regularizer.eigenbasis.variable, some, axis=1)
    variances = found.variances_along(ops.cast(basis, "float32"))
    ratios = ops.convert_to_numpy(variances) / np.maximum(tail[some], 1e-30)
    nearest = np.abs(every[:, np.newaxis] - some).argmin(axis=1)
    shown = ops.convert_to_tensor((tail * ratios[nearest]).astype("float32"))
    return max(0.0, 1 - float(regularizer.penalty_of(shown)) / penalty)
