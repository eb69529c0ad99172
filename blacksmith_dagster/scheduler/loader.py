"""Loads a destination event: lock and token, then claim, decode, call, record until nothing is due."""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as StillRunning
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from blacksmith_dagster.errors import (
    FencedOut,
    MigrationPending,
    OutcomeUnknown,
    Timeout,
    Unavailable,
)
from blacksmith_dagster.logs import log_fields
from blacksmith_dagster.pipeline.application import Blacksmith
from blacksmith_dagster.pipeline.destination import AnyDestinationEvent
from blacksmith_dagster.pipeline.event import Batch
from blacksmith_dagster.scheduler.decoding import JobDecoder
from blacksmith_dagster.scheduler.executor import Executor
from blacksmith_dagster.scheduler.outcomes import LoadReport, Summary, Tally, judge, load_report
from blacksmith_dagster.store import Store
from blacksmith_dagster.store.records import FencingToken, Lane, Load, LoadVerdict
from blacksmith_dagster.supervisor import here
from blacksmith_dagster.wanderer.files import version_of

if TYPE_CHECKING:
    from blacksmith_dagster.supervisor import Lease, Supervisor

_log = logging.getLogger(__name__)

GRACE = 1.0
"""Seconds in which a call that ran past its time-out can still return."""

RECORD_FOR = 60.0
"""Seconds for which recording is retried while the store does not respond."""

_RECORD_PAUSE = 0.5
_NOTHING_CALLED: Future[None] = Future()
_NOTHING_CALLED.set_result(None)


def load(
    app: Blacksmith,
    event: AnyDestinationEvent,
    scheduler: StandardScheduler,
    *,
    store: Store,
    supervisor: Supervisor,
    run: str | None = None,
    stop: threading.Event | None = None,
    report: Callable[[LoadReport], None] = lambda _: None,
) -> Summary:
    """Load all that is due for a destination event, under its lock `load/<destination>/<event>`.

    See `StandardScheduler.drain` for `run`, `stop`, `report` and the errors. If another holder has the
    lock, that is not an error: the summary says `skipped`.

    >>> with closing(StandardScheduler()) as scheduler:  # doctest: +SKIP
    ...     load(app, flights, scheduler, store=store, supervisor=supervisor)
    Summary(loads=3, tally=Tally(succeeded=2641, failed=0, discarded=0), skipped=None, stopped=False)
    """
    lane = take_lane(Lane.LOAD, event.path, run or here(), store=store, supervisor=supervisor)
    if lane is None:
        return Summary(skipped=f"held by {supervisor.status(f'load/{event.path}').held_by}")
    token, lease = lane
    with lease:
        return scheduler.drain(
            app,
            event,
            store=store,
            token=token,
            lease=lease,
            run=run,
            stop=stop or threading.Event(),
            report=report,
        )


class HeldLane(NamedTuple):
    """A lane's fencing token, and the lease of its lock: use it `with` the lease."""

    token: FencingToken
    lease: Lease


def take_lane(
    lane: Lane,
    path: str,
    holder: str,
    *,
    store: Store,
    supervisor: Supervisor,
    wait: float = 0.0,
) -> HeldLane | None:
    """Take the lock of a lane of the destination event at `path`, and then its fencing token.

    Returns `None` if another holder has the lock for the next `wait` seconds.

    Raises `Unavailable`.
    """
    lease = supervisor.acquire(f"{lane.value}/{path}", holder, wait=wait)
    if lease is None:
        return None
    try:
        return HeldLane(store.loads.take_over(path, lane, lease.id, lease.confirm), lease)
    except BaseException:
        lease.release()
        raise


