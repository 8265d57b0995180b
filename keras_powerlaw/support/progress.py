"""Progress bars for work that may be slow."""

from __future__ import annotations

import math
import time
from typing import Any

import keras

from keras_powerlaw.support.types import Verbose


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
