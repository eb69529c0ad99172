"""A load in a Dagster run, and the reports of loads to Dagster, in runs and outside of them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, date, datetime
from types import MappingProxyType
from typing import Any, TypeAlias

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

from blacksmith_dagster.backends import Backends
from blacksmith_dagster.errors import Timeout, Unavailable
from blacksmith_dagster.orchestration.checks import Finding, check_destination
from blacksmith_dagster.pipeline.application import Blacksmith
from blacksmith_dagster.pipeline.destination import AnyDestinationEvent
from blacksmith_dagster.scheduler import LoadReport, StandardScheduler, Summary, Tally, loader
from blacksmith_dagster.signals import on_stop
from blacksmith_dagster.store import Store

# A load waits for a job due within this time: the clocks of Dagster and the database may differ.
DUE_SOON = 5.0
# An op waits this long before it is retried, and holds no lock meanwhile.
RETRY_SECONDS = 5.0

_RETRIES = 3
_REPORT_SECONDS = 30.0
_RUNLESS_REPORT_SECONDS = 60.0
_ERROR_LENGTH = 500

_log = logging.getLogger(__name__)

DayEvent: TypeAlias = AssetMaterialization | AssetObservation
Links: TypeAlias = Mapping[str, MetadataValue[Any]]


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

    def metadata(self, links: Links) -> dict[str, Any]:
        """The metadata of the day's partition."""
        return {
            "events_loaded": self.tally.succeeded,
            "events_failed": self.tally.failed,
            "events_discarded": self.tally.discarded,
            "loads": self.loads,
            "first_load": self.first,
            "last_load": self.last,
            "load_seconds": round(self.seconds, 3),
            **links,
            **({"first_error": self.error[:_ERROR_LENGTH]} if self.error else {}),
        }

    def event(self, key: AssetKey, day: date, links: Links) -> DayEvent:
        """The event of the day's partition.

        If no job succeeded, it is an observation: a materialization would trigger downstream assets.
        """
        event_class = AssetMaterialization if self.tally.succeeded else AssetObservation
        return event_class(key, partition=day.isoformat(), metadata=self.metadata(links))


class LoadReporter:
    """Reports loads to Dagster: an event per destination event and UTC day, however many loads.

    `add` may be called from any thread. `report` and `report_if_due` call `log_event`, in the caller's
    thread.

    - `keys`: the asset keys of the destination events, by their paths.
    - `seconds`: how often `report_if_due` reports.
    - `links`: metadata of each event; see `links_of`.
    """

    def __init__(
        self,
        keys: Mapping[str, AssetKey],
        log_event: Callable[[DayEvent], None],
        seconds: float = _REPORT_SECONDS,
        links: Links = MappingProxyType({}),
    ) -> None:
        self._keys = keys
        self._log_event = log_event
        self._seconds = seconds
        self._links = links
        self._days: dict[tuple[str, date], DayOfLoads] = {}
        self._lock = threading.Lock()
        self._reported_at = time.monotonic()
        self.loads = 0
        self.tally = Tally()

    def add(self, event: AnyDestinationEvent, report: LoadReport) -> None:
        """Count a load."""
        load_id, seconds = report.load_id, report.seconds
        with self._lock:
            for day, tally in report.days.items():
                counted = DayOfLoads(tally, 1, load_id, load_id, seconds, report.error)
                before = self._days.get((event.path, day))
                self._days[event.path, day] = counted if before is None else before + counted

    def flush(self) -> Mapping[tuple[str, date], DayOfLoads]:
        """What was counted since the last flush, by path and day, in that order."""
        with self._lock:
            days, self._days = self._days, {}
        return dict(sorted(days.items()))

    def report_if_due(self) -> None:
        """Report, unless the last report was less than `seconds` ago."""
        if time.monotonic() - self._reported_at >= self._seconds:
            self.report()

    def report(self) -> None:
        """Report what was counted since the last report."""
        self._reported_at = time.monotonic()
        unreported = dict(self.flush())
        try:
            for (path, day), counted in list(unreported.items()):
                self._log_event(counted.event(self._keys[path], day, self._links))
                self.loads += counted.loads
                self.tally += counted.tally
                del unreported[path, day]
        finally:  # what Dagster has not accepted is reported next time
            with self._lock:
                for place, counted in unreported.items():
                    later = self._days.get(place)
                    self._days[place] = counted if later is None else counted + later


