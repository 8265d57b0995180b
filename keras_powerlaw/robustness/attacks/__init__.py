"""The attacks: a class for each, in the order in which they run."""

from keras_powerlaw.robustness.attacks.attack import Attack
from keras_powerlaw.robustness.attacks.gradient import (
    Fgsm,
    Pgd,
    PgdOnCrossEntropy,
    PgdOnMargin,
)
from keras_powerlaw.robustness.attacks.noise import GaussianNoise, UniformNoise
from keras_powerlaw.robustness.attacks.toolbox import AutoPgd, Square

ATTACKS: tuple[type[Attack], ...] = (
    # The paper's attacks.
    Fgsm,
    Pgd,
    GaussianNoise,
    # The strong attacks, which test the results of the first. Each of the last four is
    # run only on the images that those above it did not break: the cheapest come first.
    UniformNoise,
    PgdOnCrossEntropy,
    PgdOnMargin,
    AutoPgd,
    Square,
)

BY_NAME = {attack.name: attack for attack in ATTACKS}
