"""Section 4.3 and appendix C: the spectral penalty on every layer, and the Jacobian's.

Trains an MLP and a CNN, each plain, with the spectral penalty on all layers, with
exponents that fall to 1 with depth (which the paper leaves for future work), and with
two forms of Jacobian regularization: eq. (11), and that of the authors' code; attacks
them; and draws Figures 5 and A18 to A25. Finished runs are not repeated.

    python examples/all_layers.py
    python examples/all_layers.py --conditions vanilla all --preset smoke

To follow the experiment, see `experiments/__init__.py`: it lists the modules in the
order in which this script goes through them.
"""

from experiments import command_line, conditions, figures
from experiments.settings import select

ARCHITECTURES = conditions.DEEP
CONDITIONS = ("vanilla", "all", "tapered", "jacobian", "output-jacobian")


def main(argv=None):
    args = command_line.parser(__doc__).parse_args(argv)
    runs = select(args, ARCHITECTURES, CONDITIONS)
    return command_line.main(args, runs, figures.all_layers)


if __name__ == "__main__":
    main()
