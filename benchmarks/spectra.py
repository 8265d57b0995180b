"""Trainings that end in a spectrum of 1/n: which are performed and kept.

`trainings` performs one of them; `spectrum_tables` and `draw` show the results.
"""

import itertools

from matplotlib.figure import Figure

import keras_powerlaw as kp
from benchmarks import schedules
from benchmarks.forms import PENALTY
from benchmarks.measuring import measured
from benchmarks.schedules import INTERVALS, SCHEDULES, WINDOW_INTERVALS
from benchmarks.trainings import attacked, train, train_plain
from examples.experiments.looks import IN_ORDER, style
from examples.experiments.panels import draw_robustness, draw_spectra, letter
from examples.experiments.results import report_from_json, rounded


def measure_spectra(args, data):
    """One seed of each schedule, then the next."""
    spectra = Spectra(args, data)
    results = {}
    for seed, name in itertools.product(args.seeds, args.schedules):
        schedule = SCHEDULES[name]
        plain = spectra.plain(schedule, seed)
        results.setdefault(f"plain, like {name}", []).append(plain)
        regularized = ("spectrum", name, schedule, seed, schedules.NEAR)
        results.setdefault(name, []).append(spectra.regularized(*regularized))
    if args.draw:
        draw(results).savefig(args.draw, dpi=150)


def measure_intervals(args, data):
    """Trainings that differ in how often they renew the basis, and on how much."""
    spectra = Spectra(args, data)
    for seed, name in itertools.product(args.seeds, args.schedules):
        from_training = "x" in SCHEDULES[name]["refresh"]
        for steps, ratio in WINDOW_INTERVALS if from_training else INTERVALS:
            refresh = {"every_steps": steps}
            if from_training:
                refresh["x"] = None
            else:
                refresh["max_samples"] = ratio and int(ratio * args.width)
            spectra.regularized(
                *("interval", f"{name}-{steps}-{ratio or 'all'}"),
                {**SCHEDULES[name], "refresh": refresh},
                *(seed, 0),
                **{"name": name, "examples_per_unit": ratio},
            )


class Spectra:
    """Performs and keeps the trainings that the command line asks for."""

    def __init__(self, args, data):
        self.args, self.data = args, data
        self.sizes = {
            "width": args.width,
            "images": len(data[0][0]),
            "attacked": args.attacked,
            "strong": args.strong,
        }

    def plain(self, schedule, seed):
        """The result without the penalty, of which schedules may share one."""
        keys = ("batch_size", "learning_rate", "decay", "epochs")
        same = {key: schedule[key] for key in keys if key in schedule}
        name = "plain-{batch_size}-{learning_rate:g}-{epochs}".format(**same)
        return self._measured(
            *("spectrum", name, same, seed, {}),
            lambda: train_plain(same, seed, self.args.width, self.data),
        )

    def regularized(self, kind, label, schedule, seed, near, **settings):
        """The result of a schedule; `near` is that of `train`."""
        accuracies = self.plain(schedule, seed)["plain_accuracy"]
        return self._measured(
            *(kind, label, schedule, seed, settings),
            lambda: train(
                *(schedule, seed, self.args.width, self.data, accuracies, near)
            ),
        )

    def _measured(self, kind, label, schedule, seed, settings, trained):
        def run():
            model, result = trained()
            report = attacked(model, self.data, self.args.attacked, self.args.strong)
            (x, _), _ = self.data
            spectrum = kp.measure_spectrum(model, x, "hidden", verbose=0)
            return {
                **result,
                **report,
                "eigenvalues": rounded(spectrum.eigenvalues, 6),
                "floor": rounded(spectrum.floor, 6),
            }

        settings = {"name": label, "schedule": schedule, "seed": seed, **settings}
        return measured(
            self.args.output,
            f"{kind}-{self.args.width}-{label}-seed{seed}",
            {**settings, **self.sizes},
            run,
        )


def draw(results):
    """Spectra and accuracies under PGD, a curve for each label, its seeds averaged.

    Each regularized network follows its plain one, which is dashed.
    """
    height = 3.9 + 0.19 * len(results)  # with the legend below the panels
    figure = Figure(figsize=(8.4, height), layout="constrained")
    axes = figure.subplots(1, 2)
    pairs = itertools.cycle(itertools.product(IN_ORDER, ("--", "-")))
    styles = [
        style(*look, line) for _, (look, line) in zip(results, pairs, strict=False)
    ]
    spectra = {
        label: [kp.Spectrum(run["eigenvalues"], floor=run.get("floor")) for run in runs]
        for label, runs in results.items()
    }
    draw_spectra(spectra, styles, axes[0], tau=PENALTY["tau"])
    reports = {
        label: [report_from_json(run["robustness"]) for run in runs]
        for label, runs in results.items()
    }
    draw_robustness(reports, styles, "pgd", axes[1])
    letter(axes)
    return figure
