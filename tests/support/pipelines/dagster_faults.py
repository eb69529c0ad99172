"""The pipeline of the tests of Dagster's faults: records when each batch began and ended.

Environment variables name the record, the interval of loads and the seconds that a batch takes.
"""

import json
import os
import time
from pathlib import Path
from typing import Any

from blacksmith_dagster import Batch, Blacksmith, Destination, Schedule, Source
from blacksmith_dagster.orchestration import build_definitions

RECORD = "BLACKSMITH_TEST_RECORD"
INTERVAL = "BLACKSMITH_TEST_INTERVAL"
SECONDS = "BLACKSMITH_TEST_SECONDS"

airport = Source("airport")
departed = airport.accept("departed")
lake = Destination("lake", schedule=Schedule(os.environ.get(INTERVAL, "@every 5s")), batch_size=10)


def note(what: str, batch: Batch[Any]) -> None:
    """Append a line to the record; the clock is the same for all processes of the machine."""
    line = {
        "what": what,
        "at": time.monotonic(),
        "pid": os.getpid(),
        "ids": [job.event.id for job in batch],
    }
    with Path(os.environ[RECORD]).open("a") as record:
        record.write(json.dumps(line) + "\n")


@lake.event(receives=departed)
def flights(batch: Batch[Any]) -> None:
    note("begin", batch)
    time.sleep(float(os.environ.get(SECONDS, "0.2")))
    note("end", batch)


blacksmith = Blacksmith(sources=[airport], destinations=[lake])
defs = build_definitions(blacksmith, start_date="2026-01-01")
