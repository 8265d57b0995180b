"""Section 4.3 and appendix C: the spectral penalty on every layer, and the Jacobian's.

Trains an MLP and a CNN, each plain, with the spectral penalty on all layers, with
exponents that fall to 1 with depth (which the paper leaves for future work), and with
two forms of Jacobian regularization: eq. (11), and that of the authors' code; attacks
them; and draws Figures 5 and A18 to A25. Finished runs are not repeated.

    python examples/all_layers.py
    python examples/all_layers.py --conditions vanilla all --preset smoke
"""

import experiments
import figures

ARCHITECTURES = experiments.DEEP
CONDITIONS = ("vanilla", "all", "tapered", "jacobian", "output-jacobian")


def main(argv=None):
    args = experiments.parser(__doc__).parse_args(argv)
    runs = experiments.select(args, ARCHITECTURES, CONDITIONS)
    return experiments.main(args, runs, figures.all_layers)


if __name__ == "__main__":
    main()
