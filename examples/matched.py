"""Does a 1/n spectrum help when both networks are trained equally well?

Every penalty gets the same grid of trainings: two batches, three numbers of epochs and
two learning rates, which fall along a cosine; the plain network gets six more, beyond
the edges of the grid, so that it is not the grid that holds it back. Of each penalty,
the training with the highest accuracy under PGD is chosen, on images kept out of all of
them, among those whose clean accuracy there is at most two points below the best plain
network's. The chosen ones are trained with five seeds, and tested. One figure shows
what each training of the grid costs and gives, another the tests. Finished runs are not
repeated.

    python examples/matched.py --architectures shallow
    python examples/matched.py --dataset fashion_mnist
    python examples/matched.py --preset smoke

To follow the experiment, see `experiments/__init__.py`: it lists the modules in the
order in which this script goes through them.
"""

import argparse
import itertools
import pathlib

from experiments import command_line, comparisons, data
from experiments.all_runs import finished, run_all
from experiments.matching import select_best
from experiments.presets import COMPARED
from experiments.settings import select
from experiments.table import matched_rows

ARCHITECTURES = ("shallow", "cnn")
# Condition, form and strengths of each.
PENALTIES = (
    ("vanilla", None, (None,)),
    ("last", "paper", (1.0, 5.0)),
    ("last", "log", (0.1, 1.0)),
    ("last", "nearest", (0.5,)),
    ("jacobian", None, (None,)),
)
GRID = {"batch_size": (128, 1000), "epochs": (2, 6, 18), "learning_rate": (1e-3, 5e-3)}
# Of the plain network alone.
BEYOND = (
    {"batch_size": 32, "epochs": 6, "learning_rate": 5e-3},
    *({"batch_size": 128, "epochs": n, "learning_rate": 5e-3} for n in (1, 40)),
    *({"batch_size": 128, "epochs": n, "learning_rate": 2e-2} for n in GRID["epochs"]),
)
SMOKE = {"batch_size": (100,), "epochs": (1, 2), "learning_rate": (3e-3,)}
SEEDS = (0, 1, 2, 3, 4)


def grid(args):
    """The settings of all trainings that are compared, of seed 0."""
    smoke = args.preset == "smoke"
    sizes = SMOKE if smoke else GRID
    trainings = [
        dict(zip(sizes, values, strict=True))
        for values in itertools.product(*sizes.values())
    ]
    trials = list(itertools.product(PENALTIES, trainings))
    if not smoke:
        trials += itertools.product(PENALTIES[:1], BEYOND)
    runs = []
    for (condition, form, betas), training in trials:
        width = {"width": 60 if smoke else 1000, "seeds": [0], "betas": list(betas)}
        chosen = argparse.Namespace(**{**vars(args), **training, **width})
        name = "{batch_size}x{epochs}-{learning_rate:g}".format(**training)
        for settings in select(chosen, ARCHITECTURES, [condition]):
            rest = {**COMPARED, "form": form, "decay": True, "attacked": 0}
            rest["kept_out"] = 100 if smoke else 5000
            variant = f"{form}-{name}" if form else name
            runs.append({**settings, **rest, "variant": variant})
    return runs


def finals(results, args):
    """The settings of the chosen trainings, with all seeds, to be tested."""
    smoke = args.preset == "smoke"
    tested = {"attacked": args.attacked or (50 if smoke else 2000)}
    tested["strongly_attacked"] = 0 if smoke else 500
    return [
        {
            **settings,
            **tested,
            "variant": f"{settings['variant']}-tested",
            "seed": seed,
        }
        for seed in args.seeds or ([0] if smoke else SEEDS)
        for settings in select_best(results)
    ]


def main(argv=None):
    args = command_line.parser(__doc__).parse_args(argv)
    runs = grid(args)
    folder = args.output or pathlib.Path("results") / args.preset
    if args.draw:
        results = finished(runs, folder)
    else:
        images = data.load(runs[0]["dataset"], args.data)
        results = run_all(runs, images, folder)

    def draw(tested):
        return {**comparisons.trainings(results), **comparisons.matched(tested)}

    return command_line.main(args, finals(results, args), draw, matched_rows)


if __name__ == "__main__":
    main()
