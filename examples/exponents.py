"""Robustness against the exponent: is there a peak at 1?

The same training with targets n^(−α) from α = 0.5 to 3, and without a penalty: one
hidden layer of 1,000 units with batch normalization, the form `"log"`, which follows
its target most closely. Finished runs are not repeated.

    python examples/exponents.py
    python examples/exponents.py --dataset fashion_mnist
    python examples/exponents.py --preset smoke

To follow the experiment, see `experiments/__init__.py`: it lists the modules in the
order in which this script goes through them.
"""

import argparse

from experiments import command_line, comparisons
from experiments.presets import COMPARED
from experiments.settings import select
from experiments.table import exponent_rows

ALPHAS = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0)
TRAINING = {"width": 1000, "batch_size": 128, "epochs": 6, "learning_rate": 5e-3}
SMOKE = {"width": 60, "batch_size": 100, "epochs": 2, "learning_rate": 3e-3}


def runs_of(args):
    """The settings of the runs: `select` fills in what these leave open."""
    training = SMOKE if args.preset == "smoke" else TRAINING
    given = {key: value for key, value in vars(args).items() if value is not None}
    common = {**training, "betas": [1.0], **given}
    rest = {**COMPARED, "decay": True, "epsilons": [0.02, 0.05, 0.1, 0.3]}
    rest["kept_out"] = 100 if args.preset == "smoke" else 5000
    runs = []
    for alpha in (None, *ALPHAS):
        chosen = argparse.Namespace(**{**vars(args), **common, "alpha": alpha})
        condition = "vanilla" if alpha is None else "last"
        for settings in select(chosen, ["shallow"], [condition]):
            runs.append(
                {
                    **settings,
                    **rest,
                    "form": None if alpha is None else "log",
                    "variant": f"alpha{alpha:g}" if alpha else "1000",
                }
            )
    return sorted(runs, key=lambda settings: settings["seed"])


def main(argv=None):
    args = command_line.parser(__doc__).parse_args(argv)
    return command_line.main(args, runs_of(args), comparisons.exponents, exponent_rows)


if __name__ == "__main__":
    main()
