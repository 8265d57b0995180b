"""All attacks, in the order in which they run."""

from __future__ import annotations

from keras_powerlaw.robustness.attacks.attack import Attack, Requirement

CLEVERHANS = Requirement("cleverhans", "cleverhans", "robustness", unless_on="jax")
TOOLBOX = Requirement("art", "the Adversarial Robustness Toolbox", "strong")

ATTACKS = (
    # The paper's attacks.
    Attack(
        "fgsm",
        "FGSM",
        "fgsm:run",
        white_box=True,
        requires=CLEVERHANS,
        precondition="fgsm:require_compatible",
    ),
    Attack(
        "pgd",
        "PGD",
        "pgd:run",
        white_box=True,
        iterative=True,
        requires=CLEVERHANS,
        precondition="pgd:require_compatible",
    ),
    Attack("noise", "white noise", "noise:gaussian", random=True, bounded=False),
    # The strong attacks, which test the results of the first. Each of the last four is
    # run only on the images that those above it did not break: the cheapest come first.
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

# The attacks with which a table shows a worst case.
STRONG_ATTACKS = tuple(attack.name for attack in ATTACKS if attack.follows_up)
