"""Performs runs, except those that are finished already.

`one_run.perform` does one of them; `results` knows which are finished.
"""

from .one_run import perform
from .progress import Progress
from .results import load_result, result_path, save_result
from .settings import run_name


def finished(runs, folder):
    """The results of those runs that have a file in the folder."""
    found = [load_result(result_path(folder, settings), settings) for settings in runs]
    return [result for result in found if result]


def run_all(runs, data, folder):
    """Performs the runs that have no file in the folder.

    Args:
        runs: Settings of each run.
        data: `(x_train, y_train), (x_test, y_test)`.
        folder: Where the results are read from and written to.

    Returns:
        The results of all runs, finished before or now, in their order.
    """
    folder.mkdir(parents=True, exist_ok=True)
    progress = Progress(runs)
    results = {}
    for result in finished(runs, folder):
        results[run_name(result["settings"])] = result
        progress.finished(result)
    if results:
        print(f"{len(results)} of {len(runs)} runs are finished in {folder}")
    for settings in list(progress.pending):
        progress.start(settings)
        result = perform(
            settings,
            data,
            lambda epoch, logs, settings=settings: progress.epoch(
                settings, epoch, logs
            ),
        )
        save_result(result_path(folder, settings), result)
        results[run_name(settings)] = result
        progress.finished(result)
    return [results[run_name(settings)] for settings in runs]
