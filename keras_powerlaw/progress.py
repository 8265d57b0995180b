"""Progress bars for work that may be slow, and files that are whole or absent."""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import keras

from keras_powerlaw.arguments import Verbose


class Progress:
    """A progress bar that by default appears only after a few seconds of work."""

    def __init__(
        self, label: str, verbose: Verbose = "auto", patience: float = 5.0
    ) -> None:
        self._label = label
        self._begin = time.monotonic()
        self._delay = {"auto": patience, 0: math.inf, 1: 0.0}[verbose]
        self._bar: Any = None
        self._done = 0

    def update(self, done: int, total: int | None) -> None:
        """Reports that `done` of `total` (None: unknown) batches are finished."""
        self._done = done
        if self._bar is None and time.monotonic() - self._begin >= self._delay:
            print(self._label, flush=True)
            self._bar = keras.utils.Progbar(total, unit_name="batch")
        if self._bar is not None:
            self._bar.update(done, finalize=False)

    def finish(self) -> None:
        if self._bar is not None:
            self._bar.target = self._done
            self._bar.update(self._done, finalize=True)


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Writes a file under a temporary name, and renames it once it is complete.

    Several processes may write the same file at once; the last one to finish remains.

    Args:
        path: Path of the file.
        write: Writes the content; called with a file open in binary mode.
    """
    path = path.resolve()  # of a link, what it points to
    unfinished = path.with_name(f".{uuid.uuid4().hex}.unfinished")
    try:
        with open(unfinished, "wb") as file:
            write(file)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
