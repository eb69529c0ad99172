"""The warm run that listens for a source's messages and changes, and its sensor."""

# Dagster reads the annotation of `context` as it stands: no `from __future__ import annotations`.

import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dagster import (
    AssetKey,
    AssetObservation,
    JobDefinition,
    MetadataValue,
    OpExecutionContext,
    SensorDefinition,
)

from blacksmith_dagster.composition import build_listeners
from blacksmith_dagster.ingest.listeners import listened_events
from blacksmith_dagster.orchestration.loads import interrupt_if_terminated, links_of
from blacksmith_dagster.orchestration.resource import BlacksmithResource
from blacksmith_dagster.orchestration.warm_run_sensor import Holders, build_warm_run_sensor
from blacksmith_dagster.orchestration.warm_runs import Serving, WarmRuns, build_warm_job
from blacksmith_dagster.pipeline.source import AnySourceEvent, Source
from blacksmith_dagster.pipeline.triggers import Subscription
from blacksmith_dagster.store.records import ListenerStatus


def build_listen_job(source: Source, warm: WarmRuns) -> JobDefinition:
    """The job `listen_<source>`."""
    paths = [event.path for event in listened_events(source)]
    locks = [f"listen/{path}" for path in paths]

    def serve(op: OpExecutionContext, blacksmith: BlacksmithResource) -> Serving:
        backends, run = blacksmith.backends, op.run_id
        reporter = _ListenReporter(op, blacksmith.asset_keys, lambda: loop.statuses)
        loop = build_listeners(blacksmith.app, source, backends, holder=run, report=reporter.add)
        return Serving(loop, reporter.report, reporter.conclude)

    description = f"Listens for {', '.join(paths)}."
    return build_warm_job("listen", source.name, description, locks, serve, warm)


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


def _needs_broker(event: AnySourceEvent) -> bool:
    return isinstance(event.trigger, Subscription) and event.trigger.url is None


class _ListenReporter:
    """Counts events in any thread, and reports them in the run's own thread, as Dagster requires."""

    def __init__(
        self,
        op: OpExecutionContext,
        keys: Mapping[str, AssetKey],
        statuses: Callable[[], Sequence[ListenerStatus]],
    ) -> None:
        self._op = op
        self._keys = keys
        self._statuses = statuses
        self._links = links_of(op)
        self._lock = threading.Lock()
        self._received: Counter[str] = Counter()
        self.reported: Counter[str] = Counter()

    def add(self, event: AnySourceEvent, number: int) -> None:
        """Count events that were received."""
        with self._lock:
            self._received[event.path] += number

    def report(self) -> None:
        """Report what was received since the last report, and the status of the listeners.

        An event is left out if nothing was received or waits for it and its listener has no error.
        """
        with self._lock:
            received, self._received = self._received, Counter()
        self.reported += received
        statuses = {status.path: status for status in self._statuses()}
        for path in statuses | received:
            status = statuses.get(path)
            if received[path] or (status and (status.lag or status.error)):
                metadata = {**observed(received[path], status), **self._links}
                self._op.log_event(AssetObservation(self._keys[path], metadata=metadata))

    def conclude(self, reason: str, stopped: bool) -> None:
        """Report to the run what was received in all, and why the run ends."""
        self._op.add_output_metadata(
            {
                "events_received": self.reported.total(),
                "by_event": MetadataValue.json(dict(self.reported)),
                "stop_reason": reason,
            }
        )
        if stopped:
            interrupt_if_terminated(self._op)


def observed(number: int, status: ListenerStatus | None) -> dict[str, Any]:
    """The metadata of an observation of a source event.

    `number`: the events received since the last one. `status`: that of the listener, if known yet.

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
