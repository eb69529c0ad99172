"""The source events and destination events of an application as Dagster assets."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import Any, TypeAlias

from dagster import AssetKey, AssetSpec, DailyPartitionsDefinition, Definitions
from dagster.components.definitions import LazyDefinitions

from blacksmith_dagster.errors import SettingsError
from blacksmith_dagster.ingest.subscription import subscription_of
from blacksmith_dagster.pipeline.application import Blacksmith
from blacksmith_dagster.pipeline.destination import AnyDestinationEvent
from blacksmith_dagster.pipeline.flow import Outcome
from blacksmith_dagster.pipeline.source import AnySourceEvent, SourceEvent
from blacksmith_dagster.pipeline.triggers import HTTP, Cron, Subscription
from blacksmith_dagster.pubsub.address import VARIABLE as PUBSUB_URL

AnyEvent: TypeAlias = AnySourceEvent | AnyDestinationEvent

STORE_KEY = AssetKey("blacksmith")
# In the metadata of an event's asset: its path. `blacksmith worker` finds the asset's key by it.
EVENT = "blacksmith/event"


def asset_key(event: AnyEvent) -> AssetKey:
    """The key of an event's asset, for the `deps` of an asset of your own.

    >>> from blacksmith_dagster import Source
    >>> asset_key(Source("airport").accept("departed")).to_user_string()
    'airport/departed'
    """
    return AssetKey(event.path.split("/"))


def asset_keys(app: Blacksmith, named: tuple[object, str] | None) -> Mapping[str, AssetKey]:
    """The asset keys by the events' paths, in the definitions that `build_definitions` went into.

    `named`: the definitions and how an error describes them; if `None`, the keys are those of the
    default translator.

    Raises `SettingsError` if the application's events are not in them, and whatever loading them raises.
    """
    events: Mapping[str, AnyEvent] = {**app.source_events, **app.destination_events}
    if named is None:
        return {path: asset_key(event) for path, event in events.items()}
    value, found = named
    definitions = value() if isinstance(value, LazyDefinitions) else value
    if not isinstance(definitions, Definitions):
        raise SettingsError(f"{found}; name the Definitions(...), or a function with @definitions")
    specs = definitions.resolve_all_asset_specs()
    keys = {spec.metadata[EVENT]: spec.key for spec in specs if EVENT in spec.metadata}
    missing = events.keys() - keys.keys()
    if missing:
        raise SettingsError(
            f"{found} without {', '.join(sorted(missing))}; merge build_definitions(...) of this "
            "application into it"
        )
    return keys


@dataclass(frozen=True, slots=True)
class EventTranslatorData:
    """What a translator receives: an event, its application, and the first day of the partitions."""

    app: Blacksmith
    event: AnyEvent
    start_date: date

    @property
    def upstream(self) -> Sequence[EventTranslatorData]:
        """The events that this one receives. An outcome counts as its destination event."""
        if isinstance(self.event, SourceEvent):
            return ()
        origins = dict.fromkeys(
            flow.on.origin if isinstance(flow.on, Outcome) else path
            for path, flow in self.event.flows.items()
        )
        events: Mapping[str, AnyEvent] = {**self.app.source_events, **self.app.destination_events}
        return [replace(self, event=events[origin]) for origin in origins]


class BlacksmithTranslator:
    """Turns events into asset specs. Override `get_asset_spec` to change any of them.

    Keep the partitions: the counts of each UTC day are reported to them.

    >>> class Ours(BlacksmithTranslator):
    ...     def get_asset_spec(self, data: EventTranslatorData) -> AssetSpec:
    ...         return super().get_asset_spec(data).replace_attributes(group_name="events")
    """

    def get_asset_spec(self, data: EventTranslatorData) -> AssetSpec:
        """The spec of an event's asset, with a partition per UTC day; a source event's is external.

        The events of one source or destination form a group. A key that you change here changes in
        the lineage as well.
        """
        event = data.event
        parent = event.source if isinstance(event, SourceEvent) else event.destination
        return AssetSpec(
            key=asset_key(event),
            deps=[self.get_asset_spec(upstream).key for upstream in data.upstream],
            description=inspect.cleandoc(event.description) if event.description else None,
            group_name=parent.name,
            kinds={"blacksmith", _kind(event)},
            owners=event.owners,
            tags=event.tags,
            metadata=_metadata(event),
            # A day is a partition from its first moment, not only once it has passed.
            partitions_def=DailyPartitionsDefinition(data.start_date.isoformat(), end_offset=1),
        )


def store_spec() -> AssetSpec:
    """The store as an asset, which shows the checks of the whole application."""
    return AssetSpec(
        STORE_KEY,
        description="The store: the log of all events and their jobs.",
        group_name="blacksmith",
        kinds={"blacksmith"},
    )


def _trigger_metadata(event: AnySourceEvent) -> dict[str, Any]:
    trigger = event.trigger
    if isinstance(trigger, HTTP):
        return {"endpoint": _endpoint(trigger)}
    if isinstance(trigger, Cron):
        return {"interval": trigger.interval, "timezone": trigger.timezone}
    if isinstance(trigger, Subscription):
        return {
            "topic": trigger.topic,
            "subscription": subscription_of(event.path, trigger),
            # The variable that holds the URL, never the URL: that may contain a password.
            "broker": trigger.url.name if trigger.url else PUBSUB_URL,
        }
    return {}


def _endpoint(on: HTTP) -> str:
    return f"{on.method} {on.path}"


def _kind(event: AnyEvent) -> str:
    """The icon in the UI, if Dagster has one of that name: snowflake for a `SnowflakeDestination`."""
    if isinstance(event, SourceEvent):
        return type(event.trigger).__name__.lower()
    name = type(event.destination).__name__.removesuffix("Destination").lower()
    return name if re.fullmatch(r"[a-z0-9_]{1,50}", name) else "python"


def _metadata(event: AnyEvent) -> Mapping[str, Any]:
    if isinstance(event, SourceEvent):
        webhooks = ", ".join(_endpoint(webhook.on) for webhook in event.source.webhooks)
        return _trigger_metadata(event) | ({"webhooks": webhooks} if webhooks else {})
    schedule = event.schedule
    return {
        "interval": schedule.interval or "",
        "realtime": bool(schedule.realtime),
        "max_retries": event.retry.max_attempts - 1,
        "batch_size": event.batch_size,
        "timeout_seconds": event.timeout.total_seconds(),
        **({"version": event.version} if event.version else {}),
        **({"deprecated_since": event.deprecated.isoformat()} if event.deprecated else {}),
    }
