"""Where does the gain of section 4.1 come from: the width, the steps or the batches?

One hidden layer with batch normalization, of 500 to 4,000 units, in batches of 3,000
and of one and a half times its width, the epochs always the same: plain and with β = 5.
Finished runs are not repeated.

    python examples/widths.py --seeds 0 1 2
    python examples/widths.py --preset smoke

To follow the experiment, see `experiments/__init__.py`: it lists the modules in the
order in which this script goes through them.
"""

import argparse

from experiments import command_line, comparisons
from experiments.presets import COMPARED
from experiments.settings import select
from experiments.table import width_rows

SIZES = {
    "smoke": [(20, 30), (20, 60), (40, 60)],
    "cpu": [
        (width, batch)
        for width in (500, 1000, 2000, 4000)
        for batch in sorted({3 * width // 2, 3000})
    ],
}


def runs_of(args):
    """The settings of the runs: `select` fills in what the sizes leave open."""
    runs = []
    for width, batch in SIZES.get(args.preset, SIZES["cpu"]):
        sizes = {"width": width, "batch_size": batch, "betas": args.betas or [5.0]}
        chosen = argparse.Namespace(**{**vars(args), **sizes})
        for settings in select(chosen, ["shallow"], ["vanilla", "last"]):
            runs.append({**settings, **COMPARED, "variant": f"{width}x{batch}"})
    return sorted(runs, key=lambda settings: settings["seed"])


def main(argv=None):
    args = command_line.parser(__doc__).parse_args(argv)
    return command_line.main(args, runs_of(args), comparisons.widths, width_rows)


if __name__ == "__main__":
    main()
