"""What is shown of `spectra`: times to a spectrum of 1/n, and what it does."""

import itertools

import numpy as np
from matplotlib.figure import Figure

import keras_powerlaw as kp
from benchmarks.measuring import seconds
from benchmarks.networks import PENALTY
from benchmarks.schedules import EPSILONS, SCHEDULES, after, time_to
from research.looks import IN_ORDER, style
from research.panels import draw_robustness, draw_spectra, letter
from research.printed import over_seeds
from research.table import expanded, report_of


def spectrum_table(results):
    """Mean ± standard deviation over the seeds."""
    yield (
        *("width", "schedule", "seeds", "epochs", "to the exponent", "CPU"),
        *("and the accuracy", "CPU"),
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
        ends = [run["candidates"][-1] for run in runs.values()]
        plain = [
            after(end["epochs"], run["plain_accuracy"])
            for end, run in zip(ends, runs.values(), strict=True)
        ]
        reports = [run["robustness"]["accuracy"] for run in runs.values()]
        strong = [run["strong"] for run in runs.values() if "strong" in run]
        yield (
            *(width, name, len(runs), f"{ends[0]['epochs']:g}"),
            *_seconds_over_seeds(runs, _times(runs, below=1)),
            *_seconds_over_seeds(runs, _times(runs, below=0.01)),
            over_seeds([end["exponent"] for end in ends], 2),
            *_percent_over_seeds([[end["accuracy"]] for end in ends]),
            *_percent_over_seeds([[accuracy] for accuracy in plain]),
            *_percent_over_seeds([report["fgsm"] for report in reports]),
            *_percent_over_seeds([report["pgd"] for report in reports]),
            *(
                _percent_over_seeds([report["worst_case"] for report in strong])
                or ["–"] * len(EPSILONS)
            ),
            sum(len(report["flags"]) for report in strong),
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
            "–" if result["staleness"] is None else f"{result['staleness']:.2f}",
            *(f"{end['exponent']:.3f}", _percent(end["accuracy"])),
            *map(_percent, result["robustness"]["accuracy"]["pgd"]),
        )


def draw(results, names, seeds, width):
    """Spectra and accuracies under PGD, a curve for each schedule, its seeds averaged.

    Each regularized network follows its plain one, which is dashed.
    """
    curves = {}
    for name, plain, result in itertools.product(names, (True, False), results):
        settings = result["settings"]
        if settings["width"] != width or settings["seed"] not in seeds:
            continue
        without = "penalty" not in settings["schedule"]
        like = without and settings["schedule"].items() <= SCHEDULES[name].items()
        if like if plain else settings["name"] == name:
            label = f"plain, like {name}" if plain else name
            curves.setdefault(label, []).append(result)
    height = 3.9 + 0.19 * len(curves)  # with the legend below the panels
    figure = Figure(figsize=(8.4, height), layout="constrained")
    axes = figure.subplots(1, 2)
    pairs = itertools.cycle(itertools.product(IN_ORDER, ("--", "-")))
    styles = [
        style(*look, line) for _, (look, line) in zip(curves, pairs, strict=False)
    ]
    spectra = {
        label: [
            kp.Spectrum(expanded(run["sampled"], run["units"]), floor=run["floor"])
            for run in runs
        ]
        for label, runs in curves.items()
    }
    exponents = {
        label: [run["candidates"][-1]["exponent"] for run in runs]
        for label, runs in curves.items()
    }
    draw_spectra(spectra, exponents, styles, axes[0], tau=PENALTY["tau"])
    reports = {
        label: [report_of(run["robustness"]) for run in runs]
        for label, runs in curves.items()
    }
    draw_robustness(reports, styles, "pgd", axes[1])
    letter(axes)
    return figure


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
