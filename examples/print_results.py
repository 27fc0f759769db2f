"""Print one table over the results of several runs, one line per data set.

Usage::

    python examples/print_results.py runs/*
    python examples/print_results.py runs/* --metric recall@20
    python examples/print_results.py runs/* --method "adaptive fusion"
"""

import argparse
import sys

from metarec.reporting import compare_runs


def main() -> None:
    """Read the command line, print the table."""
    parser = argparse.ArgumentParser(description="One table over several runs, one line per data set.")
    parser.add_argument("runs", nargs="+", help="folders that hold a results.json, or such files")
    parser.add_argument("--metric", default="mrr@10", help="metric to show of every method (default: %(default)s)")
    parser.add_argument("--method", help="show all metrics of this method instead")
    options = parser.parse_args()
    try:
        print(compare_runs(options.runs, metric=options.metric, method=options.method))
    except (OSError, ValueError) as error:
        sys.exit(f"print_results: {error}")


if __name__ == "__main__":
    main()
