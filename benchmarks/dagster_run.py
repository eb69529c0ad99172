"""A Dagster run that loads a million jobs, beside one that finds nothing to load."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from dagster import DagsterInstance

from benchmarks.measure import Effort, Figure, alternate, figure, temporary_folder
from benchmarks.pipeline import app, full, half, payload
from benchmarks.stores import BATCH, Databases, fill, measured_on, opened, postgres
from blacksmith_dagster.orchestration import build_definitions
from tests.support.processes.dagster_processes import DagsterProcess

COMMAND = ["dagster", "job", "execute", "-m", "benchmarks.dagster_run", "-j", "load_sink"]

defs = build_definitions(app, start_date="2026-01-01")


@measured_on(postgres)
def dagster_run(databases: Databases, effort: Effort) -> Iterator[Figure]:
    """The run's time, its memory, and its rows in Dagster's event log."""
    events = effort.of(1_000_000 * 2 // 3)
    loaded, empty = alternate(
        effort.rounds, lambda: _measure(databases, events), lambda: _measure(databases, 0)
    )
    what = f"Dagster run that loads {events * 3 // 2:,} jobs in batches of {BATCH}"
    yield figure(f"{what}; {databases.name}", [run.seconds for run in loaded], "s", at_most=15)
    process = f"{what}, its process from start to end; {databases.name}"
    yield figure(process, [run.process_seconds for run in loaded], "s")
    above = [(run.peak - idle.peak) / 1e6 for run, idle in zip(loaded, empty, strict=True)]
    yield figure(f"{what}: peak memory above an empty run's", above, "MB", at_most=150)
    rows = [run.rows for run in loaded]
    yield figure(f"{what}: rows in Dagster's event log", rows, "rows", at_most=99)


class Run(NamedTuple):
    """What a run cost: `seconds` as Dagster times it, `process_seconds` from the start to the end of
    its process, `peak` memory in bytes, and `rows` in Dagster's event log."""

    seconds: float
    process_seconds: float
    peak: int
    rows: int


def _measure(databases: Databases, events: int) -> Run:
    with databases.new() as url, opened(url) as store:
        if events:
            fill(store, events, payload=payload(0), drained=False)
        databases.settle()
        run = _run(url)
        store.maintain()
        done = sum(store.counts.of(event.path).succeeded for event in (full, half))
        assert done == events * 3 // 2, f"{done} jobs were loaded"
    return run


def _run(store_url: str) -> Run:
    """Run once, in its own process and Dagster instance."""
    with temporary_folder() as home:
        (home / "dagster.yaml").write_text("telemetry:\n  enabled: false\n")
        env = {**os.environ, "DAGSTER_HOME": str(home), "BLACKSMITH_STORE_URL": store_url}
        started, peak = time.perf_counter(), 0
        running = DagsterProcess(COMMAND, env, home)
        while running.process.poll() is None:
            peak = max(peak, _peak(running.process.pid))
            time.sleep(0.01)
        seconds = time.perf_counter() - started
        if running.process.returncode:
            raise RuntimeError(f"the run failed:\n{running.log[-3000:]}")
        with DagsterInstance.from_config(str(home)) as instance:
            (record,) = instance.get_run_records()
            assert record.start_time is not None
            assert record.end_time is not None
            run_seconds = record.end_time - record.start_time
            rows = len(instance.all_logs(record.dagster_run.run_id))
            return Run(run_seconds, seconds, peak, rows)


def _peak(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0  # the process has just ended
