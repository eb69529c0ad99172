"""The application of the store's tests, and helpers to create its events and loads."""

from collections.abc import Sequence

from blacksmith_dagster import Batch, Blacksmith, Destination, Source
from blacksmith_dagster.errors import KeyReused
from blacksmith_dagster.store import Store
from blacksmith_dagster.store.records import (
    Cursor,
    FencingToken,
    Lane,
    Load,
    NewEvent,
    NewJob,
)

FLIGHTS, SEATS = "warehouse/flights", "warehouse/seats"

airport = Source("airport")
departed = airport.accept("departed")
warehouse = Destination("warehouse")


@warehouse.event(receives=departed)
def flights(batch: Batch[object]) -> None:
    """Departures."""


@warehouse.event(receives=departed)
def seats(batch: Batch[object]) -> None:
    """Seats."""


@warehouse.event(receives=flights.discarded)
def undeliverable(batch: Batch[object]) -> None:
    """Discarded jobs of `flights`."""


app = Blacksmith(sources=[airport], destinations=[warehouse])


def new_event(
    number: int = 0, *, to: Sequence[str] = (FLIGHTS,), key: str | None = None
) -> NewEvent:
    """An event numbered by its data, with a job for each destination event."""
    payload = f'{{"n":{number}}}'
    jobs = [NewJob(path) for path in to]
    return NewEvent(departed.path, payload, jobs, key=key, digest=payload.encode() if key else None)


def event_ids(appended: Sequence[list[str] | KeyReused]) -> list[list[str]]:
    """The ids of the events of each request, all of which were stored."""
    stored = [ids for ids in appended if isinstance(ids, list)]
    assert len(stored) == len(appended)
    return stored


def ingest_events(
    store: Store, count: int, *, to: Sequence[str] = (FLIGHTS,), start: int = 0
) -> list[str]:
    """Ingest `count` events in one commit; returns their ids."""
    [ids] = store.log.append([[new_event(start + n, to=to) for n in range(count)]])
    assert isinstance(ids, list)
    return ids


def append(store: Store, event: NewEvent, *cursors: Cursor) -> str:
    """Store one event; returns its id."""
    [ids] = store.log.append([[event]], cursors=cursors)
    assert isinstance(ids, list)
    return ids[0]


def take_over(
    store: Store, holder: str = "loader", lane: Lane = Lane.LOAD, to: str = FLIGHTS
) -> FencingToken:
    """Take over a lane, with a lock that counts as held."""
    return store.loads.take_over(to, lane, holder, lambda: True)


def claimed(store: Store, token: FencingToken, limit: int = 1000, max_attempts: int = 3) -> Load:
    """Claim the next load; fails if there is none."""
    load = store.loads.claim(token, limit, max_attempts)
    assert load is not None
    return load


def ids_of(load: Load) -> list[str]:
    """The events whose jobs a load holds."""
    return [row.id for row in load.rows]
