"""The events of an application as Dagster assets."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from dagster import AssetKey, AssetSpec, DailyPartitionsDefinition

from blacksmith_dagster.ingest.subscription import subscription_of
from blacksmith_dagster.pipeline.application import Blacksmith
from blacksmith_dagster.pipeline.destination import DestinationEvent
from blacksmith_dagster.pipeline.flow import Outcome
from blacksmith_dagster.pipeline.source import SourceEvent
from blacksmith_dagster.pipeline.triggers import HTTP, Cron, Subscription
from blacksmith_dagster.pubsub.address import VARIABLE as PUBSUB_URL

AnyEvent: TypeAlias = SourceEvent[Any, Any, Any] | DestinationEvent[Any]

STORE_KEY = AssetKey("blacksmith")


def asset_key(event: AnyEvent) -> AssetKey:
    """The key of an event's asset, to name it in the `deps` of an asset of your own.

    >>> from blacksmith_dagster import Source
    >>> asset_key(Source("airport").accept("departed")).to_user_string()
    'airport/departed'
    """
    return AssetKey(event.path.split("/"))


@dataclass(frozen=True, slots=True)
class EventData:
    """What a translator gets: an event, and the application that it belongs to."""

    app: Blacksmith
    event: AnyEvent

    @property
    def upstream(self) -> Sequence[EventData]:
        """The events that this one receives; of an outcome, the destination event it is of."""
        if isinstance(self.event, SourceEvent):
            return ()
        origins = dict.fromkeys(
            flow.on.origin if isinstance(flow.on, Outcome) else path
            for path, flow in self.event.flows.items()
        )
        known: Mapping[str, AnyEvent] = {**self.app.source_events, **self.app.destination_events}
        return [EventData(self.app, known[origin]) for origin in origins]


class BlacksmithTranslator:
    """Turns events into asset specs. Override `get_asset_spec` to change any of them.

    Keep the partitions: the counts of each UTC day are reported to them.

    >>> class Ours(BlacksmithTranslator):
    ...     def get_asset_spec(self, data: EventData) -> AssetSpec:
    ...         return super().get_asset_spec(data).replace_attributes(group_name="events")
    """

    def get_asset_spec(self, data: EventData) -> AssetSpec:
        """The spec of an event's asset: external, with a partition per UTC day.

        A source's events form a group, and so do a destination's. A key that is changed here is
        changed in the lineage as well.
        """
        event = data.event
        parent = event.source if isinstance(event, SourceEvent) else event.destination
        return AssetSpec(
            key=asset_key(event),
            deps=[self.get_asset_spec(each).key for each in data.upstream],
            description=inspect.cleandoc(event.description) if event.description else None,
            group_name=parent.name,
            kinds={"blacksmith", _kind(event)},
            owners=event.owners,
            tags=event.tags,
            metadata=_metadata(event),
            # A day is a partition from its first moment on, not only once it has passed.
            partitions_def=DailyPartitionsDefinition(data.app.since.isoformat(), end_offset=1),
        )


def store_spec() -> AssetSpec:
    """The store as an asset: what the checks of the whole application are shown on."""
    return AssetSpec(
        STORE_KEY,
        description="The store: the log of all events and their jobs.",
        group_name="blacksmith",
        kinds={"blacksmith"},
    )


def _of_trigger(event: SourceEvent[Any, Any, Any]) -> dict[str, Any]:
    trigger = event.trigger
    if isinstance(trigger, HTTP):
        return {"received_at": _shown(trigger)}
    if isinstance(trigger, Cron):
        return {"interval": trigger.interval, "timezone": trigger.timezone}
    if isinstance(trigger, Subscription):
        return {
            "topic": trigger.topic,
            "subscription": subscription_of(event.path, trigger),
            # Where its URL is, never the URL: that may hold a password.
            "broker": trigger.url.name if trigger.url else PUBSUB_URL,
        }
    return {}


def _shown(on: HTTP) -> str:
    return f"{on.method} {on.path}"


def _kind(event: AnyEvent) -> str:
    """An icon in the UI, where Dagster has one by that name: a `SnowflakeDestination`'s is snowflake."""
    if isinstance(event, SourceEvent):
        return type(event.trigger).__name__.lower()
    named = type(event.destination).__name__.removesuffix("Destination").lower()
    return named if re.fullmatch(r"[a-z0-9_]{1,50}", named) else "python"


def _metadata(event: AnyEvent) -> Mapping[str, Any]:
    if isinstance(event, SourceEvent):
        webhooks = ", ".join(_shown(webhook.on) for webhook in event.source.webhooks)
        return _of_trigger(event) | ({"webhooks": webhooks} if webhooks else {})
    schedule = event.schedule
    return {
        "interval": schedule.interval or "",
        "realtime": bool(schedule.realtime),
        "max_retries": schedule.max_attempts - 1,
        "batch": event.batch,
        "timeout_seconds": event.timeout.total_seconds(),
        **({"version": event.version} if event.version else {}),
        **({"deprecated_since": event.deprecated.isoformat()} if event.deprecated else {}),
    }
