"""Section 4.1 and appendix A of the paper: one hidden layer, with a 1/n spectrum.

Trains networks of one hidden layer, plain and spectrally regularized, with and without
batch normalization; attacks them; and draws Figures 2 and A6 to A9. Finished runs are
not repeated.

    python examples/shallow_mlp.py --seeds 0 1 2
    python examples/shallow_mlp.py --preset smoke
"""

import experiments
import figures

ARCHITECTURES = experiments.SHALLOW
CONDITIONS = ("vanilla", "last")


def main(argv=None):
    args = experiments.parser(__doc__).parse_args(argv)
    runs = experiments.select(args, ARCHITECTURES, CONDITIONS)
    return experiments.main(args, runs, figures.shallow)


if __name__ == "__main__":
    main()
