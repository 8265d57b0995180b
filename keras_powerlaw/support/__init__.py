"""Helpers that the rest of the package shares; they import none of it."""
