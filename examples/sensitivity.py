"""Figures 2D and 3: which pixels the eigenvalues of the last hidden layer depend on.

Trains the networks that are not there yet, as the other scripts do, and draws their
sensitivity maps, eq. (9): the sum over all training images, and those of the first one.

    python examples/sensitivity.py
    python examples/sensitivity.py --architectures mlp --preset smoke
"""

import experiments
import figures

ARCHITECTURES = ("shallow", "mlp")
CONDITIONS = {
    "shallow": ("vanilla", "last"),
    "mlp": (
        *("whitened", "whitened-last", "last", "vanilla"),
        *("all", "jacobian", "output-jacobian"),
    ),
}


def main(argv=None):
    args = experiments.parser(__doc__).parse_args(argv)
    runs = [
        settings
        for architecture in ARCHITECTURES
        for settings in experiments.select(
            args, [architecture], CONDITIONS[architecture]
        )
    ]
    return experiments.main(args, runs, figures.sensitivity)


if __name__ == "__main__":
    main()
