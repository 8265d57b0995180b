"""Figures 2D and 3: which pixels the eigenvalues of the last hidden layer depend on.

Trains the networks that are not there yet, as the other scripts do, and draws their
sensitivity maps, eq. (9): those summed over all training images, and those of the first
image.

    python examples/sensitivity.py
    python examples/sensitivity.py --architectures mlp --preset smoke

To follow the experiment, see `experiments/__init__.py`: it lists the modules in the
order in which this script goes through them.
"""

from experiments import command_line, figures
from experiments.settings import select

ARCHITECTURES = ("shallow", "mlp")
CONDITIONS = {
    "shallow": ("vanilla", "last"),
    "mlp": (
        *("whitened", "whitened-last", "last", "vanilla"),
        *("all", "jacobian", "output-jacobian"),
    ),
}


def main(argv=None):
    args = command_line.parser(__doc__).parse_args(argv)
    runs = [
        settings
        for architecture in ARCHITECTURES
        for settings in select(args, [architecture], CONDITIONS[architecture])
    ]
    return command_line.main(args, runs, figures.sensitivity)


if __name__ == "__main__":
    main()
