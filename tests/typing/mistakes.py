"""A user's mistakes: the type checkers find each; a comment for one they don't find is an error."""

from blacksmith_dagster import HTTP, Batch, Destination, Event, Flow, Request, Source
from blacksmith_dagster.destinations import HTTPDestination

airport = Source("airport")


@airport.event(HTTP("/departed"))
def departed(request: Request) -> Event[int]:
    return Event(request.json(int))


@airport.event(HTTP("/late"))  # type: ignore
def late(request: str) -> Event[int]:
    return Event(len(request))


@airport.event(HTTP("/lost"))  # type: ignore
def lost(request: Request) -> int:
    return request.json(int)


def open_lake() -> list[int]:
    return []


lake = Destination("lake", connect=open_lake)


@lake.event(receives=departed)  # type: ignore
def unconnected(batch: Batch[int]) -> None: ...


@lake.event(receives=departed)  # type: ignore
def connected_otherwise(batch: Batch[int], connection: dict[str, int]) -> None: ...


Destination("pond", batch=1000)  # type: ignore
Destination("pond", batch_size="all")  # type: ignore
lake.event(receives=departed, retries=3)  # type: ignore
lake.event(receives=departed, schedule="@daily")  # type: ignore
HTTPDestination("alerts", url="https://alerts.example", wait_for_migrations=0.5)  # type: ignore


def length(event: Event[str]) -> int:
    return len(event.data)


Flow(departed, transform=length)  # type: ignore
Flow(departed, when=lambda event: event.data.delay > 120)  # type: ignore
departed("a flight")  # type: ignore
