"""A pipeline whose destination does what each job's data says, and records what it loads.

`{"n": 1}` is loaded. With `"do"`, the destination first raises, fails or discards the job, hangs,
kills the process, or waits while a file exists; with `"times"`, only in the first so many calls.
"""

import os
import signal
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from blacksmith_dagster import (
    Batch,
    Blacksmith,
    Destination,
    Event,
    Flow,
    Job,
    RetryPolicy,
    Schedule,
    Source,
)

RECORDING = "BLACKSMITH_TEST_RECORDING"  # the folder of the recording
FLIGHTS, HURRIED = "warehouse/flights", "warehouse/hurried"
ALERTS, REPORTED = "alerts/late", "mail/reported"

_TABLES = """
create table if not exists calls (path text, id text, pid integer, at real);
create table if not exists loaded (path text, id text, pid integer, at real, what text);
"""


class Recording:
    """What the destinations were called with and what they loaded, in its own SQLite file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._connection = sqlite3.connect(folder / "recording.db", timeout=30)
        self._connection.executescript(_TABLES)

    @classmethod
    def open(cls) -> Iterator["Recording"]:
        """The recording, as a destination's `connect`."""
        recording = cls(Path(os.environ[RECORDING]))
        yield recording
        recording.close()

    def close(self) -> None:
        self._connection.close()

    @property
    def hold(self) -> Path:
        """While this file exists, jobs with `"do": "wait"` wait."""
        return self.folder / "hold"

    def call(self, path: str, jobs: list[Job[Any]]) -> None:
        now = time.time()
        self._insert("calls", [(path, job.event.id, os.getpid(), now) for job in jobs])

    def load(self, path: str, jobs: list[Job[Any]], what: str = "") -> None:
        now = time.time()
        self._insert("loaded", [(path, job.event.id, os.getpid(), now, what) for job in jobs])

    def _insert(self, table: str, rows: list[tuple[Any, ...]]) -> None:
        marks = ", ".join("?" * len(rows[0])) if rows else ""
        with self._connection:
            self._connection.executemany(f"insert into {table} values ({marks})", rows)

    def calls(self, event_id: str, path: str = FLIGHTS) -> int:
        """How often a job was passed to its destination event."""
        query = "select count(*) from calls where path = ? and id = ?"
        number: int = self._connection.execute(query, (path, event_id)).fetchone()[0]
        return number

    def loaded(self, path: str = FLIGHTS) -> list[str]:
        """The event ids of loaded jobs, in the order of loading; twice if loaded twice."""
        query = "select id from loaded where path = ? order by rowid"
        return [row[0] for row in self._connection.execute(query, (path,))]

    def times(self, path: str = FLIGHTS) -> dict[str, float]:
        """When each id was first loaded, in seconds since 1970."""
        query = "select id, min(at) from loaded where path = ? group by id"
        return dict(self._connection.execute(query, (path,)).fetchall())

    def pids(self, path: str = FLIGHTS) -> dict[str, list[int]]:
        """Which processes loaded each id."""
        pids: dict[str, list[int]] = {}
        query = "select id, pid from loaded where path = ? order by rowid"
        for event_id, pid in self._connection.execute(query, (path,)):
            pids.setdefault(event_id, []).append(pid)
        return pids


airport = Source("airport", retention="500ms", discarded_retention="1s")  # for the tests of purges
departed = airport.accept("departed")

SOON, RETRY = Schedule("@every 5s"), RetryPolicy(3, "100ms")

warehouse = Destination("warehouse", connect=Recording.open, schedule=SOON, retry=RETRY)
alerts = Destination("alerts", connect=Recording.open, schedule=SOON, retry=RETRY)
mail = Destination("mail", connect=Recording.open, schedule=SOON, retry=RETRY)


def hurries(event: Event[Any]) -> bool:
    return bool(event.data.get("hurry"))


@warehouse.event(receives=Flow(departed, when=lambda event: not hurries(event)))
def flights(batch: Batch[Any], recording: Recording) -> None:
    """Do what each job says."""
    do(batch, recording)


@warehouse.event(receives=Flow(departed, when=hurries), timeout="1s")
def hurried(batch: Batch[Any], recording: Recording) -> None:
    """Do what each job says, within a second."""
    do(batch, recording)


def do(batch: Batch[Any], recording: Recording) -> None:
    recording.call(batch.path, list(batch))
    loaded: list[Job[Any]] = []
    for job in batch:
        match _now(job, recording):
            case "raise":
                raise ValueError(f"job {job.data['n']} cannot be loaded")
            case "fail":
                batch.fail(job, f"job {job.data['n']} is not ready")
            case "discard":
                batch.discard(job, f"job {job.data['n']} is wrong")
            case "hang":
                time.sleep(3600)
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "wait":
                while recording.hold.exists():
                    time.sleep(0.01)
                loaded.append(job)
            case _:
                loaded.append(job)
    recording.load(batch.path, loaded)


def _now(job: Job[Any], recording: Recording) -> str:
    do: str = job.data.get("do", "load")
    times = job.data.get("times")
    assert job.event.id is not None
    if do == "load" or (times is not None and recording.calls(job.event.id) > times):
        return "load"
    return do


@alerts.event(receives=Flow(departed, when=lambda event: event.data.get("late", False)))
def late(batch: Batch[Any], recording: Recording) -> None:
    """Load everything."""
    recording.load(batch.path, list(batch))


@mail.event(receives=[flights.failed, flights.discarded])
def reported(batch: Batch[Any], recording: Recording) -> None:
    """Record the outcomes of `flights`."""
    for job in batch:
        assert job.cause is not None
        recording.load(batch.path, [job], job.cause.outcome)


blacksmith = Blacksmith(sources=[airport], destinations=[warehouse, alerts, mail])
