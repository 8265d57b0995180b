"""Performs runs, except those that are finished: a JSON file for each, whole or absent.

`training.perform` does one of them.
"""

import contextlib
import json
import os
import pathlib
import tempfile
import time

import numpy as np

from .settings import run_name
from .training import perform


def run_all(runs, data, folder, experiment):
    """Performs the runs that have no file in the folder.

    Args:
        runs: Settings of each run.
        data: `(x_train, y_train), (x_test, y_test)`.
        folder: Where the results are read from and written to.
        experiment: What it is called in tables.

    Returns:
        The results of all runs, finished before or now, in their order.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = {run_name(s): folder / f"{run_name(s)}.json" for s in runs}
    results = {run_name(s): load_result(paths[run_name(s)], s) for s in runs}
    finished = [result for result in results.values() if result]
    if finished:
        print(f"{len(finished)} of {len(runs)} runs are finished in {folder}")
    pending = [settings for settings in runs if not results[run_name(settings)]]
    for place, settings in enumerate(pending):
        name, left = run_name(settings), len(pending) - place
        print(f"[{len(runs) - left + 1}/{len(runs)}] {name}", flush=True)
        print_epoch = Progress(settings["epochs"], left - 1, finished)
        result = perform(settings, data, print_epoch)
        results[name] = {"experiment": experiment, **result}
        with written_whole(paths[name]) as unfinished:
            unfinished.write_text(json.dumps(results[name]))
        finished.append(results[name])
    return list(results.values())


def load_result(path, settings):
    """What a finished run has left in its file, or None if there is no file.

    Raises:
        SystemExit: If the file was made with other settings.
    """
    if not path.exists():
        return None
    result = json.loads(path.read_text())
    if result["settings"] != json.loads(json.dumps(settings)):  # lists for tuples
        raise SystemExit(
            f"{path} was made with other settings: {result['settings']}, not "
            f"{settings}. Remove it, or choose another --output."
        )
    return result


@contextlib.contextmanager
def written_whole(path):
    """Gives a path to write to, and moves the finished file to `path`.

    A process that is killed while it writes leaves nothing at `path`, only a folder
    that no other process looks into.
    """
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="unfinished-") as folder:
        unfinished = pathlib.Path(folder) / path.name
        yield unfinished
        os.replace(unfinished, path)


class Progress:
    """Prints epochs, at most two a minute, and how long the rest will take.

    Args:
        epochs: Of this run.
        others: How many runs come after this one.
        finished: Results; the others are taken to last as long as their average or,
            before there are any, as long as this one.
    """

    def __init__(self, epochs, others, finished):
        self.epochs, self.others, self.finished = epochs, others, finished
        self.begin = self.last = time.monotonic()

    def __call__(self, epoch, logs):
        now = time.monotonic()
        if now - self.last < 30 and epoch + 1 < self.epochs:
            return
        self.last, taken = now, now - self.begin
        left = taken * (self.epochs - epoch - 1) / (epoch + 1)
        known = [r["training_seconds"] + r["measuring_seconds"] for r in self.finished]
        every = left + self.others * (np.mean(known) if known else taken + left)
        print(
            f"    epoch {epoch + 1}/{self.epochs}  "
            + "  ".join(f"{key} {logs[key]:.3f}" for key in ("loss", "accuracy"))
            + f"  training: {left / 60:.1f} min left, all: about {every / 60:.0f} min",
            flush=True,
        )
