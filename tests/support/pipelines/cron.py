"""A polled source: each line of a file, from the cursor on, is an event.

Environment variables name the file, the interval, the record of what is loaded, and a file with the
place where the process kills itself once.
"""

import json
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dagster import InitResourceContext

from blacksmith_dagster import Batch, Blacksmith, Cron, Destination, Event, Poll, Schedule, Source
from blacksmith_dagster.errors import KeyReused
from blacksmith_dagster.orchestration import BlacksmithResource, build_definitions
from blacksmith_dagster.store.records import NewEvent, RawRequest

ORIGIN = "BLACKSMITH_TEST_ORIGIN"
RECORD = "BLACKSMITH_TEST_RECORD"
KILL = "BLACKSMITH_TEST_KILL"
INTERVAL = "BLACKSMITH_TEST_CRON"

tower = Source("tower", cron=Cron(os.environ.get(INTERVAL)))
lake = Destination("lake", schedule=Schedule("@every 5s"))


def kill_at(place: str) -> None:
    """SIGKILL this process, once, if the test wants it to die here."""
    flag = Path(os.environ.get(KILL, "none"))
    if flag.is_file() and flag.read_text() == place:
        flag.unlink()
        os.kill(os.getpid(), signal.SIGKILL)


@tower.event(Cron())
def seen(poll: Poll) -> Iterator[Event[str]]:
    """A line of the file per event."""
    lines = Path(os.environ[ORIGIN]).read_text().splitlines()
    since = poll.cursor or 0
    for number, line in enumerate(lines[since:], since):
        yield Event(line)
        if number == len(lines) // 2:
            kill_at("in the function")
    poll.cursor = len(lines)


@lake.event(receives=seen)
def sightings(batch: Batch[str]) -> None:
    line = {"what": "loaded", "at": time.time(), "pid": os.getpid(), "ids": [], "data": []}
    line["ids"] = [job.event.id for job in batch]
    line["data"] = [job.data for job in batch]
    with Path(os.environ[RECORD]).open("a") as record:
        record.write(json.dumps(line) + "\n")


class Mortal(BlacksmithResource):
    """A resource whose store may kill the process before or after a commit."""

    @contextmanager
    def yield_for_execution(self, context: InitResourceContext) -> Iterator[BlacksmithResource]:
        with super().yield_for_execution(context) as resource:
            commit = resource.store.log.append

            def ingest(
                requests: Sequence[Sequence[NewEvent] | RawRequest], **options: Any
            ) -> list[list[str] | KeyReused]:
                kill_at("before the commit")
                result = commit(requests, **options)
                kill_at("after the commit")
                return result

            resource.store.log.append = ingest  # type: ignore[method-assign]
            yield resource


blacksmith = Blacksmith(sources=[tower], destinations=[lake])
defs = build_definitions(blacksmith, start_date="2026-01-01", resource=Mortal())
