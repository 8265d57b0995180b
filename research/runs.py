"""Performs runs, except those that are finished: a JSON file for each, whole or absent.

`training.perform` does one of them.
"""

import json
import time

from keras_powerlaw.progress import write_atomically

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
    pending = [settings for settings in runs if not results[run_name(settings)]]
    finished = len(runs) - len(pending)
    if finished:
        print(f"{finished} of {len(runs)} runs are finished in {folder}")
    for place, settings in enumerate(pending, finished + 1):
        name = run_name(settings)
        print(f"[{place}/{len(runs)}] {name}", flush=True)
        result = perform(settings, data, epoch_printer(settings["epochs"]))
        results[name] = {"experiment": experiment, **result}
        text = json.dumps(results[name])
        write_atomically(paths[name], lambda file, text=text: file.write(text.encode()))
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


def epoch_printer(epochs):
    """Prints epochs of a run, at most two a minute, and how long the rest will take."""
    begin = last = time.monotonic()

    def print_epoch(epoch, logs):
        nonlocal last
        now = time.monotonic()
        if now - last < 30 and epoch + 1 < epochs:
            return
        last = now
        left = (now - begin) * (epochs - epoch - 1) / (epoch + 1)
        print(
            f"    epoch {epoch + 1}/{epochs}  loss {logs['loss']:.3f}  "
            f"accuracy {logs['accuracy']:.3f}  training: {left / 60:.1f} min left",
            flush=True,
        )

    return print_epoch