class StandardScheduler:
    """Loads what is due in a lane of a destination event: scheduled, in realtime, replayed, discarded.

    A team can write its own, an object with the same `drain`: `Blacksmith(scheduler=...)`. Every path
    that loads calls it. The locks, the lanes and their fencing tokens are the caller's.

    Each thread that calls `drain` has its own connection to a destination, so that no event in realtime
    waits for another. Its first load opens the connection, and the next ones use it, until `close` or
    the end of the process.
    """

    def __init__(self) -> None:
        self._executor = Executor()
        self._prepare = cache(_prepare)

    def drain(
        self,
        app: Blacksmith,
        event: AnyDestinationEvent,
        *,
        store: Store,
        token: FencingToken,
        lease: Lease,
        run: str | None,
        stop: threading.Event,
        report: Callable[[LoadReport], None],
    ) -> Summary:
        """Load until nothing is due, or until `stop` is set; the load under way is finished.

        - `token`: the right to claim jobs of its lane and to record their loads.
        - `lease`: the lane's lock. Once it is lost, nothing more is claimed.
        - `run`: names the caller's run in the history.
        - `report`: is called after each recorded load, in the caller's thread.

        The summary says `skipped` if the destination waits for a migration.

        Raises `FencedOut` when another process took over or may have, `CodeOutdated` when the
        destination was migrated beyond this code, `Timeout` when a load ran past its time-out and its
        function has not returned (end the process), `MigrationError` when the destination's migrations
        cannot be read, `Unavailable` when the store does not respond.
        """
        decoder, version = self._prepare(app, event)
        summary = Summary()
        while not stop.is_set():
            _check_held(lease)
            try:
                with _collector_paused():
                    load = store.loads.claim(
                        token, event.batch_size, event.retry.max_attempts, run, version
                    )
            except MigrationPending as error:
                return Summary(summary.loads, summary.tally, skipped=str(error))
            if load is None:
                return summary
            if stop.is_set():
                store.loads.release(load)
                break
            about = {"event": event.path, "destination": event.destination.name}
            with log_fields(**about, load=load.id, run=run):
                originals = decoder.originals(load.rows, store.log.originals)
                with _collector_paused():
                    decoded = decoder.decode(load, originals)
                jobs = decoded.jobs if load.discard_reason is None else ()
                batch = Batch(event.path, jobs, event.version)
                started = time.monotonic()
                call = self._executor.call(event, batch) if jobs else _NOTHING_CALLED
                if not _wait(call, event, load, store):
                    continue
                seconds = time.monotonic() - started
                verdict = judge(app, event, load, decoded, batch.verdicts, call.exception())
                record(store, load, verdict, lease, stop)
                done = load_report(load, verdict, seconds)
                _log.info("%s: load %d: %s", event.path, load.id, _counted(done.tally))
            del load, originals, decoded, jobs, batch, call, verdict  # before the next claim: large
            summary = Summary(summary.loads + 1, summary.tally + done.tally)
            report(done)
        return Summary(summary.loads, summary.tally, stopped=True)

    def close(self) -> None:
        """Close the destinations' connections."""
        self._executor.close()


def _prepare(app: Blacksmith, event: AnyDestinationEvent) -> tuple[JobDecoder, int | None]:
    """The event's decoder, and the version of the destination's schema that this code needs."""
    waits = event.destination.wait_for_migrations
    return JobDecoder(app, event), version_of(event.destination) if waits else None


def _check_held(lease: Lease) -> None:
    if lease.lost.is_set():
        raise FencedOut(
            f"the lock {lease.key} could not be renewed, and another process may hold it; this one "
            "claims nothing more, and the next run continues"
        )


def _wait(call: Future[None], event: AnyDestinationEvent, load: Load, store: Store) -> bool:
    """Wait for a call. `False` if it took too long or did not begin: its jobs are due again.

    Raises `Timeout` if it has not returned even then.
    """
    limit = event.timeout.total_seconds()
    try:
        call.exception(limit)
        return True
    except StillRunning:
        if call.cancel():  # it did not begin: another call to this destination ran
            store.loads.release(load)
            return False
    error = f"the load ran past its time-out of {limit:g} s"
    _log.warning("%s: load %d: %s", event.path, load.id, error)
    unrecorded: Unavailable | FencedOut | None = None
    try:
        store.loads.abandon(load, error)
    except (Unavailable, FencedOut) as rejected:  # a call that hangs ends the process all the same
        unrecorded = rejected
    try:
        call.exception(GRACE)
        if unrecorded is not None:
            raise unrecorded
        return False
    except StillRunning:
        raise Timeout(
            f"{event.path}: {error}, and its function has not returned: end this process. The jobs are "
            "due again; if the function needs longer, give the event a longer timeout= or a smaller "
            "batch_size="
        ) from None


def record(
    store: Store, load: Load, verdict: LoadVerdict, lease: Lease, stop: threading.Event
) -> None:
    """Record a load; again if the store does not respond, so that it is not loaded twice."""
    give_up = time.monotonic() + RECORD_FOR
    unknown: OutcomeUnknown | None = None
    while True:
        try:
            return store.loads.record(load, verdict)
        except Unavailable as error:
            unknown = error if isinstance(error, OutcomeUnknown) else unknown
            if lease.lost.is_set() or stop.is_set() or time.monotonic() > give_up:
                raise
        except FencedOut:
            if unknown is None:
                raise
            raise unknown from None  # maybe the unanswered call closed the load
        stop.wait(_RECORD_PAUSE)


def _counted(tally: Tally) -> str:
    return f"{tally.succeeded} jobs succeeded, {tally.failed} failed, {tally.discarded} discarded"


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Pause garbage collection while a batch is built: building only adds objects, so collections would
    free nothing, and together they would cost more than building the batch."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
