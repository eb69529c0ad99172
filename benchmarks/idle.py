"""The example's gateway: the modules that it imports, and its CPU time while idle."""

import re
import sqlite3
from collections.abc import Iterator

import psutil

from benchmarks.measure import Effort, Figure, figure, percent_of_core, temporary_folder
from tests.support.processes.blacksmith import GatewayProcess

APP = "assets.application:blacksmith"
FLIGHT = (
    '{"carrier": "UA", "flight": 1545, "time_hour": "2013-01-01T10:00:00Z", "origin": "EWR",'
    ' "dest": "IAH", "distance": 1400, "sched_dep_time": 515, "sched_arr_time": 819}'
)

_IMPORTED = re.compile(r"^import time: +\d+ \| +\d+ \| +(\S+)$", re.MULTILINE)


def idle(effort: Effort) -> Iterator[Figure]:
    """Whether it imported Dagster for an event; then percent of a core while idle."""
    env = {"PYTHONPROFILEIMPORTTIME": "1"}
    with (
        temporary_folder() as folder,
        GatewayProcess(f"sqlite:///{folder}/store.db", APP, env=env) as running,
    ):
        with running.client() as client:
            client.post("/airport/departures", content=FLIGHT).raise_for_status()
        process = psutil.Process(running.pid)
        percent = [percent_of_core(process, 20 * effort.scale) for _ in range(effort.rounds)]
        imported = set(_IMPORTED.findall(running.log))
    assert "blacksmith_dagster.gateway.app" in imported, "the log of imports is incomplete"
    dagster = {name for name in imported if name.partition(".")[0] == "dagster"}
    yield Figure(
        "gateway of the example: modules of dagster among the imported",
        f"{len(dagster)} of {len(imported):,}",
        bound="0",
        holds=not dagster,
    )
    what = f"gateway of the example, nothing to do; SQLite {sqlite3.sqlite_version}"
    yield figure(what, percent, "% of a core", at_most=1)
