"""What one would write first: a sensor that launches a run for each event, a line of a file."""

import json
import os
import time
from pathlib import Path
from typing import Any

from dagster import (
    Config,
    DefaultSensorStatus,
    Definitions,
    RunConfig,
    RunRequest,
    SensorEvaluationContext,
    SensorResult,
    in_process_executor,
    job,
    op,
    sensor,
)

EVENTS, CALLED = "BENCHMARK_EVENTS", "BENCHMARK_CALLED"


class Event(Config):
    """When it was sent, in monotonic seconds."""

    sent: float


@op
def deliver(config: Event) -> None:
    """Write down how late the event is here."""
    with Path(os.environ[CALLED]).open("a") as file:
        file.write(json.dumps(time.monotonic() - config.sent) + "\n")


@job(executor_def=in_process_executor)
def one() -> None:
    """Deliver one event."""
    deliver()


@sensor(job=one, minimum_interval_seconds=1, default_status=DefaultSensorStatus.RUNNING)
def each(context: SensorEvaluationContext) -> SensorResult:
    """Launch a run for every line that was not there at the last look."""
    known = int(context.cursor or 0)
    lines = Path(os.environ[EVENTS]).read_text().splitlines()
    requests = [_request(number, line) for number, line in enumerate(lines)][known:]
    return SensorResult(run_requests=requests, cursor=str(len(lines)))


def _request(number: int, line: str) -> RunRequest:
    config: Any = {"deliver": Event(sent=float(line))}
    return RunRequest(run_key=str(number), run_config=RunConfig(ops=config))


defs = Definitions(jobs=[one], sensors=[each])