@contextmanager
def runless_reporter(keys: Mapping[str, AssetKey]) -> Iterator[LoadReporter]:
    """Reports loads that happen outside of runs, once a minute, to the instance of `DAGSTER_HOME`.

    An event that Dagster does not accept is logged and not reported again: the store has it. Raises
    what Dagster raises when it cannot open the instance.
    """
    with DagsterInstance.get() as instance:

        def log_event(event: DayEvent) -> None:
            try:
                instance.report_runless_asset_event(event)
            except Exception:  # noqa: BLE001 - Dagster's database; loading continues without it
                _log.exception(
                    "%s: %s loads are not reported to Dagster",
                    event.asset_key.to_user_string(),
                    event.metadata["loads"].value,
                )

        reporter = LoadReporter(keys, log_event, _RUNLESS_REPORT_SECONDS)
        try:
            yield reporter
        finally:
            reporter.report()


def load_in_run(
    context: OpExecutionContext | AssetExecutionContext,
    app: Blacksmith,
    event: AnyDestinationEvent,
    key: AssetKey,
    scheduler: StandardScheduler,
    *,
    backends: Backends,
    stop: threading.Event,
) -> Summary:
    """Load everything that is due for a destination event, and report it to the run.

    The op is retried a few times when the store or the supervisor does not respond. When the run is
    terminated, the batch under way is finished and recorded first.
    """
    store, has_broker = backends.store, backends.pubsub is not None
    op = context.op_execution_context if isinstance(context, AssetExecutionContext) else context
    reporter = LoadReporter({event.path: key}, op.log_event, links=links_of(op))
    notify = backends.notify(app)

    def report(recorded: LoadReport) -> None:
        notify(recorded.receivers)
        reporter.add(event, recorded)
        reporter.report_if_due()

    with on_stop(stop.set):
        try:
            _wait_if_due_soon(store, event, stop)
            summary = loader.load(
                app,
                event,
                scheduler,
                store=store,
                supervisor=backends.supervisor,
                run=op.run_id,
                stop=stop,
                report=report,
            )
            counts = store.counts.of(event.path)
        except Timeout:
            # The call that hangs may block its destination's other events. This process, which ends
            # with its run, loads nothing more.
            stop.set()
            raise
        except Unavailable as error:
            op.log.warning(f"{event.path}: {error}")
            raise RetryRequested(_RETRIES, RETRY_SECONDS) from error
        finally:
            reporter.report()
        evaluate(op, check_destination(key, event.schedule, counts, datetime.now(UTC), has_broker))
        if summary.skipped:
            op.log.info(f"{event.path}: skipped: {summary.skipped}")
        stop_reason = "stopped before all that is due was loaded" if summary.stopped else None
        conclude(op, summary, stop_reason)
    return summary


def evaluate(op: OpExecutionContext, findings: Iterable[Finding]) -> None:
    """Report the findings of checks to the run."""
    # The declared type leaves out check evaluations, which `log_event` accepts.
    log_event: Callable[[Any], None] = op.log_event
    for finding in findings:
        log_event(finding.evaluation())


def conclude(op: OpExecutionContext, summary: Summary, stop_reason: str | None) -> None:
    """Report to the run what was loaded, and why it stopped early, if it did.

    Raises `DagsterExecutionInterruptedError` when a termination stopped it: Dagster then marks the
    run as canceled.
    """
    metadata: dict[str, Any] = {
        "events_loaded": summary.tally.succeeded,
        "events_failed": summary.tally.failed,
        "events_discarded": summary.tally.discarded,
        "loads": summary.loads,
    }
    if summary.skipped:
        metadata["skipped"] = summary.skipped
    if stop_reason:
        metadata["stop_reason"] = stop_reason
    op.add_output_metadata(metadata)
    if summary.stopped:
        interrupt_if_terminated(op)


def interrupt_if_terminated(op: OpExecutionContext) -> None:
    """Raise `DagsterExecutionInterruptedError` if a user has terminated this run.

    Dagster sets the run's status by how its op ends. This reads the run again, to tell a termination
    from a signal to the process.
    """
    run = op.instance.get_run_by_id(op.run_id)
    if run and run.status in (DagsterRunStatus.CANCELING, DagsterRunStatus.CANCELED):
        raise DagsterExecutionInterruptedError


def links_of(op: OpExecutionContext) -> Links:
    """A link to the op's job, if that is in a code location."""
    origin = op.run.remote_job_origin
    if origin is None:
        return {}
    return {"job": MetadataValue.job(op.job_name, origin.location_name)}


def _wait_if_due_soon(store: Store, event: AnyDestinationEvent, stop: threading.Event) -> None:
    due = store.counts.next_due(event.path)
    if due is not None and 0 < due <= DUE_SOON:
        stop.wait(due)
