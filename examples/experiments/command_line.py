"""The options of the experiments' scripts, and what every script does with them.

`settings.select` reads the options, `all_runs.run_all` performs the runs.
"""

import argparse
import pathlib

from . import data
from .all_runs import finished, run_all
from .conditions import ARCHITECTURES, CONDITIONS
from .matching import of_best_strengths
from .presets import PRESETS
from .table import print_rows, result_rows


def parser(description):
    """The options that the scripts have in common."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--preset", choices=PRESETS, default="cpu", help="sets what is not given")
    add("--dataset", choices=data.DATASETS)
    add("--data", help="an .npz file like mnist.npz, or tensorflow-datasets' folder")
    add("--output", type=pathlib.Path, help="default: results/<preset>")
    add("--seeds", type=int, nargs="+")
    add("--betas", type=float, nargs="+", help="strengths β of the spectral penalty")
    add("--architectures", nargs="+", choices=ARCHITECTURES)
    add("--conditions", nargs="+", choices=CONDITIONS)
    add("--epochs", type=int)
    add("--width", type=int, help="units of each dense hidden layer")
    add("--learning-rate", type=float)
    add("--batch-size", type=int)
    add("--alpha", type=float, default=1.0)
    add("--tau", type=int, default=10)
    add("--attacked", type=int, help="attack so many of the test images")
    add("--draw", action="store_true", help="train nothing, draw what is there")
    return parser


def main(args, runs, draw, rows=result_rows):
    """Performs runs, draws figures into their folder, and prints a table.

    Args:
        args: The parsed command line.
        runs: Settings of each run.
        draw: A function of `figures`: takes the results, returns figures by name.
        rows: A function of `table`: takes the results, returns the rows to print.

    Returns:
        The results.
    """
    if not runs:
        raise SystemExit("No runs: these --architectures and --conditions don't meet.")
    folder = args.output or pathlib.Path("results") / args.preset
    dataset = runs[0]["dataset"]
    images = None if args.draw else data.load(dataset, args.data)

    def perform(runs):
        return finished(runs, folder) if args.draw else run_all(runs, images, folder)

    later = [settings for settings in runs if _waits(settings, runs[0], args.preset)]
    runs = [settings for settings in runs if settings not in later]
    results = perform(runs)
    if later:
        later = of_best_strengths(later, results)
        results += perform(later)
    if args.draw:
        count = len(runs) + len(later)
        print(f"{len(results)} of {count} runs are finished in {folder}")
    for name, figure in draw(results).items():
        figure.savefig(folder / f"{dataset}-{name}.png", dpi=120)
    print()
    print_rows(rows(results))
    print(f"\nResults and figures are in {folder}")
    return results


def _waits(settings, first, preset):
    """Whether the first seed decides which strength of these runs is trained."""
    return (
        settings["seed"] != first["seed"]
        and settings["architecture"] in PRESETS[preset].get("one_strength", ())
        and "variant" not in settings  # those are compared by other scripts
    )
