"""What a spectrum is pulled toward, or compared with: γₙ as a function of n."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol, TypeVar, runtime_checkable

import keras
import numpy as np
from numpy.typing import NDArray

from keras_powerlaw.arguments import invalid_value, is_finite_number, validate_number

Self = TypeVar("Self", bound="Configured")


@runtime_checkable
class Target(Protocol):
    """What a spectrum is pulled toward or compared with, up to its scale.

    For a regularizer that is saved, it needs a `get_config()` and a registered class,
    as every object in a Keras config.
    """

    def levels(self, n: NDArray[Any]) -> NDArray[np.float64]:
        """The variances λₙ of the target at n ≥ 1; only their ratios matter."""


class Configured:
    """A dataclass whose fields are its config."""

    def get_config(self) -> dict[str, Any]:
        """The fields, arrays as lists."""
        fields = dataclasses.fields(self)  # type: ignore[arg-type]
        config = {field.name: getattr(self, field.name) for field in fields}
        return {
            name: value.tolist() if isinstance(value, np.ndarray) else value
            for name, value in config.items()
        }

    @classmethod
    def from_config(cls: type[Self], config: dict[str, Any]) -> Self:
        """The object of a config."""
        return cls(**config)


@keras.saving.register_keras_serializable(package="keras_powerlaw")
@dataclasses.dataclass(frozen=True)
class PowerLaw(Configured):
    """The target n^(−α).

    Args:
        alpha: Exponent α, at least 0. Defaults to 1.
    """

    alpha: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha", validate_number("alpha", self.alpha))

    def levels(self, n: NDArray[Any]) -> NDArray[np.float64]:
        """n^(−α), of real numbers n ≥ 1."""
        return np.asarray(np.asarray(n, "float64") ** -self.alpha)


@keras.saving.register_keras_serializable(package="keras_powerlaw")
@dataclasses.dataclass(frozen=True)
class BrokenPowerLaw(Configured):
    """The target n^(−α) up to a break, and n^(−α₂) beyond it, continuous.

        γₙ = n^(−α), n ≤ b;    γₙ = b^(α₂ − α) n^(−α₂), n > b

    Args:
        alpha: Exponent α up to the break, at least 0.
        beyond: Exponent α₂ beyond it, at least 0.
        at: The break b, a real number of at least 1.

    Example:

    ```python
    import numpy as np
    import keras_powerlaw as kp

    target = kp.BrokenPowerLaw(alpha=0.5, beyond=1.2, at=20)
    print(target.levels(np.array([1, 20, 200])))  # 1, 20^(-0.5), and 10^(-1.2) of it
    ```

    Reference:
        Pospisil and Pillow (2025), *Revisiting the high-dimensional geometry of
        population responses in visual cortex*: mouse V1 is described by such a law.
    """

    alpha: float
    beyond: float
    at: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha", validate_number("alpha", self.alpha))
        object.__setattr__(self, "beyond", validate_number("beyond", self.beyond))
        if not is_finite_number(self.at) or self.at < 1:
            raise invalid_value("at", "a finite number of at least 1", repr(self.at))
        object.__setattr__(self, "at", float(self.at))

    def levels(self, n: NDArray[Any]) -> NDArray[np.float64]:
        """The variances at real numbers n ≥ 1; that at n = 1 is 1."""
        n = np.asarray(n, "float64")
        before, after = np.minimum(n, self.at), np.maximum(n / self.at, 1.0)
        return np.asarray(before**-self.alpha * after**-self.beyond)


def as_target(target: float | Target, argument: str = "target") -> Target:
    """Returns a target, for which a number is short: that of `PowerLaw`."""
    if isinstance(target, Target):
        return target
    if not is_finite_number(target) or target < 0:
        raise invalid_value(
            argument,
            "a finite number of at least 0, or a target, such as a PowerLaw, a "
            "BrokenPowerLaw or a Spectrum",
            repr(target),
        )
    return PowerLaw(target)


def relative_levels(
    target: float | Target, tau: int, width: int
) -> NDArray[np.float64]:
    """tₙ/t_τ of a target at n = τ … N.

    Raises:
        ValueError: If one of them is not a finite number above zero.
    """
    levels = np.asarray(as_target(target).levels(np.arange(tau, width + 1)), "float64")
    if not np.all(np.isfinite(levels) & (levels > 0)):
        raise invalid_value(
            "target", f"finite levels above zero at n = {tau} … {width}", target
        )
    return np.asarray(levels / levels[0])
