"""The ready-made destinations: their jobs have the type of the events that they receive."""

from typing import Any, assert_type

import httpx
import msgspec
import sqlalchemy

from blacksmith_dagster import Batch, DestinationEvent, Event, Flow, Job, Secret, Source
from blacksmith_dagster.destinations import HTTPDestination, SQLDestination


class Flight(msgspec.Struct):
    id: str
    delay: int


class Row(msgspec.Struct):
    id: str


airport = Source("airport")
departed = airport.accept("departed", model=Flight)
arrived = airport.accept("arrived", model=Flight)
cancelled = airport.accept("cancelled")

warehouse = SQLDestination("warehouse", url=Secret("WAREHOUSE_URL"))
flights = warehouse.table("flights", receives=[departed, arrived], key=["id"])
assert_type(flights, DestinationEvent[Flight])


def to_row(event: Event[Flight]) -> Row:
    return Row(event.data.id)


planes = warehouse.table("planes", receives=Flow(departed, transform=to_row))
assert_type(planes, DestinationEvent[Row])


@warehouse.event(receives=cancelled)
def counted(batch: Batch[dict[str, Any]], engine: sqlalchemy.Engine) -> None:
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("select 1"))


def message(job: Job[Flight]) -> dict[str, Any]:
    return {"text": f"{job.data.id} is {job.data.delay} minutes late"}


alerts = HTTPDestination(
    "alerts", url="https://alerts.example", headers={"X-Token": Secret("TOKEN")}
)
late = alerts.post(
    "late", receives=Flow(departed, when=lambda event: event.data.delay > 120), body=message
)
assert_type(late, DestinationEvent[Flight])


@alerts.event(receives=late.discarded)
def given_up(batch: Batch[Flight], client: httpx.Client) -> None:
    for job in batch:
        client.post("/given-up", json={"id": job.data.id}, headers={"Idempotency-Key": job.key})
