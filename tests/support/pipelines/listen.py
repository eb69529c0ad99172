"""The pipeline of the tests of listening runs: its source's log is a file to which a test appends."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

from blacksmith_dagster import CDC, Blacksmith, Event, Listener, Source
from blacksmith_dagster.orchestration import WarmRuns, build_definitions

LOG = "BLACKSMITH_TEST_LOG"
RECORD = "BLACKSMITH_TEST_RECORD"
WARM = "BLACKSMITH_TEST_WARM"

shop = Source("shop")


@shop.event(CDC())
def changed(listener: Listener) -> Iterator[Event[float]]:
    """Lines of a file; another file notes when each was read, and by which process."""
    offset = listener.cursor or 0
    while not listener.wait(0.05):
        with Path(os.environ[LOG]).open() as log:
            log.seek(offset)
            lines = log.readlines()
        listener.lag = 17  # some lag to show
        for line in lines:
            if line.endswith("\n"):
                offset += len(line)
                listener.cursor = offset
                note = {"at": time.monotonic(), "pid": os.getpid(), "sent": float(line)}
                with Path(os.environ[RECORD]).open("a") as record:
                    record.write(json.dumps(note) + "\n")
                yield Event(float(line))


blacksmith = Blacksmith(sources=[shop], destinations=[])
defs = build_definitions(
    blacksmith, start_date="2026-01-01", warm=WarmRuns(**json.loads(os.environ.get(WARM, "{}")))
)
