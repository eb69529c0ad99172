"""A load as Dagster sees it: one call of the scheduler in an op, told in a few events of its run."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, date, datetime
from typing import Any

import msgspec
from dagster import (
    AssetExecutionContext,
    AssetKey,
    AssetMaterialization,
    AssetObservation,
    DagsterExecutionInterruptedError,
    DagsterRunStatus,
    MetadataValue,
    OpExecutionContext,
    RetryRequested,
)

from blacksmith_dagster.errors import Timeout, Unavailable
from blacksmith_dagster.orchestration.checks import of_destination
from blacksmith_dagster.pipeline.application import Blacksmith
from blacksmith_dagster.pipeline.destination import DestinationEvent
from blacksmith_dagster.scheduler import LoadReport, Scheduler, Summary, Tally
from blacksmith_dagster.store.interface import Store
from blacksmith_dagster.supervisor import Supervisor

# A job that is due this soon is waited for: the clocks of Dagster and the database differ a little.
DUE_SOON = 5.0

_FLUSH_SECONDS = 30.0
_RETRIES = 3
_RETRY_SECONDS = 5.0
_ERROR_LENGTH = 500


class Day(msgspec.Struct, frozen=True):
    """What became of the jobs of one UTC day, in the loads from `first` to `last`."""

    tally: Tally
    loads: int
    first: int
    last: int
    seconds: float
    error: str | None

    def __add__(self, later: Day) -> Day:
        return Day(
            self.tally + later.tally,
            self.loads + later.loads,
            min(self.first, later.first),
            max(self.last, later.last),
            self.seconds + later.seconds,
            self.error or later.error,
        )


class Progress:
    """What has been loaded since the last flush: one `Day` per UTC day, however many loads."""

    def __init__(self) -> None:
        self._days: dict[date, Day] = {}
        self._since = time.monotonic()

    @property
    def is_due(self) -> bool:
        """Whether it is time to flush."""
        return time.monotonic() - self._since >= _FLUSH_SECONDS

    def add(self, report: LoadReport) -> None:
        """Count a load."""
        for day, tally in report.days.items():
            told = Day(tally, 1, report.load, report.load, report.seconds, report.error)
            before = self._days.get(day)
            self._days[day] = told if before is None else before + told

    def flush(self) -> Mapping[date, Day]:
        """What has been counted, in the order of days; begins anew."""
        days, self._days = dict(sorted(self._days.items())), {}
        self._since = time.monotonic()
        return days


def told_of(
    key: AssetKey, day: date, told: Day, links: Mapping[str, MetadataValue[Any]]
) -> AssetMaterialization | AssetObservation:
    """What became of one day's jobs, as an event of the partition.

    Nothing is materialized where nothing was loaded: assets downstream would follow it.
    """
    metadata: dict[str, Any] = {
        "events_loaded": told.tally.succeeded,
        "events_failed": told.tally.failed,
        "events_discarded": told.tally.discarded,
        "loads": told.loads,
        "first_load": told.first,
        "last_load": told.last,
        "load_seconds": round(told.seconds, 3),
        **links,
    }
    if told.error:
        metadata["first_error"] = told.error[:_ERROR_LENGTH]
    kind = AssetMaterialization if told.tally.succeeded else AssetObservation
    return kind(key, partition=day.isoformat(), metadata=metadata)


def load(
    context: OpExecutionContext | AssetExecutionContext,
    app: Blacksmith,
    event: DestinationEvent[Any],
    key: AssetKey,
    *,
    scheduler: Scheduler,
    store: Store,
    supervisor: Supervisor,
    stop: threading.Event,
) -> Summary:
    """Load all that is due of a destination event, and tell the run.

    The op is tried again a few times when the store or the supervisor does not answer. When the run
    is terminated, the batch under way is finished and recorded first.
    """
    op = context.op_execution_context if isinstance(context, AssetExecutionContext) else context
    progress, links = Progress(), _links(op)

    def tell() -> None:
        for day, told in progress.flush().items():
            op.log_event(told_of(key, day, told, links))

    def report(done: LoadReport) -> None:
        progress.add(done)
        if progress.is_due:
            tell()

    with _stopped_by_signals(stop):
        try:
            _wait_if_soon(store, event, stop)
            summary = scheduler.load(
                app,
                event,
                store=store,
                supervisor=supervisor,
                run=op.run_id,
                stop=stop,
                report=report,
            )
            tell()
            counts = store.counts(event.path)
        except Timeout:
            # The call that hangs may block its destination's other events: nothing more is loaded
            # in this process, which ends with its run.
            stop.set()
            raise
        except Unavailable as error:
            op.log.warning(f"{event.path}: {error}")
            raise RetryRequested(_RETRIES, _RETRY_SECONDS) from error
        finally:
            tell()
        # Its declared type leaves out check evaluations, which it takes.
        log_event: Callable[[Any], None] = op.log_event
        for finding in of_destination(key, event.schedule, counts, datetime.now(UTC)):
            log_event(finding.evaluation())
        _conclude(op, event, summary)
    return summary


def _conclude(op: OpExecutionContext, event: DestinationEvent[Any], summary: Summary) -> None:
    said: dict[str, Any] = {
        "events_loaded": summary.tally.succeeded,
        "events_failed": summary.tally.failed,
        "events_discarded": summary.tally.discarded,
        "loads": summary.loads,
    }
    if summary.skipped:
        said["skipped"] = summary.skipped
        op.log.info(f"{event.path}: skipped: {summary.skipped}")
    if summary.stopped:
        said["stop_reason"] = "asked to stop before all that is due was loaded"
    op.add_output_metadata(said)
    if summary.stopped:
        # Dagster marks the run by what its op does: read it again, to tell a termination by a user
        # from a signal to the process.
        run = op.instance.get_run_by_id(op.run_id)
        if run and run.status in (DagsterRunStatus.CANCELING, DagsterRunStatus.CANCELED):
            raise DagsterExecutionInterruptedError


def _wait_if_soon(store: Store, event: DestinationEvent[Any], stop: threading.Event) -> None:
    due = store.next_due(event.path)
    if due is not None and 0 < due <= DUE_SOON:
        stop.wait(due)


def _links(op: OpExecutionContext) -> Mapping[str, MetadataValue[Any]]:
    origin = op.run.remote_job_origin
    if origin is None:
        return {}
    return {"job": MetadataValue.job(op.job_name, origin.location_name)}


@contextmanager
def _stopped_by_signals(stop: threading.Event) -> Iterator[None]:
    """SIGINT and SIGTERM set `stop` instead of interrupting a batch; Dagster's handlers come back."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may handle signals
        return
    signals = (signal.SIGINT, signal.SIGTERM)
    before = {each: signal.signal(each, lambda *_: stop.set()) for each in signals}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
