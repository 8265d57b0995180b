"""Estimates, made before allocation, of the memory for a layer's square arrays."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

# `syevd` needs a work space of 1 + 6N + 2N² numbers.
MOST_UNITS = 32_766
_NARROWER = (
    "Where the activity has positions (images, sequences), pass "
    '`reduction="channels"` or `reduction="mean"`, which make its channels the units; '
    "else choose a narrower layer."
)


def needed_bytes(units: Iterable[int], in_training: bool = False) -> int:
    """Peak memory of the covariances and eigenvectors of some layers, in bytes.

    It consists of the Gram matrix, covariance, eigenvectors and LAPACK's workspace
    (twice a matrix) in float64, and the basis in float32. In training, it is basis and
    window (two and a half samples per unit), and for one layer at a time what a refresh
    was measured to take, all in float32.

    Args:
        units: The number of units of each layer measured in the same pass.
        in_training: Whether the activations are those of training steps.
    """
    squares = [count**2 for count in units]
    if in_training:
        return 14 * sum(squares) + 35 * max(squares)
    # Gram matrix, eigenvectors and basis exist for all layers at once, the rest for
    # one layer at a time.
    return 20 * sum(squares) + 20 * max(squares)


def available_bytes() -> int | None:
    """Available memory in bytes, or None where the system does not report it.

    On Linux, the memory that is free or can be freed, within the limits of the
    control groups; on other systems, the installed memory.
    """
    limits = (_system_memory(), _group_memory())
    return min((limit for limit in limits if limit is not None), default=None)


def require_memory(
    layers: Sequence[tuple[str, int]], in_training: bool = False
) -> None:
    """Raises a `ValueError` if `layers` can't be measured together.

    There may be too little memory for them, or one may be too wide for LAPACK, of which
    SciPy would tell only after all the work.

    Args:
        layers: The name and the number of units of each.
        in_training: As in `needed_bytes()`.
    """
    if not layers:
        return
    needed = needed_bytes((units for _, units in layers), in_training)
    available = available_bytes()
    if available is None or needed <= available:
        _require_lapack(layers)
        return
    names = ", ".join(f"'{name}' ({units:,} units)" for name, units in layers)
    raise ValueError(
        f"Too wide for the memory: layer{'s' * (len(layers) > 1)} {names}. Expected "
        f"covariances and eigenvectors of at most {available / 2**30:,.1f} GiB, which "
        f"are available. Received: about {needed / 2**30:,.1f} GiB. {_NARROWER}"
    )


def require_memory_for_samples(
    layers: Sequence[tuple[str, int]], samples: int | None, components: int | None
) -> None:
    """Raises a `ValueError` if the eigenvalues of so many samples can't be computed.

    As `require_memory()`, for measurements that keep the samples where these are fewer
    than the units, in float32 or float64: 8 bytes each at most, beside their Gram
    matrix and LAPACK's copy, or with `components` a few arrays of that many columns.

    Args:
        layers: The name and the number of units of each.
        samples: Their number, or None if it is not known.
        components: The number of eigenvalues that are wanted; None for all.
    """
    wide = [(name, units) for name, units in layers if (samples or units) <= units]
    require_memory([each for each in layers if each not in wide])
    needed = 0
    for _, units in wide:
        count = samples or units
        square = 16 * count**2 if components is None else 0
        needed += 8 * count * units + square + 40 * count * (components or 0)
    available = available_bytes()
    if available is not None and needed > available:
        names = ", ".join(f"'{name}' ({units:,} units)" for name, units in wide)
        raise ValueError(
            f"Too many samples for the memory: {names}. Expected samples, and what "
            f"their eigenvalues take, of at most {available / 2**30:,.1f} GiB, which "
            f"are available. Received: about {needed / 2**30:,.1f} GiB. Take fewer "
            "samples."
        )


def _require_lapack(layers: Sequence[tuple[str, int]]) -> None:
    for name, units in layers:
        if units > MOST_UNITS:
            raise ValueError(
                f"Too wide for LAPACK: layer '{name}'. Expected at most {MOST_UNITS:,} "
                f"units, since its work space is addressed with 32 bits. Received: "
                f"{units:,} units. {_NARROWER}"
            )


def _system_memory() -> int | None:
    try:
        return 1024 * _first_number(r"MemAvailable:\s+(\d+) kB", "/proc/meminfo")
    except (OSError, ValueError):  # not Linux
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def _group_memory(root: str = "/") -> int | None:
    """Memory left within the limits of this process's control groups (version 2)."""
    try:
        groups = Path(root, "proc/self/cgroup").read_text()
    except OSError:
        return None
    if (unified := re.search(r"^0::/(.*)$", groups, re.MULTILINE)) is None:
        return None
    group = Path(unified[1])
    remaining = []
    for folder in (group, *group.parents):  # a limit applies to every group below it
        folder = Path(root, "sys/fs/cgroup", folder)
        try:
            limit = int((folder / "memory.max").read_text())
            used = int((folder / "memory.current").read_text())
            cached = _first_number(r"^inactive_file (\d+)", folder / "memory.stat")
        except (OSError, ValueError):  # no such file, or no limit: "max"
            continue
        remaining.append(limit - used + cached)
    return min(remaining, default=None)


def _first_number(pattern: str, path: str | Path) -> int:
    match = re.search(pattern, Path(path).read_text(), re.MULTILINE)
    if match is None:
        raise ValueError(f"{path} has no line {pattern}")
    return int(match[1])
