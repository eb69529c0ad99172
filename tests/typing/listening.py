"""Listeners and ready-made sources of a user, as the type checkers see them."""

from collections.abc import Iterable, Iterator, Sequence
from typing import assert_type

import msgspec

from blacksmith_dagster import CDC, Event, Flow, Listener, Secret, Source, SourceEvent
from blacksmith_dagster.destinations import SQLDestination
from blacksmith_dagster.sources import Change, Notification, PostgresSource


class Row(msgspec.Struct):
    id: int


shop = Source("shop")


@shop.event(CDC())
def added(listener: Listener) -> Iterator[Event[Row]]:
    while not listener.wait(1):
        listener.cursor = (listener.cursor or 0) + 1
        yield Event(Row(listener.cursor))


@shop.event(CDC())
def found(listener: Listener) -> Iterator[Event[Row] | Sequence[Event[Row]]]:
    while not listener.wait(1):
        listener.cursor = (listener.cursor or 0) + 1
        yield []


assert_type(added, SourceEvent[Row, Listener, Iterable[Event[Row]]])
assert_type(found, SourceEvent[Row, Listener, Iterable[Event[Row] | Sequence[Event[Row]]]])

crm = PostgresSource("crm", url=Secret("CRM_URL"), retention="30d")
customers = crm.changes("customers", tables=["public.customers"], snapshot=True, tags={"a": "b"})
alerts = crm.notifications("alerts", channel="alerts")
assert_type(alerts, SourceEvent[Notification, Listener, Iterable[Event[Notification]]])


def to_row(event: Event[Change]) -> Row | None:
    return msgspec.convert(event.data.new, Row | None)


warehouse = SQLDestination("warehouse", url=Secret("WAREHOUSE_URL"))
warehouse.table(
    "customers",
    receives=Flow(customers, when=lambda e: e.data.operation == "insert", transform=to_row),
)
