"""The whole paper: every experiment and every figure, resumable.

Trains every network of sections 4.1 to 4.3 that is not there yet, one JSON file per
finished run, and draws Figures 2 to 5 and A6 to A25 from them. It can be stopped or
killed at any time: started again, it repeats only the run that was interrupted.

    python examples/paper.py --preset smoke        # minutes: does everything run?
    python examples/paper.py                       # MNIST, reduced for two CPU cores
    python examples/paper.py --preset paper        # the settings in full: needs a GPU
    python examples/paper.py --experiments whitening --architectures mlp --seeds 0 1 2
    python examples/paper.py --draw                # only the figures of what is there

On the JAX backend it needs no TensorFlow:

    KERAS_BACKEND=jax python examples/paper.py --preset paper --data mnist.npz
"""

import all_layers
import shallow_mlp
import whitening
from experiments import command_line, figures
from experiments.settings import select

EXPERIMENTS = {
    "shallow": (shallow_mlp, figures.shallow),
    "whitening": (whitening, figures.whitening),
    "all_layers": (all_layers, figures.all_layers),
}


def main(argv=None):
    parser = command_line.parser(__doc__)
    parser.add_argument(
        "--experiments", nargs="+", choices=EXPERIMENTS, default=list(EXPERIMENTS)
    )
    args = parser.parse_args(argv)
    chosen = [EXPERIMENTS[name] for name in args.experiments]

    runs = []  # each once, though experiments share some
    for script, _ in chosen:
        for settings in select(args, script.ARCHITECTURES, script.CONDITIONS):
            if settings not in runs:
                runs.append(settings)
    runs.sort(key=lambda settings: settings["seed"])  # one seed after the other

    def draw(results):
        drawn = figures.sensitivity(results)
        for _, draw_figures in chosen:
            drawn.update(draw_figures(results))
        return drawn

    return command_line.main(args, runs, draw)


if __name__ == "__main__":
    main()
