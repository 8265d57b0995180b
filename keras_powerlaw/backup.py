"""The file from which interrupted training resumes with the same eigenbasis."""

from __future__ import annotations

import dataclasses
import warnings
import zipfile
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_powerlaw.backends import steps_taken
from keras_powerlaw.basis import creating_state
from keras_powerlaw.layers import named_layers
from keras_powerlaw.progress import write_atomically


@dataclasses.dataclass
class Course:
    """How far an `EigenbasisRefresh` callback is.

    Attributes:
        steps: Optimizer steps in finished epochs of this training.
        last_refresh: The step of the last refresh, −1 if there was none.
        refreshes: Number of refreshes.
        stretch: By how much the interval has grown.
    """

    steps: int = 0
    last_refresh: int = -1
    refreshes: int = 0
    stretch: float = 1.0


def write_backup(
    path: Path, model: keras.Model, course: Course, figures: dict[str, Any]
) -> None:
    """Writes the course of a training, what it logs, and what the layers keep."""
    arrays: dict[str, Any] = {
        "course": dataclasses.astuple(course),
        "weights": steps_taken(model),
    }
    for index, (name, layer) in enumerate(named_layers(model).items()):
        kept = layer.activity_regularizer.eigenbasis.to_arrays()
        kept["figures"] = figures.get(name, (np.nan, np.nan))
        arrays |= {f"{index} {key}": value for key, value in kept.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: np.savez(file, **arrays))


def read_backup(path: Path, model: keras.Model) -> tuple[Course, dict[str, Any]] | None:
    """Restores what the layers keep; returns the course and the figures.

    Returns:
        None, with a warning, if there is no file for the weights of `model`.
    """
    try:
        with open(path, "rb") as file, np.load(file) as entries:
            arrays = dict(entries)
        if arrays["weights"] != steps_taken(model):
            raise ValueError(f"it is of step {arrays['weights']}")
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        warnings.warn(
            f"Training resumes without its eigenbasis: '{path}' is missing, damaged, "
            f"or not of step {steps_taken(model)} ({error}).",
            stacklevel=2,
        )
        return None
    figures = {}
    with creating_state(model):
        for index, (name, layer) in enumerate(named_layers(model).items()):
            start = f"{index} "
            kept = {
                k[len(start) :]: v for k, v in arrays.items() if k.startswith(start)
            }
            layer.activity_regularizer.eigenbasis.restore(kept)
            figures[name] = kept["figures"]
    steps, last_refresh, refreshes, stretch = arrays["course"].tolist()
    return Course(int(steps), int(last_refresh), int(refreshes), stretch), figures
