"""Segment's endpoint, beside a plain one that receives events of the same size.

Each message of Segment's libraries has an idempotency key, which costs the store as much as the
event. So the limits are arrays with an Idempotency-Key, and arrays without one.
"""

import shutil
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import replace

from benchmarks.gateway import ARRAY, CONNECTIONS, Sender, _bodies, _into_store, _missing
from benchmarks.measure import Effort, Figure, alternate, beside
from benchmarks.pipeline import payload
from benchmarks.stores import postgres
from benchmarks.webhooks_pipeline import ENV, WRITE_KEY, message

BOUND = 0.70
KEY = "Idempotency-Key: request-@@@@@@@@@@@@"
BASIC = f"Authorization: Basic {b64encode(f'{WRITE_KEY}:'.encode()).decode()}"


def webhooks(effort: Effort) -> Iterator[Figure]:
    """Events per second in batches of 100, beside arrays of 100."""
    what = f"Segment's endpoint, batches of {ARRAY}"
    if shutil.which("wrk") is None:
        yield _missing(what)
        return
    with (
        postgres() as databases,
        _bodies([_batch(n) for n in range(10)]) as batches,
        _bodies([_array(n) for n in range(10)]) as arrays,
    ):
        segment = Sender(batches, CONNECTIONS[0], effort.seconds, ARRAY, "/v1/batch", BASIC)
        plain = Sender(arrays, CONNECTIONS[0], effort.seconds, ARRAY)
        rates, with_key, without_key = alternate(
            effort.rounds,
            _into_store(databases, 1, segment, [], "benchmarks.webhooks_pipeline:app", ENV),
            _into_store(databases, 1, replace(plain, header=KEY), []),
            _into_store(databases, 1, plain, []),
        )
        where = f"1 worker, {CONNECTIONS[0]} connections; {databases.name}"
        yield beside(
            f"{what}, beside arrays with a key, {where}", rates, with_key, "events/s", BOUND
        )
        yield beside(f"{what}, beside arrays without, {where}", rates, without_key, "events/s")


def _batch(number: int) -> str:
    messages = ", ".join(message(number * ARRAY + place) for place in range(ARRAY))
    return f'{{"batch": [{messages}], "sentAt": "2026-01-31T12:00:01.000+00:00"}}'


def _array(number: int) -> str:
    return f"[{','.join(payload(number * ARRAY + place) for place in range(ARRAY))}]"
