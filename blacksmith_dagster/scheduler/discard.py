"""Discards jobs by hand: named ones that are due again, or all of a retired destination event."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime

import msgspec

from blacksmith_dagster.errors import UsageError
from blacksmith_dagster.pipeline.application import Blacksmith
from blacksmith_dagster.pipeline.destination import AnyDestinationEvent
from blacksmith_dagster.redaction import clean
from blacksmith_dagster.scheduler.decoding import JobDecoder
from blacksmith_dagster.scheduler.loader import take_lane
from blacksmith_dagster.scheduler.outcomes import Decision, all_discarded, outcomes
from blacksmith_dagster.store import Store
from blacksmith_dagster.store.records import FencingToken, Lane
from blacksmith_dagster.store.statements import batched
from blacksmith_dagster.supervisor import Supervisor, here

_BATCH = 1000
_WAIT = 10.0  # seconds


def discard(
    app: Blacksmith,
    event: AnyDestinationEvent,
    event_ids: Sequence[str],
    reason: str,
    *,
    store: Store,
    supervisor: Supervisor,
) -> int:
    """Discard the jobs of these events that are due again, now or later; returns how many.

    Loads continue meanwhile. Destination events that receive `event.discarded` get them.

    Raises `UsageError` while another process discards jobs of this destination event, `NotFound` for
    an id that no event has, `Unavailable`.
    """
    ids, decoder, discarded = list(dict.fromkeys(event_ids)), JobDecoder(app, event), 0
    with _fencing_token(Lane.DISCARD, event.path, store, supervisor) as token:
        for batch in batched(ids, _BATCH):
            while load := store.loads.claim_for_discard(token, clean(reason), _BATCH, batch):
                decoded = decoder.decode(load, decoder.originals(load.rows, store.log.originals))
                verdict, now = all_discarded(load), datetime.now(UTC)
                events = outcomes(app, event, load, decoded, Decision(verdict), now)
                store.loads.record(load, msgspec.structs.replace(verdict, outcomes=events))
                discarded += len(load.rows)
    return discarded


def retire(path: str, reason: str, *, store: Store, supervisor: Supervisor) -> int:
    """Discard all pending jobs of a destination event that the application no longer declares.

    `path` is the destination event's, `warehouse/flights`. Returns how many jobs were discarded.

    Raises `UsageError` while another process loads it, `NotFound` if it was never in the store,
    `Unavailable`.
    """
    discarded = 0
    with _fencing_token(Lane.LOAD, path, store, supervisor) as token:
        while load := store.loads.claim_for_discard(token, clean(reason), _BATCH):
            store.loads.record(load, all_discarded(load))
            discarded += len(load.rows)
    return discarded


@contextmanager
def _fencing_token(
    lane: Lane, path: str, store: Store, supervisor: Supervisor
) -> Iterator[FencingToken]:
    held = take_lane(lane, path, here(), store=store, supervisor=supervisor, wait=_WAIT)
    if held is None:
        key = f"{lane.value}/{path}"
        raise UsageError(
            f"{key} is held by {supervisor.status(key).held_by}; wait until it has ended, and try "
            "again"
        )
    with held.lease:
        yield held.token
