"""Runs benchmarks and prints a line per figure: `python -m benchmarks [--quick] [NAME ...]`."""

import argparse
import sys
from importlib import import_module

from benchmarks.measure import QUICK, Effort, Figure, machine, table
from tests.support.services import Unavailable

_SHARED = {
    "history": "drain", "window": "replay", "live": "replay", "arrays": "gateway",
    "sustained": "realtime", "cold": "realtime_dagster", "warm": "realtime_dagster",
    "naive": "realtime_dagster",
}  # fmt: skip
"""Modules that are not named like their benchmark. Each is imported when the benchmark runs: the
processes that a benchmark starts import this module too."""

BENCHMARKS = [
    "ingest", "drain", "history", "counts", "replay", "window", "live", "purge", "gateway", "arrays",
    "webhooks", "trust", "cdc", "dagster_run", "sql_destination", "idle", "supervisor", "migrations",
    "realtime", "sustained", "subscription", "quarantine", "cold", "warm", "naive",
]  # fmt: skip


def main() -> int:
    """Run the named benchmarks, by default all; returns 1 if a bound does not hold."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument(
        "--quick", action="store_true", help="a tenth of the size, 3 rounds, 5 s over HTTP"
    )
    options = parser.parse_args()
    unknown = set(options.names) - set(BENCHMARKS)
    if unknown:
        parser.error(
            f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}"
        )
    effort = QUICK if options.quick else Effort()
    print(f"{machine()}; medians of {effort.rounds}, in brackets the lowest and highest")
    all_hold = True
    for name in options.names or BENCHMARKS:
        print(f"{name}:", file=sys.stderr)
        module = import_module(f"benchmarks.{_SHARED.get(name, name)}")
        try:
            figures: list[Figure] = list(getattr(module, name)(effort))
        except Unavailable as missing:
            figures = [Figure(name, f"not measured: {missing}")]
        arguments = f'"--quick {name}"' if options.quick else name
        print(f"\n`make bench ARGS={arguments}`\n\n{table(figures)}", flush=True)
        all_hold &= all(figure.holds is not False for figure in figures)
    return 0 if all_hold else 1


if __name__ == "__main__":
    sys.exit(main())
