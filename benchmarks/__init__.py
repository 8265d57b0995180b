"""Benchmarks, run from the project's root: `python -m benchmarks --help`."""
