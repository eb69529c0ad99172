"""A pipeline whose realtime destination records what it loaded and when.

An event's data has a number, as the senders of `ledger` send it. With `"waits": true` its load lasts
while the record's folder has a file `hold`; with `"hangs": true` it is also loaded by `stuck`.
"""

import os
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

from blacksmith_dagster import Batch, Blacksmith, Destination, Flow, Schedule, Source

RECORD = "BLACKSMITH_TEST_RECORD"
FULL, ODD, STUCK = "sink/full", "sink/odd", "sink/stuck"

inbox = Source("inbox")
accepted = inbox.accept("accepted")

sink = Destination("sink", schedule=Schedule("@every 1h", realtime=True))


class Loaded(NamedTuple):
    """A loaded job: `id` is its event's id, `at` the time on the machine's monotonic clock."""

    path: str
    id: str
    at: float
    pid: int


def record(batch: Batch[Any]) -> None:
    now = time.monotonic()
    lines = [f"{batch.path} {job.event.id} {now} {os.getpid()}\n" for job in batch]
    with Path(os.environ[RECORD]).open("a") as file:
        file.write("".join(lines))


def loaded(file: Path) -> list[Loaded]:
    """The loaded jobs, in the order of loading."""
    if not file.exists():
        return []
    whole = file.read_text().rpartition("\n")[0]  # the last line may be incomplete
    fields = (line.split() for line in whole.splitlines())
    return [Loaded(path, event, float(at), int(pid)) for path, event, at, pid in fields]


@sink.event(receives=accepted)
def full(batch: Batch[Any]) -> None:
    """Record every event just before its load ends."""
    hold = Path(os.environ[RECORD]).parent / "hold"
    while hold.exists() and any(job.data.get("waits") for job in batch):
        hold.with_name("waiting").touch()
        time.sleep(0.01)
    record(batch)


@sink.event(receives=Flow(accepted, when=lambda event: event.data["n"] % 2 == 1))
def odd(batch: Batch[Any]) -> None:
    """Record every second event."""
    record(batch)


@sink.event(receives=Flow(accepted, when=lambda event: "hangs" in event.data), timeout="500ms")
def stuck(batch: Batch[Any]) -> None:
    """Record the event and never return."""
    record(batch)
    threading.Event().wait()


blacksmith = Blacksmith(sources=[inbox], destinations=[sink])
