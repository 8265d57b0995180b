"""Whether a layer's (units, units) arrays fit into memory, asked before they exist."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path


def needed_bytes(units: Iterable[int]) -> int:
    """What the covariances and eigenvectors of some layers take at their peak.

    Float64 Gram matrix, covariance, eigenvectors and LAPACK's workspace (twice a
    matrix), and the float32 basis.

    Args:
        units: The number of units of each layer that is measured in the same pass.
    """
    squares = [count**2 for count in units]
    # All layers at once: Gram matrix, eigenvectors, basis. One at a time: the rest.
    return 20 * sum(squares) + 20 * max(squares)


def available_bytes() -> int | None:
    """The memory that there is, or None where the system does not say.

    On Linux, what is free or can be freed, within the control groups' limits; on
    other systems, the memory installed.
    """
    limits = (_system_memory(), _group_memory())
    return min((limit for limit in limits if limit is not None), default=None)


def require_memory(layers: Sequence[tuple[str, int]]) -> None:
    """Raises a `ValueError` if measuring some layers together would not fit.

    Args:
        layers: The name and the number of units of each.
    """
    if not layers:
        return
    needed, available = needed_bytes(units for _, units in layers), available_bytes()
    if available is None or needed <= available:
        return
    names = ", ".join(f"'{name}' ({units:,} units)" for name, units in layers)
    raise ValueError(
        f"Too wide for the memory: layer{'s' * (len(layers) > 1)} {names}. Expected "
        f"covariances and eigenvectors of at most {available / 2**30:,.1f} GiB, which "
        f"are available. Received: about {needed / 2**30:,.1f} GiB. Where the activity "
        'has positions (images, sequences), pass `reduction="channels"` or '
        '`reduction="mean"`, which make its channels the units; else choose a narrower '
        "layer."
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
    """What is left of the limits of this process' control groups (version 2)."""
    try:
        groups = Path(root, "proc/self/cgroup").read_text()
    except OSError:
        return None
    if (unified := re.search(r"^0::/(.*)$", groups, re.MULTILINE)) is None:
        return None
    group = Path(unified[1])
    left = []
    for folder in (group, *group.parents):  # a limit holds for all groups below
        folder = Path(root, "sys/fs/cgroup", folder)
        try:
            limit = int((folder / "memory.max").read_text())
            used = int((folder / "memory.current").read_text())
            cached = _first_number(r"^inactive_file (\d+)", folder / "memory.stat")
        except (OSError, ValueError):  # no such file, or no limit: "max"
            continue
        left.append(limit - used + cached)
    return min(left, default=None)


def _first_number(pattern: str, path: str | Path) -> int:
    match = re.search(pattern, Path(path).read_text(), re.MULTILINE)
    if match is None:
        raise ValueError(f"{path} has no line {pattern}")
    return int(match[1])
