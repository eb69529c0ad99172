"""A load as Dagster sees it: one call of the scheduler in an op, reported in a few events of its run."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, date, datetime
from typing import Any

import msgspec
from dagster import (
    AssetExecutionContext,
    AssetKey,
    AssetMaterialization,
    AssetObservation,
    DagsterExecutionInterruptedError,
    DagsterInstance,
    DagsterRunStatus,
    MetadataValue,
    OpExecutionContext,
    RetryRequested,
)

from blacksmith_dagster.errors import Timeout, Unavailable
from blacksmith_dagster.orchestration.assets import asset_key
from blacksmith_dagster.orchestration.checks import Finding, check_destination
from blacksmith_dagster.pipeline.application import Blacksmith
from blacksmith_dagster.pipeline.destination import DestinationEvent
from blacksmith_dagster.scheduler import LoadReport, Scheduler, Summary, Tally
from blacksmith_dagster.signals import on_stop
from blacksmith_dagster.store.interface import Store
from blacksmith_dagster.supervisor import Supervisor

# A job that is due this soon is waited for: the clocks of Dagster and the database differ a little.
DUE_SOON = 5.0
# An op that is to be tried again waits so long, and holds no lock meanwhile.
RETRY_SECONDS = 5.0

_RETRIES = 3
_ERROR_LENGTH = 500


class DayOfLoads(msgspec.Struct, frozen=True):
    """What became of the jobs of one UTC day, in the loads from `first` to `last`."""

    tally: Tally
    loads: int
    first: int
    last: int
    seconds: float
    error: str | None

    def __add__(self, later: DayOfLoads) -> DayOfLoads:
        return DayOfLoads(
            self.tally + later.tally,
            self.loads + later.loads,
            min(self.first, later.first),
            max(self.last, later.last),
            self.seconds + later.seconds,
            self.error or later.error,
        )


class UnreportedLoads:
    """What has been loaded since the last flush: one `DayOfLoads` per UTC day, however many loads.

    It is to be flushed every `seconds`. Safe to share between threads.
    """

    def __init__(self, seconds: float = 30.0) -> None:
        self._seconds = seconds
        self._days: dict[date, DayOfLoads] = {}
        self._since = time.monotonic()
        self._lock = threading.Lock()

    @property
    def is_due(self) -> bool:
        """Whether it is time to flush."""
        return time.monotonic() - self._since >= self._seconds

    def add(self, report: LoadReport) -> None:
        """Count a load."""
        with self._lock:
            for day, tally in report.days.items():
                counted = DayOfLoads(
                    tally, 1, report.load_id, report.load_id, report.seconds, report.error
                )
                before = self._days.get(day)
                self._days[day] = counted if before is None else before + counted

    def flush(self) -> Mapping[date, DayOfLoads]:
        """What has been counted, in the order of days; begins anew."""
        with self._lock:
            days, self._days = self._days, {}
            self._since = time.monotonic()
        return dict(sorted(days.items()))


def day_event(
    key: AssetKey, day: date, counted: DayOfLoads, links: Mapping[str, MetadataValue[Any]]
) -> AssetMaterialization | AssetObservation:
    """What became of one day's jobs, as an event of the partition.

    Nothing is materialized where nothing was loaded: assets downstream would follow it.
    """
    metadata: dict[str, Any] = {
        "events_loaded": counted.tally.succeeded,
        "events_failed": counted.tally.failed,
        "events_discarded": counted.tally.discarded,
        "loads": counted.loads,
        "first_load": counted.first,
        "last_load": counted.last,
        "load_seconds": round(counted.seconds, 3),
        **links,
    }
    if counted.error:
        metadata["first_error"] = counted.error[:_ERROR_LENGTH]
    kind = AssetMaterialization if counted.tally.succeeded else AssetObservation
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
    woken: bool,
) -> Summary:
    """Load all that is due of a destination event, and report to the run.

    The op is tried again a few times when the store or the supervisor does not respond. When the run
    is terminated, the batch under way is finished and recorded first. `woken`: whether realtime
    events are loaded at once.
    """
    op = context.op_execution_context if isinstance(context, AssetExecutionContext) else context
    progress, links = UnreportedLoads(), links_of(op)

    def flush() -> None:
        for day, counted in progress.flush().items():
            op.log_event(day_event(key, day, counted, links))

    def report(done: LoadReport) -> None:
        progress.add(done)
        if progress.is_due:
            flush()

    with on_stop(stop.set):
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
            flush()
            counts = store.counts(event.path)
        except Timeout:
            # The call that hangs may block its destination's other events: nothing more is loaded
            # in this process, which ends with its run.
            stop.set()
            raise
        except Unavailable as error:
            op.log.warning(f"{event.path}: {error}")
            raise RetryRequested(_RETRIES, RETRY_SECONDS) from error
        finally:
            flush()
        evaluate(op, check_destination(key, event.schedule, counts, datetime.now(UTC), woken))
        if summary.skipped:
            op.log.info(f"{event.path}: skipped: {summary.skipped}")
        why = "asked to stop before all that is due was loaded" if summary.stopped else None
        conclude(op, summary, why)
    return summary


def evaluate(op: OpExecutionContext, findings: Iterable[Finding]) -> None:
    """Report to the run what checks have found."""
    # Its declared type leaves out check evaluations, which it takes.
    log_event: Callable[[Any], None] = op.log_event
    for finding in findings:
        log_event(finding.evaluation())


def conclude(op: OpExecutionContext, summary: Summary, stop_reason: str | None) -> None:
    """Report to the run what was loaded, and why it has ended if not by itself.

    Raises `DagsterExecutionInterruptedError` when it was stopped by a termination: then Dagster
    marks it as canceled.
    """
    said: dict[str, Any] = {
        "events_loaded": summary.tally.succeeded,
        "events_failed": summary.tally.failed,
        "events_discarded": summary.tally.discarded,
        "loads": summary.loads,
    }
    if summary.skipped:
        said["skipped"] = summary.skipped
    if stop_reason:
        said["stop_reason"] = stop_reason
    op.add_output_metadata(said)
    if summary.stopped:
        interrupt_if_terminated(op)


def interrupt_if_terminated(op: OpExecutionContext) -> None:
    """Raise `DagsterExecutionInterruptedError` if a user has terminated the run that stops.

    Dagster marks the run by what its op does: it is read again, to know a termination from a signal
    to the process.
    """
    run = op.instance.get_run_by_id(op.run_id)
    if run and run.status in (DagsterRunStatus.CANCELING, DagsterRunStatus.CANCELED):
        raise DagsterExecutionInterruptedError


def _wait_if_soon(store: Store, event: DestinationEvent[Any], stop: threading.Event) -> None:
    due = store.next_due(event.path)
    if due is not None and 0 < due <= DUE_SOON:
        stop.wait(due)


def links_of(op: OpExecutionContext) -> Mapping[str, MetadataValue[Any]]:
    """Where a materialization came from: its job, if that is in a code location."""
    origin = op.run.remote_job_origin
    if origin is None:
        return {}
    return {"job": MetadataValue.job(op.job_name, origin.location_name)}


_log = logging.getLogger(__name__)


class RunlessReporter:
    """Materializes the assets of destination events in the instance of `DAGSTER_HOME`.

    A materialization per destination event, UTC day and minute, with counts, under the event's
    `asset_key`. What Dagster does not accept is logged and not reported again: the store has it.

    Raises what Dagster raises when it cannot open the instance.
    """

    def __init__(self, app: Blacksmith) -> None:
        self._instance = DagsterInstance.get()
        self._events = app.destination_events
        self._progress = {path: UnreportedLoads(60.0) for path in self._events}

    def add(self, event: DestinationEvent[Any], done: LoadReport) -> None:
        """Count a load. May be called from any thread."""
        self._progress[event.path].add(done)

    def report_if_due(self) -> None:
        """Report what was counted for a minute."""
        self._report([path for path, progress in self._progress.items() if progress.is_due])

    def close(self) -> None:
        """Report the rest, and close the instance."""
        self._report(list(self._progress))
        self._instance.dispose()

    def _report(self, paths: list[str]) -> None:
        for path in paths:
            for day, counted in self._progress[path].flush().items():
                event = day_event(asset_key(self._events[path]), day, counted, {})
                try:
                    self._instance.report_runless_asset_event(event)
                except Exception:  # noqa: BLE001 - Dagster's database; loading goes on without it
                    _log.exception("%s: %d loads are not reported to Dagster", path, counted.loads)
