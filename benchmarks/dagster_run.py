"""A Dagster run that loads a million jobs, beside one that finds nothing to load."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from dagster import DagsterInstance

from benchmarks.measure import Effort, Figure, alternate, at_most, shown
from benchmarks.pipeline import full, half, payload
from benchmarks.stores import BATCH, Databases, fill, opened, postgres
from tests.acceptance.processes import ROOT_FOLDER

JOBS = 1_000_000
COMMAND = ["-m", "dagster", "job", "execute", "-m", "benchmarks.definitions", "-j", "load_sink"]


def dagster_run(effort: Effort) -> Iterator[Figure]:
    """The run's time, its memory, and its rows in Dagster's event log."""
    events = effort.of(JOBS * 2 // 3)
    loaded: list[Run] = []
    empty: list[Run] = []
    with postgres() as databases:
        alternate(effort.rounds, _measure(databases, events, loaded), _measure(databases, 0, empty))
        what = f"Dagster run that loads {events * 3 // 2:,} jobs in batches of {BATCH}"
        yield at_most(f"{what}; {databases.name}", [run.seconds for run in loaded], 15, "s")
        process = f"{what}, its process from start to end"
        yield Figure(
            f"{process}; {databases.name}", shown([run.process_seconds for run in loaded], "s")
        )
    above = [(run.peak - idle.peak) / 1e6 for run, idle in zip(loaded, empty, strict=True)]
    yield at_most(f"{what}: peak memory above an empty run's", above, 150, "MB")
    yield at_most(f"{what}: rows in Dagster's event log", [run.rows for run in loaded], 99, "rows")


@dataclass(frozen=True)
class Run:
    """What a run cost: `seconds` as Dagster times it, `process_seconds` from the start to the end of
    its process, `peak` memory in bytes, and `rows` in Dagster's event log."""

    seconds: float
    process_seconds: float
    peak: int
    rows: int


def _measure(databases: Databases, events: int, runs: list[Run]) -> Callable[[], float]:
    def seconds() -> float:
        url = databases.create()
        if events:
            fill(url, events, payload=payload(0), drained=False)
        databases.settle()
        runs.append(_run(url))
        with closing(opened(url)) as store:
            store.maintain()
            done = sum(store.counts.of(event.path).succeeded for event in (full, half))
        assert done == events * 3 // 2, f"{done} jobs were loaded"
        databases.drop(url)
        return runs[-1].seconds

    return seconds


def _run(store_url: str) -> Run:
    """Run once, in its own process and Dagster instance."""
    with tempfile.TemporaryDirectory(prefix="blacksmith-bench-") as home:
        (Path(home) / "dagster.yaml").write_text("telemetry:\n  enabled: false\n")
        log, peak = Path(home) / "log", 0
        with log.open("wb") as out:
            started = time.perf_counter()
            process = subprocess.Popen(
                [sys.executable, *COMMAND],
                cwd=ROOT_FOLDER,
                env={**os.environ, "DAGSTER_HOME": home, "BLACKSMITH_STORE_URL": store_url},
                stdout=out,
                stderr=out,
            )
            while process.poll() is None:
                peak = max(peak, _peak(process.pid))
                time.sleep(0.01)
            seconds = time.perf_counter() - started
        if process.returncode:
            raise RuntimeError(f"the run failed:\n{log.read_text()[-3000:]}")
        with DagsterInstance.from_config(home) as instance:
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
