"""The application: all sources and destinations of one deployment, checked against each other."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from blacksmith_dagster.errors import DeclarationError
from blacksmith_dagster.pipeline.destination import AnyDestinationEvent, Destination
from blacksmith_dagster.pipeline.flow import Flow
from blacksmith_dagster.pipeline.retention import Retention
from blacksmith_dagster.pipeline.source import AnySourceEvent, Source, Webhook
from blacksmith_dagster.pipeline.triggers import HTTP, Subscription
from blacksmith_dagster.redaction import Secret

if TYPE_CHECKING:
    from starlette.middleware import Middleware


class Blacksmith:
    """One deployment's sources and destinations.

    - `middleware`: Starlette middleware around the gateway, outermost first.
    - `gateway`, `scheduler`: your own `Gateway` and `Scheduler`; `StandardGateway` and
      `StandardScheduler` if `None`. They are checked when a process first needs them.

    >>> app = Blacksmith(sources=[Source("airport")], destinations=[])
    >>> list(app.sources)
    ['airport']

    Raises `DeclarationError` if a name is used twice, two events share a path or a subscription, or a
    destination event receives an event that the application does not have, or is renamed from one that
    is still declared.
    """

    def __init__(
        self,
        *,
        sources: Sequence[Source],
        destinations: Sequence[Destination[Any]],
        middleware: Sequence[Middleware] = (),
        gateway: Any = None,
        scheduler: Any = None,
    ) -> None:
        self.sources: Mapping[str, Source] = _by_name("source", Source, sources)
        self.destinations: Mapping[str, Destination[Any]] = _by_name(
            "destination", Destination, destinations
        )
        self.middleware = tuple(middleware)
        self.gateway = gateway
        self.scheduler = scheduler
        self.source_events: Mapping[str, AnySourceEvent] = {
            event.path: event for source in sources for event in source.events.values()
        }
        self.webhooks: Sequence[Webhook] = [
            webhook for source in sources for webhook in source.webhooks
        ]
        self.destination_events: Mapping[str, AnyDestinationEvent] = {
            event.path: event
            for destination in destinations
            for event in destination.events.values()
        }
        self.receivers = self._receivers()
        self._check_paths()
        self._check_subscriptions()
        self._check_renamed()

    def retention(self) -> Mapping[str, Retention]:
        """How long events of each type are kept, by path.

        A source event is kept as it declares. An outcome is kept as long as the longest-kept of the
        events that its destination event receives. What webhook endpoints could not ingest has the name
        of its source.

        >>> airport = Source("airport", retention="30d", discarded_retention="90d")
        >>> departed = airport.accept("departed")
        >>> app = Blacksmith(sources=[airport], destinations=[])
        >>> app.retention()["airport/departed"].discarded.days
        90
        """
        retentions = {
            path: Retention.declared(
                event.retention, event.discarded_retention, event.quarantine_retention
            )
            for path, event in self.source_events.items()
        }
        of_webhooks = {
            webhook.path: Retention(
                quarantine=Retention.declared(
                    webhook.retention, None, webhook.quarantine_retention
                ).quarantine
            )
            for webhook in self.webhooks
        }
        origins = {
            outcome.path: event
            for event in self.destination_events.values()
            for outcome in event.outcomes
        }

        def retention_of(path: str) -> Retention:
            if path not in retentions:
                retentions[path] = Retention.longest(map(retention_of, origins[path].flows))
            return retentions[path]

        return of_webhooks | {path: retention_of(path) for path in (*self.source_events, *origins)}

    def _receivers(self) -> Mapping[str, Sequence[tuple[AnyDestinationEvent, Flow[Any]]]]:
        """The destination events that receive a source event or an outcome, by its path."""
        receivables: dict[str, Any] = dict(self.source_events)
        for event in self.destination_events.values():
            receivables |= {outcome.path: outcome for outcome in event.outcomes}
        receivers: dict[str, list[tuple[AnyDestinationEvent, Flow[Any]]]] = {}
        for event in self.destination_events.values():
            for path, flow in event.flows.items():
                if path not in receivables:
                    raise DeclarationError(
                        f"{event.path} receives {path}, which this application does not have; add "
                        f"{path.partition('/')[0]!r} to its sources or destinations"
                    )
                if receivables[path] is not flow.on:
                    raise DeclarationError(
                        f"{event.path} receives {path}, but not the application's own; declare "
                        f"{path.partition('/')[0]!r} once, and receive its events"
                    )
                receivers.setdefault(path, []).append((event, flow))
        return receivers

    def _check_paths(self) -> None:
        both = self.source_events.keys() & self.destination_events.keys()
        if both:
            raise DeclarationError(
                f"{', '.join(sorted(both))}: a source event and a destination event share this name, "
                "which Dagster's assets are named by; rename one"
            )
        endpoints: dict[tuple[str, str], str] = {}
        triggers = [(event.path, event.trigger) for event in self.source_events.values()]
        triggers += [(webhook.path, webhook.on) for webhook in self.webhooks]
        for path, trigger in triggers:
            if isinstance(trigger, HTTP):
                endpoint = (trigger.method, trigger.path)
                if endpoint in endpoints:
                    raise DeclarationError(
                        f"{endpoints[endpoint]} and {path} are both sent to {' '.join(endpoint)}; "
                        "give one of them another path"
                    )
                endpoints[endpoint] = path

    def _check_subscriptions(self) -> None:
        subscriptions: dict[tuple[Secret | None, str], str] = {}
        for path, event in self.source_events.items():
            if isinstance(event.trigger, Subscription) and event.trigger.subscription is not None:
                subscription = (event.trigger.url, event.trigger.subscription)
                if subscription in subscriptions:
                    raise DeclarationError(
                        f"{subscriptions[subscription]} and {path} both read the subscription "
                        f"{event.trigger.subscription!r}, and would take messages from each other; "
                        "rename one, or leave its name out"
                    )
                subscriptions[subscription] = path

    def _check_renamed(self) -> None:
        renamed: dict[str, str] = {}
        for event in self.destination_events.values():
            if event.renamed_from is None:
                continue
            old = f"{event.destination.name}/{event.renamed_from}"
            if old in self.destination_events or old in renamed:
                other = "it is still declared" if old in self.destination_events else renamed[old]
                raise DeclarationError(
                    f"{event.path}: renamed_from={event.renamed_from!r} takes over the jobs of {old}, "
                    f"but {other}; one event can take over a name that is no longer declared"
                )
            renamed[old] = f"{event.path} already does"


def _by_name(what: str, type_: type[Any], items: Sequence[Any]) -> dict[str, Any]:
    by_name: dict[str, Any] = {}
    if isinstance(items, str) or not isinstance(items, Collection):
        raise DeclarationError(f"{what}s={items!r} is not a list; write {what}s=[...]")
    for item in items:
        if not isinstance(item, type_):
            raise DeclarationError(
                f"{what}s=: {item!r} is not a {type_.__name__}; name the {what} itself"
            )
        if item.name in by_name:
            raise DeclarationError(f"two {what}s are named {item.name!r}; rename one")
        by_name[item.name] = item
    return by_name
