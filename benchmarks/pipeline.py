"""The measured application: events of 636 bytes, 1.5 jobs each, and destinations that do nothing."""

import json
from collections.abc import Callable, Sequence
from typing import Any

from blacksmith_dagster import Batch, Blacksmith, Destination, Flow, Source, SourceEvent
from blacksmith_dagster.store.records import NewEvent, NewJob

PAYLOAD_BYTES = 636


def payload(number: int) -> str:
    """A JSON document of 636 bytes, like those of web analytics."""
    document = {
        "n": number,
        "type": "track",
        "event": "Product Viewed",
        "anonymous_id": "23adfd82-aa0f-45a7-a756-24f2a7a4c895",
        "user": {"id": "97980cfea0067", "plan": "enterprise", "seats": 12, "trial": False},
        "page": {"path": "/products/anvils", "title": "Anvils", "referrer": None},
        "properties": {"sku": "G-32", "price": 18.99, "quantity": 2, "tags": ["steel", "forged"]},
        "library": {"name": "analytics", "version": "2.11.1"},
        "sent_at": "2026-01-31T12:00:00.000Z",
        "note": "",
    }
    missing = PAYLOAD_BYTES - len(json.dumps(document))
    return json.dumps(document | {"note": "x" * missing})


def application(
    source: Source,
    events: Sequence[SourceEvent[Any, Any, Any]],
    is_even: Callable[[Any], bool] | None = None,
) -> Blacksmith:
    """Each event makes a job of `sink/full`, and if `is_even` also a job of `sink/half`."""
    sink = Destination("sink")

    @sink.event(receives=events)
    def full(batch: Batch[Any]) -> None:
        """Do nothing."""

    if is_even is not None:

        @sink.event(receives=[Flow(event, when=is_even) for event in events])
        def half(batch: Batch[Any]) -> None:
            """Do nothing."""

    return Blacksmith(sources=[source], destinations=[sink])


source = Source("bench")
happened = source.accept("happened")
app = application(source, [happened], lambda event: event.data["n"] % 2 == 0)
full, half = app.destination_events["sink/full"], app.destination_events["sink/half"]

_JOBS = (NewJob(full.path), NewJob(half.path))


def requests(count: int, *, jobs: bool = True) -> list[list[NewEvent]]:
    """Requests of one event each, as the gateway makes them, or without jobs."""
    made = _JOBS if jobs else ()
    return [
        [NewEvent(happened.path, payload(n), made if n % 2 == 0 else made[:1])]
        for n in range(count)
    ]
