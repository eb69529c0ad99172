"""Warm runs in a default `dagster dev`: how soon one starts, and what it costs."""

import os
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from typing import Any

import psutil
import psycopg

from benchmarks.measure import Effort, Figure, figure, percent_of_core, temporary_folder
from benchmarks.naive_definitions import CALLED, EVENTS
from tests.support.process_trees import is_alive
from tests.support.processes.dagster_processes import DagsterProcess
from tests.support.processes.warm_processes import WarmDeployment
from tests.support.services import free_port
from tests.support.services.postgres import PostgresServer
from tests.support.waiting import until

COLD = 20
IDLE_SECONDS = 60.0
BUSY_SECONDS = 300.0
NAIVE = 20
# A warm run's default life; the rows of a shorter run are extrapolated to it.
_RUNS_AN_HOUR = 4
_MATERIALIZATIONS_A_RUN = 16  # one a minute for 15 minutes, and one at the end


@contextmanager
def _alerts(**warm: Any) -> Iterator[tuple[PostgresServer, WarmDeployment]]:
    """A gateway and two realtime destination events, with their own PostgreSQL as store and broker."""
    with closing(PostgresServer(durable=True)) as server, temporary_folder() as home:
        server.start()
        with closing(WarmDeployment(server.create_database(), home, **warm)) as alerts:
            yield server, alerts


def cold(effort: Effort) -> Iterator[Figure]:
    """Seconds from an event's request to its load when no run is alive, at random moments."""
    latencies = []
    with _alerts(idle="2s") as (_, alerts):
        alerts.dev()
        for number in range(1, max(3, round(COLD * effort.scale)) + 1):
            until(lambda: not alerts.active() and _was_idle(alerts), 120, "no run is alive")
            time.sleep(random.uniform(0, 5))
            sent = time.monotonic()
            alerts.send()
            until(partial(alerts.latencies, sent), 120, "the event is loaded")
            latencies += alerts.latencies(sent)
            print(f"  cold {number}: {latencies[-1]:.1f} s", file=sys.stderr)
    what = f"cold, no run alive: request to load, worst of {len(latencies)}; default dagster dev"
    yield figure(what, [max(latencies)], "s", at_most=15)
    yield figure("the same, all of them", latencies, "s")


def _was_idle(alerts: WarmDeployment) -> bool:
    """Whether the sensor has no reason to launch a run."""
    since = alerts.store.counts.since_load("alerts/late", "alerts/stuck")
    return since is None or since > 2


def warm(effort: Effort) -> Iterator[Figure]:
    """A warm run's CPU time and statements while idle, and its rows in Dagster while busy."""
    busy = BUSY_SECONDS * effort.scale
    with _alerts(age=f"{60 + IDLE_SECONDS + busy:.0f}s", notice="20s") as (server, alerts):
        alerts.dev()
        alerts.send()
        process = psutil.Process(alerts.warm())
        time.sleep(5)  # until the run has settled after its start
        percent, statements = _idle(server, process)
        what = f"idle warm run, its process over {IDLE_SECONDS:.0f} s"
        yield figure(what, [percent], "% of a core", at_most=1)
        label = "the same: statements in the store, leases included, without BEGIN and COMMIT"
        yield figure(label, [statements], "/s", at_most=0.5)
        with alerts.stream(20.0):
            until(lambda: not is_alive(process.pid), IDLE_SECONDS + busy + 120, "the run has ended")
        yield from _rows(alerts, busy)


def _idle(server: PostgresServer, process: psutil.Process) -> tuple[float, float]:
    """A process's percent of a core, and its statements a second by PostgreSQL's own log."""
    _log_statements(server, "all")
    percent = percent_of_core(process, IDLE_SECONDS)
    ports = {
        str(connection.laddr.port) for connection in process.net_connections() if connection.laddr
    }
    _log_statements(server, "none")
    statements = _STATEMENT.findall((server.folder / "log").read_text())
    counted = Counter(verb for port, verb in statements if port in ports)
    print(f"  idle: {dict(counted)}", file=sys.stderr)
    work = sum(times for verb, times in counted.items() if verb not in _TRANSACTION)
    return percent, work / IDLE_SECONDS


_STATEMENT = re.compile(
    r"^from=\S+\((\d+)\) LOG:  (?:statement|execute [^:]+): +(\w+)", re.MULTILINE
)
# Every other statement is a transaction of its own, between two of these.
_TRANSACTION = {"BEGIN", "COMMIT", "ROLLBACK"}


def _log_statements(server: PostgresServer, which: str) -> None:
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET log_line_prefix = 'from=%r '")
        connection.execute(f"ALTER SYSTEM SET log_statement = '{which}'")
        connection.execute("SELECT pg_reload_conf()")
    time.sleep(1)


def _rows(alerts: WarmDeployment, busy: float) -> Iterator[Figure]:
    """An hour's rows in Dagster's event log, extrapolated from one run. Counted for a destination with
    a single event: `stuck` is left out, and the run's own rows count for the other one."""
    run = alerts.runs()[0]
    messages = [entry.message for entry in alerts.instance.all_logs(run.run_id)]
    own = [message for message in messages if "stuck" not in message]
    minutes = sum(message.startswith("Materialized") for message in own)
    hourly = _RUNS_AN_HOUR * (_MATERIALIZATIONS_A_RUN + len(own) - minutes)
    what = f"rows in Dagster's event log of a warm run, busy for {busy:.0f} s"
    yield Figure(what, f"{minutes} materializations, {len(own) - minutes} others")
    what = (
        "a destination event's rows an hour: 4 runs, each with 16 materializations and the others"
    )
    yield figure(what, [hourly], "rows", at_most=249)


def naive(effort: Effort) -> Iterator[Figure]:
    """The same `dagster dev`, with a sensor that launches a run per event, at one event a second."""
    events = max(5, round(NAIVE * effort.scale))
    with temporary_folder() as home:
        sent, called = home / "sent", home / "called"
        sent.touch()
        called.touch()
        (home / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
        arguments = [
            "dagster",
            "dev",
            "-m",
            "benchmarks.naive_definitions",
            "--port",
            str(free_port()),
        ]
        environment = {"DAGSTER_HOME": str(home), EVENTS: str(sent), CALLED: str(called)}
        process = DagsterProcess(arguments, os.environ | environment, home)
        try:
            ticks = "Checking for new runs for sensor: new_lines"
            until(lambda: ticks in process.log, 120, "the sensor ticks")
            began = time.monotonic()
            for _ in range(events):
                with sent.open("a") as file:
                    file.write(f"{time.monotonic()}\n")
                time.sleep(1)
            until(lambda: len(called.read_text().splitlines()) == events, 600, "all are delivered")
            seconds = time.monotonic() - began
        finally:
            process.kill()
        latencies = [float(line) for line in called.read_text().splitlines()]
    what = f"a run per event, {events} events, one a second: event to op"
    yield figure(what, latencies, "s")
    yield figure("the same: runs a second", [events / seconds], "/s")
