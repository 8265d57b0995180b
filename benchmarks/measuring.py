"""Measurements that are kept: one JSON file for each, and a table of each kind.

As in the examples, a measurement whose file exists is not repeated.
"""

import json
import time

import keras

from benchmarks.machine import device, machine
from examples.experiments.results import load_result, save_result
from examples.experiments.table import print_rows


def measured(output, name, settings, run):
    """The result of a measurement, from its file or, without one, from `run()`.

    Args:
        output: Folder of the files.
        name: What was measured, and at which sizes.
        settings: All that decides about the result; a file with others is an error.
        run: Returns a dictionary.
    """
    path = output / f"{prefix(name)}.json"
    settings = json.loads(json.dumps(settings))  # lists for tuples, as in the file
    result = load_result(path, settings)
    if result is None:
        progress(path.stem)
        result = {"settings": settings, "machine": machine(), **run()}
        result["finished"] = time.strftime("%Y-%m-%d %H:%M:%S")
        save_result(path, result)
    return result


def print_table(name, output, table):
    """Prints all measurements of a kind that are in the folder.

    Args:
        name: The kind.
        output: Folder of the files.
        table: From the results, oldest first, to the rows of a table.
    """
    paths = output.glob(f"{prefix(name)}-*.json")
    results = sorted(
        (json.loads(path.read_text()) for path in paths),
        key=lambda result: result["finished"],
    )
    if not results:
        return
    machines = {json.dumps(result["machine"]) for result in results}
    print(f"\n{name}, on {' and '.join(sorted(machines))}\n")
    print_rows(table(results))


def prefix(name):
    """The beginning of a file's name: it tells backends and devices apart."""
    return f"speed-{keras.backend.backend()}-{device()[0]}-{name}"


def progress(line):
    print(line, flush=True)
