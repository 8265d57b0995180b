"""All attacks, in the order in which they run."""

from __future__ import annotations

from keras_powerlaw.robustness.attacks.attack import Attack, Requirement

CLEVERHANS = Requirement("cleverhans", "cleverhans", "robustness", unless_on="jax")
TOOLBOX = Requirement("art", "the Adversarial Robustness Toolbox", "strong")

ATTACKS = (
    # Of the paper.
    Attack("fgsm", "FGSM", "fgsm:run", white_box=True, requires=CLEVERHANS),
    Attack(
        "pgd",
        "PGD",
        "pgd:run",
        white_box=True,
        iterative=True,
        requires=CLEVERHANS,
    ),
    Attack("noise", "white noise", "noise:gaussian", random=True, bounded=False),
    # The strong ones, with which to doubt the first. Each of the last four attacks only
    # what those above it have left, so they go from the cheapest to the dearest.
    Attack("uniform_noise", "uniform noise", "noise:uniform", random=True),
    Attack(
        "pgd_ce",
        "PGD, cross-entropy",
        "restarted_pgd:on_cross_entropy",
        white_box=True,
        iterative=True,
        follows_up=True,
    ),
    Attack(
        "pgd_dlr",
        "PGD, margin loss",
        "restarted_pgd:on_logit_ratio",
        white_box=True,
        iterative=True,
        follows_up=True,
    ),
    Attack(
        "autopgd",
        "AutoPGD",
        "autopgd:run",
        white_box=True,
        iterative=True,
        follows_up=True,
        requires=TOOLBOX,
    ),
    Attack(
        "square",
        "Square",
        "square:run",
        follows_up=True,
        requires=TOOLBOX,
        precondition="square:validate_shape",
    ),
)

BY_NAME = {attack.name: attack for attack in ATTACKS}

# Those that run unless told otherwise, and those that make a worst case.
PAPER_ATTACKS = ("fgsm", "pgd", "noise")
STRONG_ATTACKS = tuple(attack.name for attack in ATTACKS if attack.follows_up)
