"""The pipeline of the tests of warm runs: records the begin and end of each batch.

Environment variables name the record, the seconds that a batch takes and the life of a run.
"""

import json
import os
import time
from pathlib import Path
from typing import Any

from blacksmith_dagster import Batch, Blacksmith, Destination, Schedule, Source
from blacksmith_dagster.orchestration import WarmRuns, build_definitions

RECORD = "BLACKSMITH_TEST_RECORD"
SECONDS = "BLACKSMITH_TEST_SECONDS"
WARM = "BLACKSMITH_TEST_WARM"
VERSION = "BLACKSMITH_TEST_VERSION"

# Read once: the version of the code that this process has imported.
version = Path(os.environ[VERSION]).read_text() if VERSION in os.environ else ""

airport = Source("airport")
departed = airport.accept("departed")
alerts = Destination(
    "alerts", schedule=Schedule("0 0 1 1 *", realtime=True), batch_size=10, timeout="30s"
)


def note(what: str, event: str, batch: Batch[Any]) -> None:
    """Append a line to the record; the clock is the same for all processes of the machine."""
    line = {
        "what": what,
        "event": event,
        "at": time.monotonic(),
        "pid": os.getpid(),
        "version": version,
        "ids": [job.event.id for job in batch],
        "sent": [job.data["sent"] for job in batch],
    }
    with Path(os.environ[RECORD]).open("a") as record:
        record.write(json.dumps(line) + "\n")


@alerts.event(receives=departed)
def late(batch: Batch[Any]) -> None:
    note("begin", "late", batch)
    time.sleep(float(os.environ.get(SECONDS, "0")))
    note("end", "late", batch)


@alerts.event(receives=departed, timeout="3s")
def stuck(batch: Batch[Any]) -> None:
    note("begin", "stuck", batch)
    for job in batch:
        while not Path(job.data.get("hangs_until_there_is", "/")).exists():
            time.sleep(0.1)
    note("end", "stuck", batch)


blacksmith = Blacksmith(sources=[airport], destinations=[alerts])
defs = build_definitions(
    blacksmith, start_date="2026-01-01", warm=WarmRuns(**json.loads(os.environ.get(WARM, "{}")))
)
