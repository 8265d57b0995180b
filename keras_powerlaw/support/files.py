"""Writing files atomically, so that no reader sees a half-written one."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Writes a file under a temporary name, and renames it once it is complete.

    Several processes may write the same file at once; the last one to finish remains.

    Args:
        path: Path of the file.
        write: Writes the content; called with a file open in binary mode.
    """
    unfinished = path.with_name(f"{path.name}.unfinished-{uuid.uuid4().hex}")
    try:
        with open(unfinished, "wb") as file:
            write(file)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
