"""Files from which interrupted training resumes with the same eigenbasis."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_powerlaw.progress import write_atomically
from keras_powerlaw.spectral.basis import share_of_first
from keras_powerlaw.spectral.regularizer import SpectralActivityRegularizer
from keras_powerlaw.spectral.renewal import Renewal
from keras_powerlaw.spectrum import Spectrum

NEVER = -1  # in a file, the step of a refresh that has not taken place


@dataclasses.dataclass(frozen=True)
class CallbackState:
    """The progress of an `EigenbasisRefresh` callback.

    Attributes:
        steps: Optimizer steps taken in this training.
        last_refresh: The step of the last refresh, or None.
        refreshes: Number of refreshes.
    """

    steps: int
    last_refresh: int | None
    refreshes: int


class BasisBackup:
    """One file per epoch; its name holds the optimizer's step to identify the weights.

    Args:
        folder: Directory of the files.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(
        self,
        iterations: int,
        state: CallbackState,
        layers: Sequence[tuple[SpectralActivityRegularizer, Renewal | None]],
    ) -> None:
        """Writes the state of a callback, and the bases and windows of all layers."""
        arrays: dict[str, Any] = {
            "steps": state.steps,
            "last_step": NEVER if state.last_refresh is None else state.last_refresh,
            "refreshes": state.refreshes,
        }
        for index, (regularizer, renewal) in enumerate(layers):
            if renewal is not None:
                arrays[f"basis{index}"] = regularizer.eigenbasis.to_float32()
                arrays[f"share{index}"] = regularizer.eigenbasis.share_to_float()
                arrays[f"strength{index}"] = regularizer.eigenbasis.yielded_to
                arrays[f"eigenvalues{index}"] = renewal.spectrum.eigenvalues
                arrays[f"fit_range{index}"] = renewal.spectrum.fit_range
                arrays[f"floor{index}"] = renewal.spectrum.floor
                arrays[f"staleness{index}"] = renewal.staleness
                arrays[f"penalty{index}"] = renewal.penalty
                arrays[f"dead{index}"] = renewal.dead
            if regularizer.window is not None:
                for name, array in regularizer.window.to_arrays().items():
                    arrays[f"{name}_of{index}"] = array
        self._folder.mkdir(parents=True, exist_ok=True)
        write_atomically(
            self._file_of(iterations), lambda file: np.savez(file, **arrays)
        )
        # The previous file stays: this epoch's weights may not have been saved yet.
        for path in self._from_oldest()[:-2]:
            path.unlink(missing_ok=True)

    def read(
        self, iterations: int, regularizers: Sequence[SpectralActivityRegularizer]
    ) -> tuple[CallbackState, list[Renewal | None]] | None:
        """Restores bases and windows for the weights after `iterations` steps.

        Returns:
            The callback's state and the last `Renewal` of each layer, or None if there
            is no file for these weights.
        """
        path = self._file_of(iterations)
        if not path.exists():
            return None
        renewals: list[Renewal | None] = []
        with np.load(path) as arrays:
            for index, regularizer in enumerate(regularizers):
                renewals.append(_restore_basis(regularizer, arrays, index))
                suffix = f"_of{index}"
                window = {
                    name.removesuffix(suffix): arrays[name]
                    for name in arrays.files
                    if name.endswith(suffix)
                }
                if window and regularizer.window is not None:
                    regularizer.window.restore(window)
            last_step = int(arrays["last_step"])
            state = CallbackState(
                steps=int(arrays["steps"]),
                last_refresh=None if last_step == NEVER else last_step,
                refreshes=int(arrays["refreshes"]),
            )
        return state, renewals

    def remove(self) -> None:
        for path in self._from_oldest():
            path.unlink(missing_ok=True)

    def _file_of(self, iterations: int) -> Path:
        return self._folder / f"eigenbasis-{iterations}.npz"

    def _from_oldest(self) -> list[Path]:
        return sorted(self._folder.glob("eigenbasis-*.npz"), key=_modified)


def _restore_basis(
    regularizer: SpectralActivityRegularizer, arrays: Any, index: int
) -> Renewal | None:
    if f"basis{index}" not in arrays:
        return None
    # Files of version 0.1 have neither floor, penalty, dead units, strength nor share.
    floor = arrays.get(f"floor{index}")
    first, last = arrays[f"fit_range{index}"]
    spectrum = Spectrum(
        arrays[f"eigenvalues{index}"],
        (first, last) if first < last else None,  # the spectrum was too short
        None if floor is None else float(floor),
    )
    # The spectrum need not be that of the basis: not every refresh is measured.
    share = arrays.get(f"share{index}")
    if share is None:
        share = share_of_first(spectrum.eigenvalues[regularizer.tau - 1 :])
    strength = float(arrays.get(f"strength{index}", 1.0))
    regularizer.eigenbasis.assign(arrays[f"basis{index}"], float(share), strength)
    staleness, penalty, dead = (
        float(arrays.get(f"{name}{index}", np.nan))
        for name in ("staleness", "penalty", "dead")
    )
    return Renewal(spectrum, staleness, penalty, dead)


def _modified(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:  # removed meanwhile, by another process
        return 0
