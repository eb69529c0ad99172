"""A user's pipeline: the type checkers accept it, and infer what the user would expect."""

import sqlite3
from collections.abc import Iterator
from datetime import date, datetime
from typing import Any, assert_type

import msgspec
import pydantic
import sqlalchemy

from blacksmith_dagster import (
    CORS,
    HTTP,
    Batch,
    Bearer,
    Blacksmith,
    Destination,
    Event,
    Flow,
    HMACSignature,
    Job,
    JSONSchema,
    Outcome,
    Reject,
    Reply,
    Request,
    RetryPolicy,
    Schedule,
    Secret,
    Source,
    SourceEvent,
    StandardWebhooksSignature,
)
from blacksmith_dagster.destinations import HTTPDestination, SQLDestination


class Flight(msgspec.Struct):
    id: str
    dep_delay: int
    time_hour: datetime


class Cancellation(msgspec.Struct):
    id: str
    reason: str


class Row(msgspec.Struct):
    id: str
    note: str


airport = Source("airport", owners=["team:flights"], auth=Bearer(Secret("AIRPORT_TOKEN")))


@airport.event(HTTP("/airport/departures"))
def departed(request: Request) -> Event[Flight]:
    """A flight has left."""
    flight = request.json(Flight)
    return Event(flight, key=flight.id, sent_at=flight.time_hour)


@airport.event(HTTP("/airport/handshake"))
def announced(request: Request) -> Event[dict[str, Any]] | Reply:
    if challenge := request.query.get("challenge"):
        return Reply(200, challenge)
    if "id" not in request.json():
        raise Reject("no id")
    return Event(request.json())


@airport.event(HTTP("/airport/gates"))
def moved(request: Request) -> Iterator[Event[Row]]:
    for row in request.json(list[Row]):
        yield Event(row)


class Boarding(pydantic.BaseModel):
    id: str
    gate: str


@airport.event(HTTP("/airport/boarding"))
def boarded(request: Request) -> Event[Boarding]:
    return Event(request.json(Boarding))


cancelled = airport.accept("cancelled", model=Cancellation)
boarding = airport.accept("boarding", model=Boarding, on_invalid="quarantine")
schemed = airport.accept("schemed", model=JSONSchema({"type": "object"}))
bag = airport.child("bag", model=Boarding, networks=["192.0.2.0/24"])
assert_type(boarding, SourceEvent[Boarding, Any, Any])
assert_type(schemed, SourceEvent[Any, Any, Any])

partner = Source(
    "partner",
    auth=StandardWebhooksSignature(Secret("PARTNER_SECRET"), Secret("PARTNER_SECRET_OLD")),
    cors=CORS(origins=["https://partner.example"]),
    versions={"2": None, "1": date(2026, 1, 1)},
    default_version="2",
)
paid = partner.accept(
    "paid", auth=HMACSignature(Secret("TILL"), header="X-Till", encoding="base64")
)
anything = airport.accept("anything")


def called(request: Request) -> None:
    assert_type(departed(request), Event[Flight])
    assert_type(announced(request), Event[dict[str, Any]] | Reply)


def to_row(event: Event[Cancellation]) -> Row:
    return Row(event.data.id, event.data.reason)


def open_lake() -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(":memory:")
    yield connection
    connection.close()


def open_lake_simply() -> sqlite3.Connection:
    return sqlite3.connect(":memory:")


warehouse = SQLDestination(
    "warehouse", url=Secret("WAREHOUSE_URL"), schedule=Schedule("@every 10m")
)
flights = warehouse.table("flights", receives=departed, key=["id"], sequence_by="time_hour")
changes = warehouse.table("changes", receives=[departed, Flow(cancelled, transform=to_row)])


@warehouse.event(receives=cancelled)
def counted(batch: Batch[Cancellation], engine: sqlalchemy.Engine) -> None:
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("SELECT 1"))


def message(job: Job[Flight]) -> dict[str, str]:
    return {"text": f"{job.data.id} is {job.data.dep_delay} minutes late"}


alerts = HTTPDestination(
    "alerts",
    url=Secret("ALERTS_URL"),
    headers={"Authorization": Secret("ALERTS_TOKEN"), "X-From": "airport"},
    schedule=Schedule(realtime=True),
)
late = alerts.post(
    "late",
    receives=Flow(departed, when=lambda e: e.data.dep_delay > 120),
    body=message,
    concurrency=16,
)
all_of_it = alerts.post("all_of_it", receives=[departed, cancelled], batched=True)

lake = Destination("lake", connect=open_lake, batch_size=50_000, timeout="10m")
pond = Destination("pond", connect=open_lake_simply)
logbook = Destination("logbook", schedule=Schedule("@every 10m"))


@lake.event(
    receives=[Flow(departed, when=lambda e: e.data.dep_delay > 120), cancelled],
    retry=RetryPolicy(max_retries=3),
)
def movements(batch: Batch[Flight | Cancellation], connection: sqlite3.Connection) -> None:
    batch.to_pandas().to_sql("movements", connection, if_exists="append")


@pond.event(receives=Flow(cancelled, transform=to_row))
def rows(batch: Batch[Row], connection: sqlite3.Connection) -> None:
    for job in batch:
        assert_type(job, Job[Row])
        if not job.data.note:
            batch.discard(job, "nothing to say")


@logbook.event(receives=[movements.discarded, flights.failed, late.succeeded, anything])
def undeliverable(batch: Batch[Any]) -> None:
    print(len(batch))


assert_type(rows.discarded, Outcome[Row])
assert_type(late.discarded, Outcome[Flight])
assert_type(movements.succeeded, Outcome[Flight | Cancellation])

blacksmith = Blacksmith(
    sources=[airport, partner], destinations=[warehouse, alerts, lake, pond, logbook]
)
