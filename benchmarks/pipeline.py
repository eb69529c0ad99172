"""The measured application: events of 636 bytes, and destination events that do nothing.

Each event makes a job of `sink/full`, every second one also a job of `sink/half`: 1.5 jobs per event.
"""

import json
from typing import Any

from blacksmith_dagster import Batch, Blacksmith, Destination, Event, Flow, Source
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


source = Source("bench")
happened = source.accept("happened")
sink = Destination("sink")


@sink.event(receives=happened)
def full(batch: Batch[Any]) -> None:
    """Do nothing."""


def is_even(event: Event[Any]) -> bool:
    """Whether `sink/half` receives the event."""
    return event.data["n"] % 2 == 0


@sink.event(receives=Flow(happened, when=is_even))
def half(batch: Batch[Any]) -> None:
    """Do nothing."""


app = Blacksmith(sources=[source], destinations=[sink])

_JOBS = (NewJob(full.path), NewJob(half.path))


def requests(count: int) -> list[list[NewEvent]]:
    """Requests of one event each, as the gateway makes them."""
    return [
        [NewEvent(happened.path, payload(n), _JOBS if n % 2 == 0 else _JOBS[:1])]
        for n in range(count)
    ]
