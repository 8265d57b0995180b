"""The experiments: which runs each has, and which follow from their results.

Each is a pair of functions: of the runs to begin with, and of those that their results
decide about. `options` are those of `settings.select`.

    smoke, cpu, evidence, paper  sections 4.1 to 4.3 of the paper, by these presets
    matched     does a 1/n spectrum help when both networks are trained equally well?
                Every penalty gets the same grid of trainings, the plain network six
                more, beyond its edges. Of each penalty the training that is best on
                images kept out is done with five seeds, and tested.
    exponents   robustness against the exponent: the form "log", α from 0.5 to 3
    widths      where the gain comes from: the width, the steps or the batches
    controls    is it the exponent? The same spectra by the penalty, by first weights
                that have them, and by construction, in the same training
"""

import itertools

from .matching import of_best_strengths, select_best
from .presets import COMPARED, PRESETS, sizes
from .settings import select

# Of the matched comparison: condition, form and strengths of each penalty.
MATCHED = (
    ("vanilla", None, (None,)),
    ("last", "paper", (1.0, 5.0)),
    ("last", "log", (0.1, 1.0)),
    ("last", "nearest", (0.5,)),
    ("jacobian", None, (None,)),
)
GRID = [
    {"batch_size": batch, "epochs": epochs, "learning_rate": rate}
    for batch in (128, 1000)
    for epochs in (2, 6, 18)
    for rate in (1e-3, 5e-3)
]
# Of the plain network alone.
BEYOND = [
    {"batch_size": batch, "epochs": epochs, "learning_rate": rate}
    for batch, epochs, rate in (
        *((32, 6, 5e-3), (128, 1, 5e-3), (128, 40, 5e-3)),
        *((128, 2, 2e-2), (128, 6, 2e-2), (128, 18, 2e-2)),
    )
]
ALPHAS = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0)
# Of the control experiment: condition, form and strength of each way to a spectrum.
CONTROLS = (
    ("last", "log", 1.0),
    ("last", "nearest", 0.5),
    ("colored", None, None),
    ("colored-last", "log", 1.0),
    ("constructed", None, None),
)
TARGETS = (0.75, 1.0, 1.5)
SIZES = [
    (width, batch)
    for width in (500, 1000, 2000, 4000)
    for batch in sorted({3 * width // 2, 3000})
]
# In their place where only is shown that everything runs.
TINY_GRID = [
    {"batch_size": 100, "epochs": epochs, "learning_rate": 3e-3} for epochs in (1, 2)
]
TINY_SIZES = [(20, 30), (20, 60), (40, 60)]


def paper(preset, **options):
    """All strengths with the first seed, then the best one with the others."""
    runs = select(preset, **options)
    runs.sort(key=lambda settings: settings["seed"])

    def waits(settings):
        one_strength = PRESETS[preset].get("one_strength", ())
        later = settings["seed"] != runs[0]["seed"]
        return later and settings["architecture"] in one_strength

    def rest(results):
        return of_best_strengths(list(filter(waits, runs)), results)

    return list(itertools.filterfalse(waits, runs)), rest


def matched(tiny=False, **options):
    """The grid with seed 0, then what was chosen from it with all seeds."""
    seeds = options.pop("seeds", None) or ([0] if tiny else range(5))
    attacked = options.pop("attacked", None) or (50 if tiny else 2000)
    architectures = options.pop("architectures", ("shallow", "cnn"))
    trials = list(itertools.product(MATCHED, TINY_GRID if tiny else GRID))
    if not tiny:
        trials += itertools.product(MATCHED[:1], BEYOND)
    runs = []
    for (condition, form, betas), training in trials:
        name = "{batch_size}x{epochs}-{learning_rate:g}".format(**training)
        rest = _compared(tiny, form=form, decay=True, attacked=0)
        rest["variant"] = f"{form}-{name}" if form else name
        width = {"width": 60 if tiny else 1000}
        found = select(
            "smoke" if tiny else "cpu",
            architectures=architectures,
            conditions=[condition],
            **{"seeds": [0], "betas": betas, **width, **training, **options},
        )
        runs += [{**settings, **rest} for settings in found]

    def tested(results):
        rest = {"attacked": attacked, "strongly_attacked": 0 if tiny else 500}
        return [
            {**best, **rest, "variant": f"{best['variant']}-tested", "seed": seed}
            for seed in seeds
            for best in select_best(results)
        ]

    return runs, tested


def exponents(tiny=False, **options):
    training = sizes(60, 2, 3e-3, 100) if tiny else sizes(1000, 6, 5e-3, 128)
    runs = []
    for alpha in (None, *ALPHAS):
        target = {"alpha": alpha, "betas": [1.0]} if alpha else {}
        found = select(
            "smoke" if tiny else "cpu",
            **{"conditions": ["last" if alpha else "vanilla"], **training, **target},
            **{**options, "architectures": ["shallow"]},
        )
        rest = _compared(tiny, form="log" if alpha else None, decay=True)
        rest["epsilons"] = [0.02, 0.05, 0.1, 0.3]
        rest["variant"] = f"alpha{alpha:g}" if alpha else "1000"
        runs += [{**settings, **rest} for settings in found]
    return sorted(runs, key=lambda settings: settings["seed"]), nothing


def widths(tiny=False, **options):
    runs = []
    for width, batch in TINY_SIZES if tiny else SIZES:
        sizes = {"width": width, "batch_size": batch, "betas": [5.0]}
        found = select(
            "smoke" if tiny else "cpu",
            **{**sizes, **options, "architectures": ["shallow"]},
        )
        rest = {**COMPARED, "variant": f"{width}x{batch}"}
        runs += [{**settings, **rest} for settings in found]
    return sorted(runs, key=lambda settings: settings["seed"]), nothing


def controls(tiny=False, **options):
    chosen = {
        **{"conditions": ["vanilla"], "seeds": [0] if tiny else range(5)},
        **(sizes(60, 2, 3e-3, 100) if tiny else sizes(1000, 6, 5e-3, 128)),
        **{"attacked": 50 if tiny else 1000, **options, "architectures": ["shallow"]},
    }
    found = select("smoke" if tiny else "cpu", **chosen)
    rest = _compared(tiny, decay=True, explained=True)
    rest["epsilons"] = [0.05, 0.1]
    rest["strongly_attacked"] = 0 if tiny else 200
    runs = []
    for settings in found:
        runs.append({**settings, **rest, "variant": "controls"})
        for (condition, form, beta), alpha in itertools.product(CONTROLS, TARGETS):
            target = {"condition": condition, "alpha": alpha, "form": form}
            penalty = {"beta": beta, "tau": beta and 10}
            variant = f"{form}-alpha{alpha:g}" if form else f"alpha{alpha:g}"
            runs.append({**settings, **rest, **target, **penalty, "variant": variant})
    return runs, nothing


def nothing(results):
    return []


def _compared(tiny, **settings):
    return {**COMPARED, "kept_out": 100 if tiny else 5000, **settings}


COMPARISONS = {
    **{"matched": matched, "exponents": exponents},
    **{"widths": widths, "controls": controls},
}
