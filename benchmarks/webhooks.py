"""Segment's endpoint, beside a plain one that receives events of the same size.

Each message of Segment's libraries has an idempotency key, which costs the store as much as the
event. So the limits are arrays with an Idempotency-Key, and arrays without one.
"""

import json
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from benchmarks.measure import Effort, Figure, alternate, figure
from benchmarks.pipeline import PAYLOAD_BYTES, application, payload
from benchmarks.stores import Databases, measured_on, postgres
from benchmarks.wrk import ARRAY, Sender, arrays_of, into_store
from blacksmith_dagster import Secret
from blacksmith_dagster.sources import SegmentSource

WRITE_KEY = "a-write-key"
ENV = {"SEGMENT_KEY": WRITE_KEY}
KEY = "Idempotency-Key: request-@@@@@@@@@@@@"
BASIC = f"Authorization: Basic {b64encode(f'{WRITE_KEY}:'.encode()).decode()}"

_segment = SegmentSource("segment", write_key=Secret("SEGMENT_KEY"))
app = application(_segment, [_segment.track], lambda event: event.data["properties"]["n"] % 2 == 0)


def _message(number: int) -> str:
    """A message of 636 bytes as Segment's libraries send it; post.lua fills in its id."""
    document: dict[str, Any] = {
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


@measured_on(postgres)
def webhooks(databases: Databases, effort: Effort) -> Iterator[Figure]:
    """Events per second in batches of 100, beside arrays of 100."""
    plain = Sender([f"[{array}]" for array in arrays_of(payload)], 64, effort.seconds, ARRAY)
    batches = [
        f'{{"batch": [{messages}], "sentAt": "2026-01-31T12:00:01.000+00:00"}}'
        for messages in arrays_of(_message)
    ]
    segment = replace(plain, bodies=batches, path="/v1/batch", header=BASIC)
    runs = alternate(
        effort.rounds,
        into_store(databases, segment, "benchmarks.webhooks:app", env=ENV),
        into_store(databases, replace(plain, header=KEY)),
        into_store(databases, plain),
    )
    rates, with_key, without = ([run.rate for run in measured] for measured in runs)
    what = f"Segment's endpoint, batches of {ARRAY}, beside arrays"
    where = f"1 worker, 64 connections; {databases.name}"
    yield figure(f"{what} with a key, {where}", rates, "events/s", limits=with_key, at_least=0.70)
    yield figure(f"{what} without, {where}", rates, "events/s", limits=without)
