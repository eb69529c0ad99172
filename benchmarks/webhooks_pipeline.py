"""The application for the webhook benchmark: messages of 636 bytes, 1.5 jobs per event."""

import json
from typing import Any

from benchmarks.pipeline import PAYLOAD_BYTES
from blacksmith_dagster import Batch, Blacksmith, Destination, Event, Flow, Secret
from blacksmith_dagster.sources import SegmentSource

WRITE_KEY = "a-write-key"
ENV = {"SEGMENT_KEY": WRITE_KEY}

segment = SegmentSource("segment", write_key=Secret("SEGMENT_KEY"))
sink = Destination("sink")


def message(number: int) -> str:
    """A message of 636 bytes as Segment's libraries send it; post.lua fills in its id."""
    document = {
        "type": "track",
        "event": "Product Viewed",
        "messageId": f"{number:08}-4c1b-4f4e-@@@@@@@@@@@@",
        "anonymousId": "23adfd82-aa0f-45a7-a756-24f2a7a4c895",
        "userId": "97980cfea0067",
        "timestamp": "2026-01-31T12:00:00.000+00:00",
        "integrations": {},
        "context": {
            "page": {"path": "/products/anvils", "title": "Anvils", "referrer": None},
            "library": {"name": "analytics-python", "version": "2.3.5"},
        },
        "properties": {"n": number, "sku": "G-32", "price": 18.99, "tags": ["steel", "forged"]},
    }
    missing = PAYLOAD_BYTES - len(json.dumps(document)) - len(', "note": ""')
    document["properties"] |= {"note": "x" * missing}
    return json.dumps(document)


@sink.event(receives=segment.track)
def full(batch: Batch[Any]) -> None:
    """Do nothing."""


def is_even(event: Event[Any]) -> bool:
    """Whether `sink/half` receives the event."""
    return event.data["properties"]["n"] % 2 == 0


@sink.event(receives=Flow(segment.track, when=is_even))
def half(batch: Batch[Any]) -> None:
    """Do nothing."""


app = Blacksmith(sources=[segment], destinations=[sink])
