"""Prints the tables of "Small batches" in docs/theory.md.

batch    closed forms for Gaussian activations
anchors  closed forms, likewise Gaussian
descent  simulation: gradient descent on the eigenvalues themselves (a minute)
refresh  simulation: bases from few examples (some minutes)
network  trains one layer of 200 units on MNIST at three batch sizes (some minutes)

python -m benchmarks.small_batches
python -m benchmarks.small_batches --tables batch anchors
"""

import argparse

from benchmarks.small_batches.network import network_table
from benchmarks.small_batches.tables import (
    anchors_table,
    batch_table,
    descent_table,
    refresh_table,
)
from examples.experiments.table import print_rows

TABLES = {
    "batch": batch_table,
    "anchors": anchors_table,
    "descent": descent_table,
    "refresh": refresh_table,
    "network": network_table,
}


def main(argv=None):
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.small_batches",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    for name in parser.parse_args(argv).tables:
        print(f"\n{name}\n")
        print_rows(TABLES[name]())


if __name__ == "__main__":
    main()
