"""Loading one destination event: claim, decode, call, record, until nothing is due."""

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
from typing import TYPE_CHECKING, Any

from blacksmith_dagster.errors import (
    FencedOut,
    MigrationPending,
    OutcomeUnknown,
    Timeout,
    Unavailable,
)
from blacksmith_dagster.pipeline.application import Blacksmith
from blacksmith_dagster.pipeline.destination import DestinationEvent
from blacksmith_dagster.pipeline.event import Batch
from blacksmith_dagster.pubsub.notifier import Notify
from blacksmith_dagster.scheduler.decoding import Decoded, JobDecoder
from blacksmith_dagster.scheduler.executor import Executor
from blacksmith_dagster.scheduler.interface import LoadReport, Summary
from blacksmith_dagster.scheduler.outcomes import outcomes
from blacksmith_dagster.scheduler.verdict import decide, load_report
from blacksmith_dagster.store.interface import FencingToken, Load, LoadVerdict, Store
from blacksmith_dagster.wanderer.files import version_of

if TYPE_CHECKING:
    from blacksmith_dagster.supervisor.interface import Lease

_log = logging.getLogger(__name__)

GRACE = 1.0
"""Seconds that a call which ran past its time-out still has to return in."""

RECORD_FOR = 60.0
"""Seconds for which recording is tried again while the store does not respond."""

_RECORD_AGAIN = 0.5


class Loader:
    """Loads what is due of one destination event.

    It works for whoever holds the lock (`lease`) and the right to claim (`token`); plain Python, it
    knows nothing of who calls it. `run` names the caller's run in the history; `notify` is called
    with the destination events that have new jobs by a load's outcomes.

    Raises `MigrationError` if the destination's migrations cannot be read.
    """

    def __init__(
        self,
        app: Blacksmith,
        event: DestinationEvent[Any],
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

        Raises `FencedOut` when another took over or may have (the lease is lost), `CodeOutdated` when
        the destination was migrated beyond this code, `Timeout` when a load ran past its time-out and
        its function has not returned, `Unavailable`.
        """
        summary = Summary()
        while not stop.is_set():
            if lease.lost.is_set():
                raise FencedOut(
                    f"the lock {lease.key} could not be renewed, and another process may hold it; "
                    "nothing more is claimed here, and the next run goes on"
                )
            try:
                with _collector_paused():
                    load = self._store.claim(
                        token,
                        self._event.batch,
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
            done = self._load(load, lease, stop)
            if done is not None:
                summary = Summary(summary.loads + 1, sum(done.days.values(), start=summary.tally))
                report_load(done)
        return Summary(summary.loads, summary.tally, stopped=True)

    def _load(self, load: Load, lease: Lease, stop: threading.Event) -> LoadReport | None:
        """Run one load. `None` if it counts for nothing: it took too long, or could not begin."""
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
                    if call.cancel():  # another call to this destination has kept it waiting
                        self._store.release(load)
                    else:
                        self._abandon(load, call)
                    return None
        seconds = time.monotonic() - started
        now = datetime.now(UTC)
        decision = decide(load, decoded, batch.verdicts, raised, self._event.schedule, now)
        made = outcomes(self._app, self._event, load, decoded, decision, now)
        verdict = decision.verdict
        if made:
            verdict = LoadVerdict(
                verdict.deviations, verdict.raised, verdict.delay, verdict.isolated, made
            )
        self._record(load, verdict, lease, stop)
        if made:
            self._notify(job.destination for outcome in made for job in outcome.jobs)
        return load_report(load, verdict, seconds)

    def _abandon(self, load: Load, call: Future[None]) -> None:
        """Its jobs are due again; whatever the call still does counts for nothing."""
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
                "timeout= or a smaller batch="
            ) from None

    def _record(
        self, load: Load, verdict: LoadVerdict, lease: Lease, stop: threading.Event
    ) -> None:
        """Record, again if the store does not respond: what is loaded need not be loaded twice."""
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
                raise unknown from None  # the load is closed: it may well be this record's doing
            stop.wait(_RECORD_AGAIN)


@contextmanager
def _collector_paused() -> Iterator[None]:
    """While a batch is made its objects only grow in number: walking them again and again would
    find nothing, and cost more than making them."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
