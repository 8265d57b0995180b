"""The tables of `spectra`: times to a spectrum of 1/n, and what it does."""

import numpy as np

from benchmarks.clock import ratios, seconds
from benchmarks.schedules import EPSILONS, after, time_to
from examples.experiments.results import report_from_json
from examples.experiments.table import over_seeds


def spectrum_table(results):
    """Mean ± standard deviation over the seeds."""
    yield (
        *("width", "schedule", "seeds", "epochs", "to the exponent", "CPU"),
        *("and the accuracy", "CPU", "over *literal*", "CPU"),
        *("exponent", "clean %", "plain"),
        *(f"{name} {epsilon:g}" for name in ("FGSM", "PGD") for epsilon in EPSILONS),
        *(*(f"worst {epsilon:g}" for epsilon in EPSILONS), "flags"),
    )
    networks = {}
    for result in results:
        settings = result["settings"]
        seeds = networks.setdefault((settings["width"], settings["name"]), {})
        seeds[settings["seed"]] = result
    for (width, name), runs in networks.items():
        literal = _times(networks.get((width, "literal"), {}), below=0.01)
        arrived = _times(runs, below=0.01)
        shared = arrived.keys() & literal.keys()
        ends = [run["candidates"][-1] for run in runs.values()]
        plain = [
            after(end["epochs"], run["plain_accuracy"])
            for end, run in zip(ends, runs.values(), strict=True)
        ]
        reports = [report_from_json(run["robustness"]) for run in runs.values()]
        strong = [
            report_from_json(run["strong"]) for run in runs.values() if "strong" in run
        ]
        yield (
            *(width, name, len(runs), f"{ends[0]['epochs']:g}"),
            *_seconds_over_seeds(runs, _times(runs, below=1)),
            *_seconds_over_seeds(runs, arrived),
            *ratios([arrived[s] for s in shared], [literal[s] for s in shared]),
            over_seeds([end["exponent"] for end in ends], 2),
            *_percent_over_seeds([[end["accuracy"]] for end in ends]),
            *_percent_over_seeds([[accuracy] for accuracy in plain]),
            *_percent_over_seeds([report.accuracy["fgsm"] for report in reports]),
            *_percent_over_seeds([report.accuracy["pgd"] for report in reports]),
            *(
                _percent_over_seeds([report.worst_case_accuracy for report in strong])
                or ["–"] * len(EPSILONS)
            ),
            sum(len(report.flags) for report in strong),
        )


def interval_table(results):
    """A row for each run."""
    yield (
        *("schedule", "seed", "refresh every", "examples / units", "in all", "CPU"),
        *("staleness", "exponent", "clean"),
        *(f"PGD {epsilon:g}" for epsilon in EPSILONS),
    )
    for result in results:
        settings, end = result["settings"], result["candidates"][-1]
        ratio = settings["examples_per_unit"]
        yield (
            *(settings["name"], settings["seed"]),
            f"{settings['schedule']['refresh']['every_steps']} steps",
            ratio or "all",
            *seconds(end["clock"]),
            f"{np.median(result['staleness']):.2f}" if result["staleness"] else "–",
            *(f"{end['exponent']:.3f}", _percent(end["accuracy"])),
            *map(_percent, report_from_json(result["robustness"]).accuracy["pgd"]),
        )


def _times(runs, below):
    """`time_to` by seed, for the runs that arrived."""
    clocks = {seed: time_to(run, below) for seed, run in runs.items()}
    return {seed: clock for seed, clock in clocks.items() if clock}


def _seconds_over_seeds(runs, clocks):
    if len(clocks) < len(runs):
        return f"{len(clocks)} of {len(runs)} arrive", "–"
    return [f"{over_seeds(values, 0)} s" for values in np.transpose([*clocks.values()])]


def _percent_over_seeds(fractions):
    return [over_seeds(values, 1) for values in 100 * np.transpose(fractions)]


def _percent(fraction):
    return f"{100 * fraction:.1f} %"
