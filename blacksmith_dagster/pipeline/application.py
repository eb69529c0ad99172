"""The application: all sources and destinations of one deployment, checked against each other."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import date, datetime
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

    - `since`: the first day of Dagster's partitions (UTC days of `received_at`).
    - `middleware`: Starlette middleware around the gateway, outermost first.
    - `gateway`, `scheduler`: a team's own; `StandardGateway` and `StandardScheduler` if `None`.

    >>> app = Blacksmith(sources=[Source("airport")], destinations=[], since="2026-01-01")
    >>> list(app.sources)
    ['airport']

    Raises `DeclarationError` if two things bear one name, a path is served or a subscription read
    twice, or a destination event receives what no source or destination of the application has, or is
    renamed from one that is still declared.
    """

    def __init__(
        self,
        *,
        sources: Sequence[Source],
        destinations: Sequence[Destination[Any]],
        since: str | date,
        middleware: Sequence[Middleware] = (),
        gateway: Any = None,
        scheduler: Any = None,
    ) -> None:
        self.sources: Mapping[str, Source] = _by_name("source", Source, sources)
        self.destinations: Mapping[str, Destination[Any]] = _by_name(
            "destination", Destination, destinations
        )
        self.since = _day(since)
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

        Source events as they declare it. An outcome is kept as long as the events that its destination
        event receives, whichever of them stays longest.

        >>> airport = Source("airport", keep="30d", keep_discarded="90d")
        >>> departed = airport.accept("departed")
        >>> app = Blacksmith(sources=[airport], destinations=[], since="2026-01-01")
        >>> app.retention()["airport/departed"].discarded.days
        90
        """
        retentions = {
            path: Retention.declared(event.keep, event.keep_discarded)
            for path, event in self.source_events.items()
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

        return {path: retention_of(path) for path in (*self.source_events, *origins)}

    def _receivers(self) -> Mapping[str, Sequence[tuple[AnyDestinationEvent, Flow[Any]]]]:
        """Which destination events receive an event or an outcome, by its path."""
        known: dict[str, Any] = dict(self.source_events)
        for event in self.destination_events.values():
            known |= {outcome.path: outcome for outcome in event.outcomes}
        receivers: dict[str, list[tuple[AnyDestinationEvent, Flow[Any]]]] = {}
        for event in self.destination_events.values():
            for path, flow in event.flows.items():
                if path not in known:
                    raise DeclarationError(
                        f"{event.path} receives {path}, which this application does not have; add "
                        f"{path.partition('/')[0]!r} to its sources or destinations"
                    )
                if known[path] is not flow.on:
                    raise DeclarationError(
                        f"{event.path} receives another {path} than the application's; declare "
                        f"{path.partition('/')[0]!r} once, and receive the events of that one"
                    )
                receivers.setdefault(path, []).append((event, flow))
        return receivers

    def _check_paths(self) -> None:
        both = self.source_events.keys() & self.destination_events.keys()
        if both:
            raise DeclarationError(
                f"{', '.join(sorted(both))}: a source event and a destination event share this name, "
                "and Dagster's assets are named by it; rename one"
            )
        served: dict[tuple[str, str], str] = {}
        on = [(each.path, each.trigger) for each in self.source_events.values()]
        for path, trigger in [*on, *((webhook.path, webhook.on) for webhook in self.webhooks)]:
            if isinstance(trigger, HTTP):
                at = (trigger.method, trigger.path)
                if at in served:
                    raise DeclarationError(
                        f"{served[at]} and {path} are both sent to {' '.join(at)}; "
                        "give one of them another path"
                    )
                served[at] = path

    def _check_subscriptions(self) -> None:
        named: dict[tuple[Secret | None, str], str] = {}
        for path, event in self.source_events.items():
            if isinstance(event.trigger, Subscription) and event.trigger.subscription is not None:
                at = (event.trigger.url, event.trigger.subscription)
                if at in named:
                    raise DeclarationError(
                        f"{named[at]} and {path} are both the subscription {at[1]!r}, and would take "
                        "messages from each other; name one otherwise, or leave its name out"
                    )
                named[at] = path

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
                    f"but {other}; a name that is gone can be taken over by one event"
                )
            renamed[old] = f"{event.path} has taken it over"


def _by_name(what: str, kind: type[Any], named: Sequence[Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if isinstance(named, str) or not isinstance(named, Collection):
        raise DeclarationError(f"{what}s={named!r}: it is no list; write {what}s=[...]")
    for each in named:
        if not isinstance(each, kind):
            raise DeclarationError(
                f"{what}s=: {each!r} is no {kind.__name__}; name the {what} itself"
            )
        if each.name in found:
            raise DeclarationError(f"two {what}s are named {each.name!r}; rename one")
        found[each.name] = each
    return found


def _day(since: str | date) -> date:
    try:
        day = date.fromisoformat(since) if isinstance(since, str) else since
    except ValueError:
        day = None
    if not isinstance(day, date) or isinstance(day, datetime):
        raise DeclarationError(f"since={since!r}: write a day, in UTC, as '2026-01-31'")
    return day
