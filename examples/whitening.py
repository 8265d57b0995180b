"""Section 4.2 and appendix B: a broken second layer, and the last layer's rescue of it.

Trains an MLP and a CNN, each plain, with its second hidden layer whitened, with the
spectral penalty on the last hidden layer, and with both; attacks them; and draws
Figures 4 and A10 to A17. Finished runs are not repeated.

    python examples/whitening.py
    python examples/whitening.py --architectures mlp --preset smoke
"""

import experiments
import figures

ARCHITECTURES = experiments.DEEP
CONDITIONS = ("vanilla", "whitened", "last", "whitened-last")


def main(argv=None):
    args = experiments.parser(__doc__).parse_args(argv)
    runs = experiments.select(args, ARCHITECTURES, CONDITIONS)
    return experiments.main(args, runs, figures.whitening)


if __name__ == "__main__":
    main()
