"""Section 4.2 and appendix B: a broken second layer, and whether the last rescues it.

Trains an MLP and a CNN, each plain, with its second hidden layer whitened, with the
spectral penalty on the last hidden layer, and with both; attacks them; and draws
Figures 4 and A10 to A17. Finished runs are not repeated.

    python examples/whitening.py
    python examples/whitening.py --architectures mlp --preset smoke

To follow the experiment, see `experiments/__init__.py`: it lists the modules in the
order in which this script goes through them.
"""

from experiments import command_line, conditions, figures
from experiments.settings import select

ARCHITECTURES = conditions.DEEP
CONDITIONS = ("vanilla", "whitened", "last", "whitened-last")


def main(argv=None):
    args = command_line.parser(__doc__).parse_args(argv)
    runs = select(args, ARCHITECTURES, CONDITIONS)
    return command_line.main(args, runs, figures.whitening)


if __name__ == "__main__":
    main()
