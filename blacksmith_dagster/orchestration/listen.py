"""The warm run that listens for a source's messages and changes, and what keeps it alive."""

# Dagster reads the annotation of `context` as it stands: no `from __future__ import annotations`.

import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from dagster import (
    AssetKey,
    AssetObservation,
    JobDefinition,
    MetadataValue,
    OpExecutionContext,
    SensorDefinition,
)

from blacksmith_dagster.composition import build_listeners, running
from blacksmith_dagster.ingest.listeners import listened_events
from blacksmith_dagster.orchestration.loads import interrupt_if_terminated, links_of
from blacksmith_dagster.orchestration.resource import BlacksmithResource
from blacksmith_dagster.orchestration.warm_run_sensor import Holders, build_warm_run_sensor
from blacksmith_dagster.orchestration.warm_runs import (
    WarmRuns,
    build_warm_job,
    other_holders,
    watch,
)
from blacksmith_dagster.pipeline.application import Blacksmith
from blacksmith_dagster.pipeline.source import Source, SourceEvent
from blacksmith_dagster.pipeline.triggers import Subscription
from blacksmith_dagster.signals import on_stop
from blacksmith_dagster.store.interface import ListenerStatus

_FLUSH_SECONDS = 60.0


def build_listen_job(
    app: Blacksmith, source: Source, keys: Mapping[str, AssetKey], warm: WarmRuns
) -> JobDefinition:
    """The job `listen_<source>`; `keys` are the assets' by the events' paths."""
    paths = ", ".join(event.path for event in listened_events(source))

    def serve(op: OpExecutionContext, blacksmith: BlacksmithResource) -> None:
        _listen(op, blacksmith, app, source, keys, warm)

    return build_warm_job("listen", source.name, f"Listens for {paths}.", serve, warm)


def build_listen_sensor(source: Source, target: JobDefinition) -> SensorDefinition:
    """The sensor `listen_<source>_sensor`."""
    events = listened_events(source)
    locks = {event.path: f"listen/{event.path}" for event in events}

    def why_not_configured(blacksmith: BlacksmithResource) -> str | None:
        if blacksmith.pubsub is not None or not all(map(_needs_broker, events)):
            return None
        return (
            f"no broker is configured for {', '.join(locks)}: set BLACKSMITH_PUBSUB_URL to "
            "kafka://host:9092, nats://host:4222 or amqp://host:5672, or give Subscription(url=)"
        )

    return build_warm_run_sensor(
        target,
        f"Keeps a run of {target.name} alive at all times.",
        locks,
        why_not_configured,
        lambda _, holders: why_no_run(holders),
    )


def why_no_run(holders: Holders) -> str | None:
    """Why no run is needed, or `None`: another process listens for each of the events.

    >>> why_no_run({"shop/ordered": "host:42"}), why_no_run({"shop/ordered": None})
    ('shop/ordered is listened for by host:42', None)
    """
    if not all(holders.values()):
        return None
    return ", ".join(f"{path} is listened for by {holder}" for path, holder in holders.items())


def _needs_broker(event: SourceEvent[Any, Any, Any]) -> bool:
    return isinstance(event.trigger, Subscription) and event.trigger.url is None


def _listen(
    op: OpExecutionContext,
    blacksmith: BlacksmithResource,
    app: Blacksmith,
    source: Source,
    keys: Mapping[str, AssetKey],
    warm: WarmRuns,
) -> None:
    blacksmith.store(app)  # registers the application
    reporter, stop = _ListenReporter(op, keys), threading.Event()
    loop = build_listeners(app, source, blacksmith.backends, holder=op.run_id, report=reporter.add)
    with on_stop(stop.set), running([loop], blacksmith.backends, [source.name]):
        try:
            why = watch(op, loop, warm, stop, lambda: reporter.report_if_due(loop.statuses))
            locks = [f"listen/{event.path}" for event in listened_events(source)]
            why += other_holders(blacksmith.supervisor, locks, op.run_id)
        finally:
            loop.stop()
            reporter.report(loop.statuses)
        op.log.info(f"this run ends: {why}")
        received = MetadataValue.json(dict(reporter.reported))
        total = reporter.reported.total()
        op.add_output_metadata({"events_received": total, "by_event": received, "stop_reason": why})
        if stop.is_set():
            interrupt_if_terminated(op)
    if loop.failure is not None:
        raise loop.failure


class _ListenReporter:
    """Counts events, in whatever thread, and reports them in the run's own, as Dagster asks."""

    def __init__(self, op: OpExecutionContext, keys: Mapping[str, AssetKey]) -> None:
        self._op = op
        self._keys = keys
        self._links = links_of(op)
        self._lock = threading.Lock()
        self._received: Counter[str] = Counter()
        self._reported_at = time.monotonic()
        self.reported: Counter[str] = Counter()

    def add(self, event: SourceEvent[Any, Any, Any], number: int) -> None:
        """Count events that were received."""
        with self._lock:
            self._received[event.path] += number

    def report_if_due(self, statuses: Sequence[ListenerStatus]) -> None:
        """Report, unless something was reported within a minute."""
        if time.monotonic() - self._reported_at >= _FLUSH_SECONDS:
            self.report(statuses)

    def report(self, statuses: Sequence[ListenerStatus]) -> None:
        """Report what was received since the last time, and the state of the listeners; nothing of one
        that waits in vain."""
        with self._lock:
            received, self._received = self._received, Counter()
        self._reported_at = time.monotonic()
        self.reported += received
        by_path = {each.path: each for each in statuses}
        for path in by_path | received:
            status = by_path.get(path)
            if received[path] or (status and (status.lag or status.error)):
                metadata = {**observed(received[path], status), **self._links}
                self._op.log_event(AssetObservation(self._keys[path], metadata=metadata))


def observed(number: int, status: ListenerStatus | None) -> dict[str, Any]:
    """The metadata of an observation of a source event: how many events were received since the last,
    and the status of its listener, if that is known yet.

    >>> observed(7, ListenerStatus("shop/ordered", "run 1", lag=0))
    {'events_received': 7, 'lag': 0, 'lag_unit': 'messages', 'held_by': 'run 1'}
    """
    metadata: dict[str, Any] = {"events_received": number}
    if status is not None:
        metadata |= {
            "lag": status.lag,
            "lag_unit": status.unit,
            "held_by": status.holder,
            "error": status.error,
        }
    return {name: value for name, value in metadata.items() if value is not None}
