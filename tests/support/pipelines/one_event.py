"""A pipeline with one source event, for tests that load."""

from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from blacksmith_dagster import Batch, Blacksmith, Destination, DestinationEvent, RetryPolicy, Source
from blacksmith_dagster.store import Store
from blacksmith_dagster.store.records import NewEvent, NewJob

SOON = RetryPolicy(max_retries=2, delay="400ms")

airport = Source("airport")
departed = airport.accept("departed")


def pipeline(
    function: Callable[..., None], *others: Destination[Any], **options: Any
) -> tuple[Blacksmith, DestinationEvent[Any]]:
    """An application whose destination event `warehouse/flights` is this function."""
    connect = options.pop("connect", None)
    options.setdefault("retry", SOON)
    warehouse: Destination[Any] = Destination("warehouse", connect=connect)
    flights = warehouse.event(receives=departed, name="flights", **options)(function)
    app = Blacksmith(sources=[airport], destinations=[warehouse, *others])
    return app, flights


def ingest(store: Store, data: Iterable[Any], destination: str = "warehouse/flights") -> list[str]:
    """Ingest an event with one job per item of data; returns the event ids."""
    events = [
        NewEvent(departed.path, msgspec.json.encode(item).decode(), [NewJob(destination)])
        for item in data
    ]
    ids: list[str] = []
    for start in range(0, len(events), 1000):
        (page,) = store.log.append([events[start : start + 1000]])
        assert isinstance(page, list)
        ids += page
    return ids


def numbers(batch: Batch[Any]) -> list[int]:
    return [job.data["n"] for job in batch]
