"""Discards jobs by hand: named ones that are due again, or all of a retired destination event."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from blacksmith_dagster.errors import UsageError
from blacksmith_dagster.pipeline.application import Blacksmith
from blacksmith_dagster.pipeline.destination import AnyDestinationEvent
from blacksmith_dagster.redaction import clean
from blacksmith_dagster.scheduler.loader import HeldLane, StandardScheduler, take_lane
from blacksmith_dagster.scheduler.outcomes import all_discarded
from blacksmith_dagster.store import Store
from blacksmith_dagster.store.records import Lane
from blacksmith_dagster.store.statements import batched
from blacksmith_dagster.supervisor import Supervisor, here

_BATCH = 1000
_WAIT = 10.0  # seconds


def discard(
    app: Blacksmith,
    event: AnyDestinationEvent,
    scheduler: StandardScheduler,
    event_ids: Sequence[str],
    reason: str,
    *,
    store: Store,
    supervisor: Supervisor,
) -> int:
    """Discard the jobs of these events that are due again, now or later; returns how many.

    Loads continue meanwhile. Destination events that receive `event.discarded` get them. If this
    process ends before it has discarded them, the next load of the destination event does.

    Raises `UsageError` while another process discards jobs of this destination event, or if the
    scheduler skips; `NotFound` for an id that no event has; what `StandardScheduler.drain` raises.
    """
    with _take_lane(Lane.DISCARD, event.path, store, supervisor) as (token, lease):
        marked = sum(
            store.loads.mark_for_discard(token, batch, clean(reason))
            for batch in batched(list(dict.fromkeys(event_ids)), _BATCH)
        )
        drained = scheduler.drain(
            app,
            event,
            store=store,
            token=token,
            lease=lease,
            run=None,
            stop=threading.Event(),
            report=lambda _: None,
        )
    if drained.skipped:
        raise UsageError(
            f"{event.path}: {marked} jobs wait to be discarded by a later load: {drained.skipped}"
        )
    return marked


def retire(path: str, reason: str, *, store: Store, supervisor: Supervisor) -> int:
    """Discard all pending jobs of a destination event that the application no longer declares.

    `path` is the destination event's, `warehouse/flights`. Returns how many jobs were discarded.

    Raises `UsageError` while another process loads it, `NotFound` if it was never in the store,
    `Unavailable`.
    """
    discarded = 0
    with _take_lane(Lane.LOAD, path, store, supervisor) as (token, _):
        while load := store.loads.claim_for_discard(token, clean(reason), _BATCH):
            store.loads.record(load, all_discarded(load))
            discarded += len(load.rows)
    return discarded


@contextmanager
def _take_lane(lane: Lane, path: str, store: Store, supervisor: Supervisor) -> Iterator[HeldLane]:
    held = take_lane(lane, path, here(), store=store, supervisor=supervisor, wait=_WAIT)
    if held is None:
        key = f"{lane.value}/{path}"
        raise UsageError(
            f"{key} is held by {supervisor.status(key).held_by}; wait until it has ended, and try "
            "again"
        )
    with held.lease:
        yield held
