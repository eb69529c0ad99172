"""`python -m benchmarks [--quick] [NAME ...]`: measure, and print a line per figure."""

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping

from benchmarks.counts import counts
from benchmarks.dagster_run import dagster_run
from benchmarks.drain import drain, history
from benchmarks.gateway import arrays, gateway
from benchmarks.idle import idle
from benchmarks.ingest import ingest
from benchmarks.measure import QUICK, Effort, Figure, machine, table
from benchmarks.sql_destination import sql_destination

BENCHMARKS: Mapping[str, Callable[[Effort], Iterator[Figure]]] = {
    "ingest": ingest,
    "drain": drain,
    "history": history,
    "counts": counts,
    "gateway": gateway,
    "arrays": arrays,
    "dagster_run": dagster_run,
    "sql_destination": sql_destination,
    "idle": idle,
}


def main() -> int:
    """Measure what was asked for, all by default; 1 if a bound does not hold."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument(
        "--quick", action="store_true", help="a tenth of the size, 3 rounds, 5 s over HTTP"
    )
    options = parser.parse_args()
    unknown = set(options.names) - BENCHMARKS.keys()
    if unknown:
        parser.error(
            f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}"
        )
    effort = QUICK if options.quick else Effort()
    figures: list[Figure] = []
    for name in options.names or BENCHMARKS:
        print(f"{name}:", file=sys.stderr)
        figures += BENCHMARKS[name](effort)
    print(f"{machine()}; medians of {effort.rounds}, in brackets the lowest and highest\n")
    print(table(figures))
    return 1 if any(figure.holds is False for figure in figures) else 0


if __name__ == "__main__":
    sys.exit(main())
