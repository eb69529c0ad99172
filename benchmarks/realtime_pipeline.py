"""The application whose latency is measured: its destination event notes how late each job is."""

import os
import time
from array import array
from pathlib import Path
from typing import Any

from blacksmith_dagster import Batch, Blacksmith, Destination, Schedule, Source

LATENCIES = "BENCHMARK_LATENCIES"
"""The environment variable that names the file of doubles: sent at, called at, in monotonic seconds."""

source = Source("bench")
happened = source.accept("happened")
sink = Destination("sink", schedule=Schedule(realtime=True))


@sink.event(receives=happened)
def each(batch: Batch[Any]) -> None:
    """Write down when each event was to be sent, and when it came here."""
    now = time.monotonic()
    with Path(os.environ[LATENCIES]).open("ab") as file:
        array("d", [t for job in batch for t in (job.data["due"], now)]).tofile(file)


@sink.event(receives=happened, schedule=Schedule(realtime=False))
def later(batch: Batch[Any]) -> None:
    """Left to the schedule."""


app = Blacksmith(sources=[source], destinations=[sink], since="2026-01-01")

nothing = Destination("nothing", schedule=Schedule(realtime=True))


@nothing.event(receives=happened)
def at_all(batch: Batch[Any]) -> None:
    """Do nothing."""


sustained = Blacksmith(sources=[source], destinations=[nothing], since="2026-01-01")
