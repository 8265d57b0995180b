"""Trains, measures and attacks the networks of an experiment; prints and draws them.

Every finished run leaves a JSON file in the output folder and is not repeated, so it
can be stopped or killed at any time and started again: only the run that was
interrupted begins anew.

    python -m research.train --preset smoke      # minutes: does everything run?
    python -m research.train --preset cpu        # MNIST, reduced for two CPU cores
    python -m research.train --preset evidence   # with three seeds, and strong attacks
    python -m research.train --preset paper      # the settings in full: needs a GPU
    python -m research.train --preset matched --dataset fashion_mnist
    python -m research.train --preset widths --smoke

`experiments` says what they are. On the JAX backend nothing of this needs TensorFlow:

    KERAS_BACKEND=jax python -m research.train --preset paper --data-dir mnist.npz
"""

import argparse
import functools
import pathlib

from . import data
from .conditions import ARCHITECTURES, CONDITIONS
from .experiments import COMPARISONS, paper
from .presets import PRESETS
from .results import show
from .runs import run_all

# All others are those of `settings.select`.
OWN = ("preset", "smoke", "output", "data_dir")


def parser():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--preset", choices=(*PRESETS, *COMPARISONS), required=True)
    add("--smoke", action="store_true", help="a comparison at sizes of no interest")
    add("--output", type=pathlib.Path, help="default: results/<preset>")
    add("--data-dir", help="of tensorflow-datasets, or an .npz file like mnist.npz")
    add("--dataset", choices=data.DATASETS)
    add("--seeds", type=int, nargs="+")
    add("--betas", type=float, nargs="+", help="strengths β of the spectral penalty")
    add("--architectures", nargs="+", choices=ARCHITECTURES)
    add("--conditions", nargs="+", choices=CONDITIONS)
    add("--attacked", type=int, help="attack so many of the test images")
    add("--width", type=int, help="units of each dense hidden layer")
    add("--epochs", type=int)
    add("--learning-rate", type=float)
    add("--batch-size", type=int)
    add("--alpha", type=float)
    add("--tau", type=int)
    return parser


def runs_of(args):
    """The runs to begin with, and a function from their results to those that follow.

    Args:
        args: What `parser()` returned.
    """
    given = {k: v for k, v in vars(args).items() if k not in OWN and v is not None}
    if args.preset in PRESETS:
        experiment = functools.partial(paper, args.preset)
    else:
        experiment = functools.partial(COMPARISONS[args.preset], tiny=args.smoke)
    return experiment(**given)


def main(argv=None):
    args = parser().parse_args(argv)
    runs, following = runs_of(args)
    if not runs:
        raise SystemExit("No runs: these --architectures and --conditions don't meet.")
    folder = args.output or pathlib.Path("results") / args.preset
    images = data.load(runs[0]["dataset"], args.data_dir)
    results = run_all(runs, images, folder, args.preset)
    results += run_all(following(results), images, folder, args.preset)
    show(results, folder)
    print(f"\nResults and figures are in {folder}")
    return results


if __name__ == "__main__":
    main()
