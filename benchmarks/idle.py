"""The example's gateway: the modules that it imports, and its CPU time while idle."""

import re
import sqlite3
import tempfile
import time
from collections.abc import Iterator

import psutil

from benchmarks.measure import Effort, Figure, at_most
from tests.acceptance.processes import GatewayProcess

FLIGHT = {
    "carrier": "UA",
    "flight": 1545,
    "time_hour": "2013-01-01T10:00:00Z",
    "origin": "EWR",
    "dest": "IAH",
    "distance": 1400,
    "sched_dep_time": 515,
    "sched_arr_time": 819,
}

_IMPORTED = re.compile(r"^import time: +\d+ \| +\d+ \| +(\S+)$", re.MULTILINE)


def idle(effort: Effort) -> Iterator[Figure]:
    """Whether it imported Dagster for an event; then percent of a core while idle."""
    with tempfile.TemporaryDirectory(prefix="blacksmith-bench-") as folder:
        gateway = GatewayProcess(
            f"sqlite:///{folder}/store.db",
            "assets.application:blacksmith",
            env={"PYTHONPROFILEIMPORTTIME": "1"},
        )
        with gateway as running:
            with running.client() as client:
                client.post("/airport/departures", json=FLIGHT).raise_for_status()
            process = psutil.Process(running.pid)
            percent = [_percent(process, 20 * effort.scale) for _ in range(effort.rounds)]
            imported = set(_IMPORTED.findall(running.log))
    assert "blacksmith_dagster.gateway.app" in imported, "the log of imports is incomplete"
    dagster = {name for name in imported if name.partition(".")[0] == "dagster"}
    what = "gateway of the example"
    yield Figure(
        f"{what}: modules of dagster among the imported",
        f"{len(dagster)} of {len(imported):,}",
        bound="0",
        holds=not dagster,
    )
    store = f"SQLite {sqlite3.sqlite_version}"
    yield at_most(f"{what}, nothing to do; {store}", percent, 1, "% of a core")


def _percent(process: psutil.Process, seconds: float) -> float:
    before = process.cpu_times()
    time.sleep(seconds)
    after = process.cpu_times()
    return 100 * (sum(after[:2]) - sum(before[:2])) / seconds
