"""Runs benchmarks and prints a line per figure: `python -m benchmarks [--quick] [NAME ...]`."""

import argparse
import sys
from collections.abc import Mapping
from importlib import import_module

from benchmarks.measure import QUICK, Effort, Figure, machine, table

BENCHMARKS: Mapping[str, str] = {
    "ingest": "ingest",
    "drain": "drain",
    "history": "drain",
    "counts": "counts",
    "replay": "replay",
    "window": "replay",
    "live": "replay",
    "purge": "purge",
    "gateway": "gateway",
    "arrays": "gateway",
    "webhooks": "webhooks",
    "trust": "trust",
    "cdc": "cdc",
    "dagster_run": "dagster_run",
    "sql_destination": "sql_destination",
    "idle": "idle",
    "supervisor": "supervisor",
    "migrations": "migrations",
    "realtime": "realtime",
    "sustained": "realtime",
    "subscription": "subscription",
    "cold": "realtime_dagster",
    "warm": "realtime_dagster",
    "naive": "realtime_dagster",
}
"""Each benchmark's module, imported when it runs: the processes that a benchmark starts import this
module too."""


def main() -> int:
    """Run the named benchmarks, by default all; returns 1 if a bound does not hold."""
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
    print(f"{machine()}; medians of {effort.rounds}, in brackets the lowest and highest")
    all_hold = True
    for name in options.names or BENCHMARKS:
        print(f"{name}:", file=sys.stderr)
        module = import_module(f"benchmarks.{BENCHMARKS[name]}")
        figures: list[Figure] = list(getattr(module, name)(effort))
        arguments = f'"--quick {name}"' if options.quick else name
        print(f"\n`make bench ARGS={arguments}`\n\n{table(figures)}", flush=True)
        all_hold &= all(figure.holds is not False for figure in figures)
    return 0 if all_hold else 1


if __name__ == "__main__":
    sys.exit(main())
