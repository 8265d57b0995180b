"""A stopwatch for both kinds of seconds, and cells of tables that show its readings."""

import contextlib
import time

import numpy as np


class Clock:
    """Seconds of the wall clock and of the CPU since it was made, without pauses."""

    def __init__(self):
        self._begin = self._now()

    def _now(self):
        return np.array([time.perf_counter(), time.process_time()])

    def read(self):
        """`[seconds, CPU seconds]`"""
        return [round(float(value), 5) for value in self._now() - self._begin]

    @contextlib.contextmanager
    def paused(self):
        begin = self._now()
        yield
        self._begin += self._now() - begin


def timed(times, part, run, *arguments):
    """The result of a function, whose time becomes the next one in `times[part]`."""
    clock = Clock()
    result = run(*arguments)
    times[part].append(clock.read())
    return result


def medians(readings):
    """Two cells: the medians of the seconds and of the CPU seconds."""
    return seconds(np.median(readings, axis=0))


def ratios(readings, per):
    """Two cells: the medians of the readings over those of the same turns in `per`."""
    if not per:
        return "–", "–"
    turns = [np.divide(mine, its) for mine, its in zip(readings, per, strict=False)]
    return [f"{ratio:.2f}" for ratio in np.median(turns, axis=0)]


def seconds(reading):
    """Two cells: one reading."""
    return [f"{value:.3g} s" for value in reading]
