"""The file from which interrupted training resumes with the same eigenbasis."""

from __future__ import annotations

import dataclasses
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_powerlaw.backends import steps_taken
from keras_powerlaw.basis import creating_state
from keras_powerlaw.layers import named_layers
from keras_powerlaw.progress import write_atomically
from keras_powerlaw.spectrum import Spectrum


@dataclasses.dataclass(frozen=True)
class Renewal:
    """What a refresh found for one layer.

    Attributes:
        spectrum: The spectrum of its activations on the data of the refresh.
        staleness: The share of the penalty that the previous basis no longer showed,
            from 0 to 1; NaN at the first refresh.
    """

    spectrum: Spectrum
    staleness: float


# Steps in finished epochs, the step of the last refresh, their number and results.
_State = tuple[int, int | None, int, dict[str, Renewal]]


class Backup:
    """The file from which interrupted training resumes with the same eigenbasis.

    Args:
        path: Path of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, model: keras.Model, state: _State) -> None:
        """Writes the state of a callback, and what the layers keep."""
        steps, last, refreshes, renewals = state
        arrays: dict[str, Any] = {
            "state": [steps, -1 if last is None else last, refreshes],
            "weights_of_step": steps_taken(model),
        }
        for index, (name, layer) in enumerate(named_layers(model).items()):
            kept = layer.activity_regularizer.eigenbasis.to_arrays()
            if name in renewals:
                spectrum = renewals[name].spectrum
                kept["eigenvalues"] = spectrum.eigenvalues
                kept["fit_range"] = np.array(spectrum.fit_range)
                kept["figures"] = np.array([spectrum.floor, renewals[name].staleness])
            arrays |= {f"{index} {key}": value for key, value in kept.items()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, lambda file: np.savez(file, **arrays))

    def read(self, model: keras.Model, resumes: bool) -> _State | None:
        """Restores what the layers keep, and returns the state of the callback.

        Args:
            model: The model, with the weights with which training resumes.
            resumes: Whether there should be a file.

        Returns:
            None, with a warning if training resumes, if there is no file of these
            weights.
        """
        try:
            with np.load(self.path) as file:
                arrays = dict(file)
            if arrays["weights_of_step"] != steps_taken(model):
                raise ValueError(f"it is of step {arrays['weights_of_step']}")
            with creating_state(model):
                renewals = dict(_restore(model, arrays))
        except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
            if resumes:
                warnings.warn(
                    f"Training resumes without its eigenbasis: '{self.path}' is "
                    f"missing, damaged, or not of step {steps_taken(model)} ({error}).",
                    stacklevel=2,
                )
            return None
        steps, last, refreshes = map(int, arrays["state"])
        return steps, None if last < 0 else last, refreshes, renewals


def _restore(
    model: keras.Model, arrays: Mapping[str, Any]
) -> Iterator[tuple[str, Renewal]]:
    for index, (name, layer) in enumerate(named_layers(model).items()):
        prefix = f"{index} "
        kept = {
            key.removeprefix(prefix): value
            for key, value in arrays.items()
            if key.startswith(prefix)
        }
        layer.activity_regularizer.eigenbasis.restore(kept)
        if "figures" in kept:
            first, last = map(int, kept["fit_range"])
            fit_range = (first, last) if first < last else None  # it was too short
            floor, staleness = map(float, kept["figures"])
            yield (
                name,
                Renewal(Spectrum(kept["eigenvalues"], fit_range, floor), staleness),
            )
