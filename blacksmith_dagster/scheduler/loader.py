"""Loads a destination event under its lock: claim, decode, call, record, until nothing is due."""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as StillRunning
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import msgspec

from blacksmith_dagster.errors import (
    FencedOut,
    MigrationPending,
    OutcomeUnknown,
    Timeout,
    Unavailable,
)
from blacksmith_dagster.pipeline.application import Blacksmith
from blacksmith_dagster.pipeline.destination import AnyDestinationEvent
from blacksmith_dagster.pipeline.event import Batch
from blacksmith_dagster.pubsub.notifier import Notify
from blacksmith_dagster.scheduler.decoding import Decoded, JobDecoder
from blacksmith_dagster.scheduler.executor import Executor
from blacksmith_dagster.scheduler.outcomes import LoadReport, Summary, decide, load_report, outcomes
from blacksmith_dagster.store.interface import FencingToken, Lane, Load, LoadVerdict, Store
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


class Scheduler(Protocol):
    """Loads the due jobs of a destination event. A team can write its own scheduler."""

    def load(
        self,
        app: Blacksmith,
        event: AnyDestinationEvent,
        *,
        store: Store,
        supervisor: Supervisor,
        run: str | None = None,
        stop: threading.Event | None = None,
        report: Callable[[LoadReport], None] | None = None,
    ) -> Summary:
        """Load until nothing is due, or until `stop` is set (the load under way is finished).

        `run` names the Dagster run in the history; `report` is called after each recorded load, in
        the caller's thread.

        Raises `FencedOut` when another process took over, `CodeOutdated` when the destination was
        migrated beyond this code, `Timeout` when a load ran past its time-out and its function has not
        returned (end the process), `Unavailable` when the store or the supervisor does not respond.
        """
        ...


class StandardScheduler:
    """Loads a destination event under its lock, `load/<destination>/<event>`.

    A destination's connection is opened by its first load and kept for the next ones, until `close`
    or the end of the process. `notify` is called with the destination events that have new jobs by
    the loads' outcomes.

    >>> StandardScheduler().load(app, flights, store=store, supervisor=supervisor)  # doctest: +SKIP
    Summary(loads=3, tally=Tally(succeeded=2641, failed=0, discarded=0), skipped=None, stopped=False)
    """

    def __init__(self, notify: Notify = lambda _: None) -> None:
        self._executor = Executor()
        self._notify = notify

    def load(
        self,
        app: Blacksmith,
        event: AnyDestinationEvent,
        *,
        store: Store,
        supervisor: Supervisor,
        run: str | None = None,
        stop: threading.Event | None = None,
        report: Callable[[LoadReport], None] | None = None,
    ) -> Summary:
        """See `Scheduler.load`."""
        lane = take_lane(Lane.LOAD, event.path, run or here(), store=store, supervisor=supervisor)
        if lane is None:
            status = supervisor.status(f"load/{event.path}")
            return Summary(skipped=f"held by {status.held_by}")
        with lane.lease:
            loader = Loader(
                app, event, store=store, executor=self._executor, run=run, notify=self._notify
            )
            return loader.drain(*lane, stop or threading.Event(), report or (lambda _: None))

    def close(self) -> None:
        """Close the destinations' connections."""
        self._executor.close()


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
        return HeldLane(store.take_over(path, lane, lease.id, lease.confirm), lease)
    except BaseException:
        lease.release()
        raise


