"""Section 4.1 and appendix A of the paper: one hidden layer, with a 1/n spectrum.

Trains networks of one hidden layer, plain and spectrally regularized, with and without
batch normalization; attacks them; and draws Figures 2 and A6 to A9. Finished runs are
not repeated.

    python examples/shallow_mlp.py --seeds 0 1 2
    python examples/shallow_mlp.py --preset smoke

To follow the experiment, see `experiments/__init__.py`: it lists the modules in the
order in which this script goes through them.
"""

from experiments import command_line, conditions, figures
from experiments.settings import select

ARCHITECTURES = conditions.SHALLOW
CONDITIONS = ("vanilla", "last")


def main(argv=None):
    args = command_line.parser(__doc__).parse_args(argv)
    runs = select(args, ARCHITECTURES, CONDITIONS)
    return command_line.main(args, runs, figures.shallow)


if __name__ == "__main__":
    main()
