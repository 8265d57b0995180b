"""Writing files that are never seen half-written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Writes a file under another name first: a file that is there is whole.

    Args:
        path: The file.
        write: Called with the file, open for bytes.
    """
    unfinished = path.with_name(f"{path.name}.unfinished")
    with open(unfinished, "wb") as file:
        write(file)
    unfinished.replace(path)