class Loader:
    """Loads what is due of one destination event.

    The caller holds the lock (`lease`) and the right to claim (`token`). `run` names the caller's run
    in the history; `notify` is called with the destination events that have new jobs by a load's
    outcomes.

    Raises `MigrationError` if the destination's migrations cannot be read.
    """

    def __init__(
        self,
        app: Blacksmith,
        event: AnyDestinationEvent,
        *,
        store: Store,
        executor: Executor,
        run: str | None = None,
        notify: Notify = lambda _: None,
    ) -> None:
        self._app = app
        self._event = event
        self._store = store
        self._executor = executor
        self._run = run
        self._notify = notify
        self._decoder = JobDecoder(app, event)
        self._version = (
            version_of(event.destination) if event.destination.wait_for_migrations else None
        )

    def drain(
        self,
        token: FencingToken,
        lease: Lease,
        stop: threading.Event,
        report_load: Callable[[LoadReport], None],
    ) -> Summary:
        """Load until nothing is due, or until `stop` is set; the load under way is finished.

        `report_load` is called after each recorded load, in this thread. The summary says `skipped`
        if the destination waits for a migration.

        Raises `FencedOut` when another process took over or may have (the lease is lost),
        `CodeOutdated` when the destination was migrated beyond this code, `Timeout` when a load ran
        past its time-out and its function has not returned, `Unavailable`.
        """
        summary = Summary()
        while not stop.is_set():
            if lease.lost.is_set():
                raise FencedOut(
                    f"the lock {lease.key} could not be renewed, and another process may hold it; "
                    "this one claims nothing more, and the next run continues"
                )
            try:
                with _collector_paused():
                    load = self._store.claim(
                        token,
                        self._event.batch_size,
                        self._event.schedule.max_attempts,
                        self._run,
                        self._version,
                    )
            except MigrationPending as error:
                return Summary(summary.loads, summary.tally, skipped=str(error))
            if load is None:
                return summary
            if stop.is_set():
                self._store.release(load)
                break
            report = self._load(load, lease, stop)
            if report is not None:
                tally = sum(report.days.values(), start=summary.tally)
                summary = Summary(summary.loads + 1, tally)
                report_load(report)
        return Summary(summary.loads, summary.tally, stopped=True)

    def _load(self, load: Load, lease: Lease, stop: threading.Event) -> LoadReport | None:
        """Run one load. `None` if it has no result: it took too long, or could not begin."""
        decoded, batch = Decoded((), {}), Batch[Any](self._event.path, ())
        raised: BaseException | None = None
        started = time.monotonic()
        if load.discard_reason is None:
            originals = self._decoder.originals(load.rows, self._store.originals)
            with _collector_paused():
                decoded = self._decoder.decode(load, originals)
            batch = Batch(self._event.path, decoded.jobs, self._event.version)
            if decoded.jobs:
                call = self._executor.call(self._event, batch)
                try:
                    raised = call.exception(self._event.timeout.total_seconds())
                except StillRunning:
                    if call.cancel():  # it did not begin: another call to this destination ran
                        self._store.release(load)
                    else:
                        self._abandon(load, call)
                    return None
        seconds = time.monotonic() - started
        now = datetime.now(UTC)
        decision = decide(load, decoded, batch.verdicts, raised, self._event.schedule, now)
        events = outcomes(self._app, self._event, load, decoded, decision, now)
        verdict = decision.verdict
        if events:
            verdict = msgspec.structs.replace(verdict, outcomes=events)
        self._record(load, verdict, lease, stop)
        if events:
            self._notify(job.destination for outcome in events for job in outcome.jobs)
        return load_report(load, verdict, seconds)

    def _abandon(self, load: Load, call: Future[None]) -> None:
        """Make the jobs of a load that took too long due again, even if its call is still running."""
        limit = self._event.timeout.total_seconds()
        error = f"the load ran past its time-out of {limit:g} s"
        self._store.abandon(load, error)
        _log.warning("%s: load %d: %s", self._event.path, load.id, error)
        try:
            call.exception(GRACE)
        except StillRunning:
            raise Timeout(
                f"{self._event.path}: {error}, and its function has not returned: end this process. "
                "The jobs are due again; if the function needs longer, give the event a longer "
                "timeout= or a smaller batch_size="
            ) from None

    def _record(
        self, load: Load, verdict: LoadVerdict, lease: Lease, stop: threading.Event
    ) -> None:
        """Record a load; again if the store does not respond, so that it is not loaded twice."""
        give_up = time.monotonic() + RECORD_FOR
        unknown: OutcomeUnknown | None = None
        while True:
            try:
                return self._store.record(load, verdict)
            except Unavailable as error:
                unknown = error if isinstance(error, OutcomeUnknown) else unknown
                if lease.lost.is_set() or stop.is_set() or time.monotonic() > give_up:
                    raise
            except FencedOut:
                if unknown is None:
                    raise
                raise unknown from None  # maybe the unanswered call closed the load
            stop.wait(_RECORD_PAUSE)


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
