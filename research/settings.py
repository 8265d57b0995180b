"""The settings of each run: dictionaries of plain values.

They say all that `networks.build_model` and `training.perform` need to know, and the
run's file keeps them.
"""

from .conditions import CONDITIONS_OF, SHALLOW, SPECTRAL
from .presets import PRESETS


def select(
    preset,
    *,
    architectures=tuple(CONDITIONS_OF),
    conditions=None,
    seeds=None,
    betas=None,
    dataset=None,
    attacked=None,
    alpha=1.0,
    tau=10,
    **sizes,
):
    """The settings of the runs of a preset, or of a part of it.

    Args:
        preset: A key of `PRESETS`.
        architectures: Keys of `ARCHITECTURES`.
        conditions: Keys of `CONDITIONS`. Default: those that the paper has of each
            architecture.
        seeds: Instead of the preset's, as is what follows.
        betas: Strengths of the spectral penalty.
        dataset: One of `data.DATASETS`.
        attacked: How many test images are attacked.
        alpha: Exponent of the target.
        tau: First eigenvalue of the target.
        **sizes: Width, epochs, learning rate or batch size.

    Returns:
        A list of dictionaries, all of one seed before those of the next.
    """
    chosen = PRESETS[preset]
    runs = []
    for seed in chosen["seeds"] if seeds is None else seeds:
        for architecture in architectures:
            kind = "shallow" if architecture in SHALLOW else architecture
            for condition in CONDITIONS_OF[architecture]:
                if conditions and condition not in conditions:
                    continue
                spectral = condition in SPECTRAL
                for beta in (betas or chosen["betas"]) if spectral else [None]:
                    runs.append(
                        {
                            "dataset": dataset or chosen["dataset"],
                            "architecture": architecture,
                            "condition": condition,
                            "beta": beta,
                            "seed": seed,
                            "alpha": alpha if spectral else None,
                            "tau": tau if spectral else None,
                            **(chosen[kind] | sizes),
                            "attacked": attacked or chosen["attacked"],
                            "epsilons": chosen["epsilons"],
                            **_compared(chosen, seed),
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


def grouped(results, key):
    """Results with equal keys of their settings, in the order of the first of each."""
    groups = {}
    for result in results:
        groups.setdefault(key(result["settings"]), []).append(result)
    return groups
