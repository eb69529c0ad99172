"""An application and loads to judge, for the tests of the scheduler's pure parts."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from blacksmith_dagster import (
    Batch,
    Blacksmith,
    Cause,
    Destination,
    Event,
    Flow,
    RetryPolicy,
    Schedule,
    Source,
)
from blacksmith_dagster.scheduler.decoding import Decoded, JobDecoder
from blacksmith_dagster.store.records import FencingToken, JobRow, Lane, Load

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


class Flight(msgspec.Struct):
    id: str
    delay: int = 0


airport = Source("airport")
departed = airport.accept("departed", model=Flight)
cancelled = airport.accept("cancelled")
warehouse = Destination(
    "warehouse", schedule=Schedule("@every 10m"), retry=RetryPolicy(max_retries=3)
)


def shout(event: Event[Any]) -> str:
    return str(event.data["id"]).upper()


def is_late(event: Event[Any]) -> bool:
    return bool(event.data.delay > 120)


@warehouse.event(
    receives=[Flow(departed, when=is_late), Flow(cancelled, transform=shout)],
)
def flights(batch: Batch[Any]) -> None: ...


def delay_is_odd(event: Event[Any]) -> bool:
    return bool(event.data.delay % 2)


@warehouse.event(
    receives=[flights.succeeded, flights.failed, Flow(flights.discarded, when=delay_is_odd)]
)
def reported(batch: Batch[Any]) -> None: ...


@warehouse.event(receives=reported.discarded)
def reported_again(batch: Batch[Any]) -> None: ...


app = Blacksmith(sources=[airport], destinations=[warehouse])


def row(
    seq: int,
    payload: str | None = None,
    *,
    event_type: str = departed.path,
    parent: str | None = None,
    when_error: str | None = None,
    context: str | None = None,
    received_at: datetime = NOW,
) -> JobRow:
    text = f'{{"id":"f{seq}","delay":{seq}}}' if payload is None else payload
    return JobRow(
        seq,
        f"evt_{seq}",
        event_type,
        text,
        received_at,
        f"k{seq}",
        context,
        "v1",
        NOW,
        parent,
        when_error,
    )


def caused(outcome: str = "discarded") -> str:
    return msgspec.json.encode(Cause(outcome, "no such airport", 4, 7, NOW)).decode()


def load(
    rows: Sequence[JobRow],
    *,
    attempt: int = 1,
    discard_reason: str | None = None,
    lost_loads: int = 0,
) -> Load:
    token = FencingToken(flights.path, Lane.LOAD, 1, "me")
    return Load(
        9,
        token,
        rows,
        "2",
        attempt,
        first_claim=attempt == 1,
        lost_loads=lost_loads,
        discard_reason=discard_reason,
    )


def decode(claimed: Load, event: Any = flights) -> Decoded:
    return JobDecoder(app, event).decode(claimed, {})
