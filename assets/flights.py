"""Departures from New York: received from the airport, loaded to a warehouse and to alerts."""

from datetime import datetime
from typing import Any

import msgspec

from blacksmith_dagster import (
    HTTP,
    Batch,
    Destination,
    Event,
    Flow,
    Job,
    Request,
    Schedule,
    Secret,
    Source,
)
from blacksmith_dagster.destinations import HTTPDestination, SQLDestination
from blacksmith_dagster.settings import find_home


class Flight(msgspec.Struct):
    """A departure, as the airport sends it. Delays are in minutes; a cancelled flight has none."""

    carrier: str
    flight: int
    time_hour: datetime
    origin: str
    dest: str
    distance: int
    sched_dep_time: int
    sched_arr_time: int
    tailnum: str | None = None
    dep_time: int | None = None
    arr_time: int | None = None
    dep_delay: float | None = None
    arr_delay: float | None = None
    air_time: float | None = None


airport = Source("airport")


@airport.event(HTTP("/airport/departures"))
def departed(request: Request) -> Event[Flight]:
    """A flight has left, or was cancelled."""
    flight = request.json(Flight)
    key = f"{flight.carrier}{flight.flight}@{flight.time_hour.isoformat()}"
    return Event(flight, key=key, sent_at=flight.time_hour)


warehouse = SQLDestination(
    "warehouse",
    url=Secret("WAREHOUSE_URL"),
    schedule=Schedule("@every 10s"),
    migrations="migrations/warehouse",
)
flights = warehouse.table(
    "flights",
    receives=departed,
    key=["carrier", "flight", "time_hour"],
)


def is_late(event: Event[Flight]) -> bool:
    """Whether it left more than two hours late."""
    return (event.data.dep_delay or 0) > 120


def message(job: Job[Flight]) -> dict[str, Any]:
    """The body of the alert."""
    flight = job.data
    return {
        "flight": f"{flight.carrier}{flight.flight}",
        "time_hour": flight.time_hour,
        "text": f"{flight.origin} to {flight.dest} left {flight.dep_delay:.0f} minutes late",
    }


alerts = HTTPDestination(
    "alerts", url=Secret("ALERTS_URL"), schedule=Schedule("@every 10s", realtime=True)
)
late = alerts.post("late", receives=Flow(departed, when=is_late), body=message, concurrency=16)

desk = Destination("desk", schedule=Schedule("@every 1m"))


@desk.event(receives=[flights.discarded, late.discarded])
def undeliverable(batch: Batch[Any]) -> None:
    """Write a line for each discarded job to `undeliverable.ndjson`, for someone to look at."""
    with (find_home() / "undeliverable.ndjson").open("a") as file:
        for job in batch:
            row = {"event": job.event.parent, "cause": job.cause, "data": job.data}
            file.write(msgspec.json.encode(row).decode() + "\n")
