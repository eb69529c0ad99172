"""The application for the realtime benchmark: a destination event records how late each job is."""

import os
import time
from array import array
from pathlib import Path
from typing import Any

from blacksmith_dagster import Batch, Blacksmith, Destination, Schedule, Source

LATENCIES = "BENCHMARK_LATENCIES"
"""The environment variable that names a file of doubles: due, called, in monotonic seconds."""

source = Source("bench")
happened = source.accept("happened")
sink = Destination("sink", schedule=Schedule(realtime=True))


@sink.event(receives=happened)
def latencies(batch: Batch[Any]) -> None:
    """Record when each event was due and when it arrived."""
    now = time.monotonic()
    with Path(os.environ[LATENCIES]).open("ab") as file:
        array("d", [t for job in batch for t in (job.data["due"], now)]).tofile(file)


@sink.event(receives=happened, schedule=Schedule(realtime=False))
def later(batch: Batch[Any]) -> None:
    """Loaded by its schedule only."""


app = Blacksmith(sources=[source], destinations=[sink])

nothing = Destination("nothing", schedule=Schedule(realtime=True))


@nothing.event(receives=happened)
def at_all(batch: Batch[Any]) -> None:
    """Do nothing."""


sustained = Blacksmith(sources=[source], destinations=[nothing])
