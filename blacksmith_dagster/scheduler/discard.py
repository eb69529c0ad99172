"""Discarding by hand: jobs that are due again, or all that waits for a destination event."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import msgspec

from blacksmith_dagster.errors import UsageError
from blacksmith_dagster.pipeline.application import Blacksmith
from blacksmith_dagster.pipeline.destination import DestinationEvent
from blacksmith_dagster.pipeline.event import JobResult
from blacksmith_dagster.redaction import clean
from blacksmith_dagster.scheduler.decoding import JobDecoder
from blacksmith_dagster.scheduler.outcomes import outcomes
from blacksmith_dagster.scheduler.verdict import Decision
from blacksmith_dagster.store.interface import (
    Deviation,
    FencingToken,
    Lane,
    Load,
    LoadVerdict,
    Store,
)
from blacksmith_dagster.store.maintenance import batched
from blacksmith_dagster.supervisor import Supervisor, here

_AT_ONCE = 1000
_WAIT = 10.0  # seconds


def discard(
    app: Blacksmith,
    event: DestinationEvent[Any],
    event_ids: Sequence[str],
    reason: str,
    *,
    store: Store,
    supervisor: Supervisor,
) -> int:
    """Discard the jobs of these events that are due again, now or later; returns how many were.

    Loads go on beside it. Whoever receives `event.discarded` is given them.

    Raises `UsageError` if another process is at it, `NotFound` for an id that no event has,
    `Unavailable`.
    """
    ids, decoder, discarded = list(dict.fromkeys(event_ids)), JobDecoder(app, event), 0
    with _fencing_token(event.path, Lane.DISCARD, store, supervisor) as token:
        for part in batched(ids, _AT_ONCE):
            while (
                load := store.claim_for_discard(token, clean(reason), _AT_ONCE, part)
            ) is not None:
                decoded = decoder.decode(load, decoder.originals(load.rows, store.originals))
                verdict = _all_discarded(load)
                now = datetime.now(UTC)
                made = outcomes(app, event, load, decoded, Decision(verdict), now)
                store.record(load, msgspec.structs.replace(verdict, outcomes=made))
                discarded += len(load.rows)
    return discarded


def retire(destination: str, reason: str, *, store: Store, supervisor: Supervisor) -> int:
    """Discard all that waits for a destination event that the application no longer has.

    `destination` is its path, `warehouse/flights`. Returns how many jobs were discarded.

    Raises `UsageError` while another process loads it, `NotFound` if the store has never had it,
    `Unavailable`.
    """
    discarded = 0
    with _fencing_token(destination, Lane.LOAD, store, supervisor) as token:
        while (load := store.claim_for_discard(token, clean(reason), _AT_ONCE)) is not None:
            store.record(load, _all_discarded(load))
            discarded += len(load.rows)
    return discarded


@contextmanager
def _fencing_token(
    destination: str, lane: Lane, store: Store, supervisor: Supervisor
) -> Iterator[FencingToken]:
    key = f"{lane.value}/{destination}"
    lease = supervisor.acquire(key, here(), wait=_WAIT)
    if lease is None:
        holder = supervisor.status(key).held_by
        raise UsageError(f"{key} is held by {holder}; wait until it has ended, and try again")
    with lease:
        yield store.take_over(destination, lane, lease.id, lease.confirm)


def _all_discarded(load: Load) -> LoadVerdict:
    return LoadVerdict(
        [Deviation(row.seq, JobResult.DISCARDED, load.discard_reason or "") for row in load.rows]
    )
