"""From the command line to the settings of each run.

A run's settings are a dictionary of plain values. They say all that
`networks.build_model` and `one_run.perform` need to know, and `results` keeps them in
the run's file.
"""

from .conditions import SHALLOW, SPECTRAL
from .presets import PRESETS


def select(args, architectures, conditions):
    """The settings of the runs that the command line asks for.

    Args:
        args: What `command_line.parser` returned.
        architectures: Those of the experiment, narrowed by `--architectures`.
        conditions: Those of the experiment, narrowed by `--conditions`.

    Returns:
        A list of dictionaries, all of one seed before those of the next.
    """
    preset = PRESETS[args.preset]
    runs = []
    for seed in args.seeds or preset["seeds"]:
        for architecture in architectures:
            if args.architectures and architecture not in args.architectures:
                continue
            sizes = dict(preset["shallow" if architecture in SHALLOW else architecture])
            for key in sizes:
                if getattr(args, key, None) is not None:
                    sizes[key] = getattr(args, key)
            for condition in conditions:
                if args.conditions and condition not in args.conditions:
                    continue
                spectral = condition in SPECTRAL
                for beta in (args.betas or preset["betas"]) if spectral else [None]:
                    runs.append(
                        {
                            "dataset": args.dataset or preset["dataset"],
                            "architecture": architecture,
                            "condition": condition,
                            "beta": beta,
                            "seed": seed,
                            "alpha": args.alpha if spectral else None,
                            "tau": args.tau if spectral else None,
                            **sizes,
                            "attacked": args.attacked or preset["attacked"],
                            "epsilons": preset["epsilons"],
                            **_compared(preset, seed),
                        }
                    )
    return runs


def _compared(preset, seed):
    """What only a preset for comparisons has."""
    if "kept_out" not in preset:
        return {}
    # What takes longest is done with one seed: the maps and the strong attacks.
    first = seed == preset["seeds"][0]
    return {
        "kept_out": preset["kept_out"],
        "strongly_attacked": first * preset.get("strongly_attacked", 0),
        "maps": first,
    }


def steps_of(settings, images):
    """The number of steps of a run's training, on so many images."""
    return settings["epochs"] * -(-images // settings["batch_size"])


def run_name(settings):
    """What the run's file is called, without its ending.

    Runs that differ in other settings than those of the name have a `variant` that
    tells them apart.
    """
    parts = [settings[key] for key in ("dataset", "architecture", "condition")]
    if settings["beta"] is not None:
        parts.append(f"beta{settings['beta']:g}")
    if "variant" in settings:
        parts.append(settings["variant"])
    return "-".join([*parts, f"seed{settings['seed']}"])
