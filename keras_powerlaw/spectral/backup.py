"""Files from which interrupted training resumes with the same eigenbasis."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_powerlaw.spectral.basis import Eigenbasis
from keras_powerlaw.spectral.refresh import Renewal
from keras_powerlaw.spectral.spectrum import Spectrum
from keras_powerlaw.support.files import write_atomically


@dataclasses.dataclass(frozen=True)
class CallbackState:
    """The progress of an `EigenbasisRefresh` callback.

    Attributes:
        steps: Optimizer steps taken in this training.
        last_refresh: The step of the last refresh.
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
        layers: Sequence[tuple[Eigenbasis, Renewal]],
    ) -> None:
        """Writes the state of a callback and the bases of all layers."""
        arrays: dict[str, Any] = {
            "steps": state.steps,
            "last_step": state.last_refresh,
            "refreshes": state.refreshes,
        }
        for index, (basis, renewal) in enumerate(layers):
            arrays[f"basis{index}"] = basis.to_float32()
            arrays[f"eigenvalues{index}"] = renewal.spectrum.eigenvalues
            arrays[f"fit_range{index}"] = renewal.spectrum.fit_range
            arrays[f"staleness{index}"] = renewal.staleness
        self._folder.mkdir(parents=True, exist_ok=True)
        write_atomically(
            self._file_of(iterations), lambda file: np.savez(file, **arrays)
        )
        # The previous file stays: this epoch's weights may not have been saved yet.
        for path in self._from_oldest()[:-2]:
            path.unlink()

    def read(
        self, iterations: int, bases: Sequence[Eigenbasis]
    ) -> tuple[CallbackState, list[Renewal]] | None:
        """Restores the bases for the weights after `iterations` optimizer steps.

        Returns:
            The callback's state and the last `Renewal` of each layer, or None if there
            is no file for these weights.
        """
        path = self._file_of(iterations)
        if not path.exists():
            return None
        renewals = []
        with np.load(path) as arrays:
            for index, basis in enumerate(bases):
                basis.assign(arrays[f"basis{index}"])
                spectrum = Spectrum(
                    arrays[f"eigenvalues{index}"], arrays[f"fit_range{index}"]
                )
                renewals.append(Renewal(spectrum, float(arrays[f"staleness{index}"])))
            state = CallbackState(
                steps=int(arrays["steps"]),
                last_refresh=int(arrays["last_step"]),
                refreshes=int(arrays["refreshes"]),
            )
        return state, renewals

    def remove(self) -> None:
        for path in self._from_oldest():
            path.unlink()

    def _file_of(self, iterations: int) -> Path:
        return self._folder / f"eigenbasis-{iterations}.npz"

    def _from_oldest(self) -> list[Path]:
        return sorted(
            self._folder.glob("eigenbasis-*.npz"),
            key=lambda path: path.stat().st_mtime_ns,
        )
