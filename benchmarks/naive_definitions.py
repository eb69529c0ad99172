"""The naive pipeline to compare with: a sensor launches a run for each event, a line of a file."""

import os
import time
from pathlib import Path

import dagster as dg

EVENTS, CALLED = "BENCHMARK_EVENTS", "BENCHMARK_CALLED"


class Event(dg.Config):
    """`sent`: when the event was sent, in monotonic seconds."""

    sent: float


@dg.op
def deliver(config: Event) -> None:
    """Record how late the event arrived."""
    with Path(os.environ[CALLED]).open("a") as file:
        file.write(f"{time.monotonic() - config.sent}\n")


@dg.job(executor_def=dg.in_process_executor)
def deliver_one() -> None:
    """Deliver one event."""
    deliver()


@dg.sensor(
    job=deliver_one, minimum_interval_seconds=1, default_status=dg.DefaultSensorStatus.RUNNING
)
def new_lines(context: dg.SensorEvaluationContext) -> dg.SensorResult:
    """Launch a run for every line that was added since the last tick."""
    lines = Path(os.environ[EVENTS]).read_text().splitlines()
    requests = [
        dg.RunRequest(str(number), {"ops": {"deliver": {"config": {"sent": float(line)}}}})
        for number, line in enumerate(lines)
    ]
    return dg.SensorResult(requests[int(context.cursor or 0) :], cursor=str(len(lines)))


defs = dg.Definitions(jobs=[deliver_one], sensors=[new_lines])
