"""Example scripts, and in `experiments` what they share with the benchmarks."""
