"""How far the runs are, and how long the rest will take."""

import time

import numpy as np

from .settings import run_name


class Progress:
    """Prints progress, and estimates the remaining time from the finished runs."""

    def __init__(self, runs):
        self.pending = list(runs)
        self.total = len(runs)
        self.seconds = {}  # of finished runs, by kind

    def finished(self, result):
        self.pending.remove(result["settings"])
        taken = result["training_seconds"] + result["measuring_seconds"]
        self.seconds.setdefault(_kind(result["settings"]), []).append(taken)

    def start(self, settings):
        self.begin = self.last = time.monotonic()
        done = self.total - len(self.pending)
        print(f"[{done + 1}/{self.total}] {run_name(settings)}", flush=True)

    def epoch(self, settings, epoch, logs):
        """Called after each epoch; prints at most twice a minute, and the last one."""
        now = time.monotonic()
        if now - self.last < 30 and epoch + 1 < settings["epochs"]:
            return
        self.last = now
        taken = now - self.begin
        left = taken * (settings["epochs"] - epoch - 1) / (epoch + 1)
        rest = [self._estimate(other) for other in self.pending if other != settings]
        known = [seconds for seconds in rest if seconds is not None]
        # Runs of a kind that has not finished yet are taken to last as long as the
        # average of those that have or, before any has, as long as this one.
        average = np.mean(known) if known else taken + left
        total = left + sum(known) + average * (len(rest) - len(known))
        print(
            f"    epoch {epoch + 1}/{settings['epochs']}  "
            + "  ".join(f"{key} {logs[key]:.3f}" for key in ("loss", "accuracy"))
            + f"  training: {_duration(left)} left, all: about {_duration(total)}",
            flush=True,
        )

    def _estimate(self, settings):
        seconds = self.seconds.get(_kind(settings))
        return np.mean(seconds) if seconds else None


def _kind(settings):
    return settings["architecture"], settings["condition"]


def _duration(seconds):
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes}:{seconds:02} min"
