"""A pipeline whose realtime destination notes when it was given what.

An event's data is what the senders of `ledger` send: a number.
"""

import os
import time
from pathlib import Path
from typing import Any, NamedTuple

from blacksmith_dagster import Batch, Blacksmith, Destination, Flow, Schedule, Source

RECORD = "BLACKSMITH_TEST_RECORD"
EACH, ODD = "sink/each", "sink/odd"

door = Source("door")
accepted = door.accept("accepted")

sink = Destination("sink", schedule=Schedule("@every 1h", realtime=True))


class Loaded(NamedTuple):
    """A job that was loaded: its event's id, and when by the machine's monotonic clock."""

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
    """What was loaded, in its order."""
    if not file.exists():
        return []
    whole = file.read_text().rpartition("\n")[0]  # the last line may be under way
    fields = (line.split() for line in whole.splitlines())
    return [Loaded(path, event, float(at), int(pid)) for path, event, at, pid in fields]


@sink.event(receives=accepted)
def each(batch: Batch[Any]) -> None:
    """Notes every event."""
    record(batch)


@sink.event(receives=Flow(accepted, when=lambda event: event.data["n"] % 2 == 1))
def odd(batch: Batch[Any]) -> None:
    """Notes every second event."""
    record(batch)


blacksmith = Blacksmith(sources=[door], destinations=[sink], since="2026-01-01")
