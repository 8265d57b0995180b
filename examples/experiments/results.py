"""The results' files: one JSON file for each run, whole or not there at all.

`one_run.perform` makes what is in them; `figures` and `table` read it.
"""

import contextlib
import json
import os
import pathlib
import tempfile

import numpy as np

import keras_powerlaw as kp

from .settings import run_name


def result_path(folder, settings):
    return folder / f"{run_name(settings)}.json"


def load_result(path, settings):
    """What a finished run has left in its file, or None if there is no file.

    Raises:
        SystemExit: If the file was made with other settings.
    """
    if not path.exists():
        return None
    result = json.loads(path.read_text())
    if result["settings"] != settings:
        raise SystemExit(
            f"{path} was made with other settings: {result['settings']}, not "
            f"{settings}. Remove it, or choose another --output."
        )
    return result


def save_result(path, result):
    with written_whole(path) as unfinished:
        unfinished.write_text(json.dumps(result))


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


def report_to_json(report):
    """A `RobustnessReport` as what `json.dumps` takes."""
    return json.loads(report.to_json())


def report_from_json(found):
    """The `RobustnessReport` that `report_to_json` was given."""
    return kp.RobustnessReport.from_json(json.dumps(found))


def grouped(results, key):
    """Results with equal keys of their settings, in the order of the first of each."""
    grouped = {}
    for result in results:
        grouped.setdefault(key(result["settings"]), []).append(result)
    return grouped


def ratio_to_target(spectrum, alpha=1.0, tau=10, last=500):
    """Median of λₙ/γₙ over n = τ + 1 … 500, of what a file holds of a spectrum."""
    eigenvalues = np.array(spectrum["eigenvalues"])
    n = np.arange(tau + 1, min(last, len(eigenvalues)) + 1)
    target = eigenvalues[tau - 1] * (n / tau) ** -alpha
    return float(np.median(eigenvalues[n - 1] / target))


def accuracies(results, epsilon, attack="pgd"):
    """Of each result on the test images, in per cent; clean without an epsilon."""
    if epsilon is None:
        return [100 * result["test_accuracy"] for result in results]
    reports = [report_from_json(result["robustness"]) for result in results]
    return [
        100 * report.accuracy[attack][list(report.epsilons).index(epsilon)]
        for report in reports
    ]


def worst_cases(results):
    """Of each result under the strong attacks, in per cent; NaN if there were none."""
    return [
        100 * float(report_from_json(result["strong"]).worst_case_accuracy[0])
        if "strong" in result
        else np.nan
        for result in results
    ]


def rounded(array, digits):
    """The array as nested lists, each number with so many significant digits."""
    values = [float(f"{value:.{digits}g}") for value in np.ravel(array)]
    return np.reshape(values, np.shape(array)).tolist()
