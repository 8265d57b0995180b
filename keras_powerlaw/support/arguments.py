"""The wording of errors."""

from __future__ import annotations

from typing import Any


def invalid_value(argument: str, expected: str, received: Any) -> ValueError:
    """The error for an argument that is not what was expected."""
    return ValueError(
        f"Invalid value for argument `{argument}`. Expected {expected}. "
        f"Received: {argument}={received}"
    )
