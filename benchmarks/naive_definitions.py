"""The naive pipeline to compare with: a sensor launches a run for each event, a line of a file."""

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
    """`sent`: when the event was sent, in monotonic seconds."""

    sent: float


@op
def deliver(config: Event) -> None:
    """Record how late the event arrived."""
    with Path(os.environ[CALLED]).open("a") as file:
        file.write(json.dumps(time.monotonic() - config.sent) + "\n")


@job(executor_def=in_process_executor)
def deliver_one() -> None:
    """Deliver one event."""
    deliver()


@sensor(job=deliver_one, minimum_interval_seconds=1, default_status=DefaultSensorStatus.RUNNING)
def new_lines(context: SensorEvaluationContext) -> SensorResult:
    """Launch a run for every line that was added since the last tick."""
    launched = int(context.cursor or 0)
    lines = Path(os.environ[EVENTS]).read_text().splitlines()
    requests = [_request(number, line) for number, line in enumerate(lines)][launched:]
    return SensorResult(run_requests=requests, cursor=str(len(lines)))


def _request(number: int, line: str) -> RunRequest:
    config: Any = {"deliver": Event(sent=float(line))}
    return RunRequest(run_key=str(number), run_config=RunConfig(ops=config))


defs = Definitions(jobs=[deliver_one], sensors=[new_lines])
