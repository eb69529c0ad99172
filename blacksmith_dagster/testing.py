"""For the tests of those who write pipelines: no Dagster, no server, no store, no disk."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from blacksmith_dagster.errors import UsageError
from blacksmith_dagster.gateway.extract import Extractor
from blacksmith_dagster.pipeline.application import Blacksmith
from blacksmith_dagster.pipeline.event import Event, Job
from blacksmith_dagster.pipeline.source import SourceEvent
from blacksmith_dagster.pipeline.trigger import Reply, Request


def run(
    app: Blacksmith, events: Iterable[tuple[SourceEvent[Any, Any, Any], Any]]
) -> Mapping[str, list[Job[Any]]]:
    """The jobs that each destination event would be handed, by its path, in the events' order.

    `events` are pairs of a source event and what is sent to it: a `Request`, data (sent as a JSON
    body), or an `Event` as the extract function would return it. Everything happens as it does
    between the gateway and a destination: extract, limits, `when`, the way through JSON into the
    model, `transform`. Ids are `evt_1`, `evt_2`, ...; destinations are not called, so outcomes make
    no jobs. To test a destination's function, call it with a `Batch` of these jobs.

    Raises whatever the pipeline's own functions raise, `Refused` for a request that the gateway would
    not take, and `UsageError` for a source event that is not the application's.

    >>> from blacksmith_dagster import Flow
    >>> departed = Source("airport").accept("departed")
    >>> lake = Destination("lake")
    >>> @lake.event(receives=Flow(departed, when=lambda event: event.data["delay"] > 120))
    ... def late(batch: Batch) -> None: ...
    >>> app = Blacksmith(sources=[departed.source], destinations=[lake], since="2026-01-01")
    >>> jobs = run(app, [(departed, {"delay": 5}), (departed, {"delay": 200})])
    >>> [job.data for job in jobs["lake/late"]]
    [{'delay': 200}]
    """
    jobs: dict[str, list[Job[Any]]] = {path: [] for path in app.destination_events}
    kept = (each for source_event, given in events for each in _kept(app, source_event, given))
    for number, (kind, event) in enumerate(kept, 1):
        event = msgspec.structs.replace(event, id=f"evt_{number}", received_at=datetime.now(UTC))
        for destination, flow in app.receivers.get(kind, ()):
            if flow.when is None or flow.when(event):
                data = event.data if flow.transform is None else flow.transform(event)
                jobs[destination.path].append(Job(data, event, f"{event.id}-1", attempt=1))
    return jobs


def _kept(
    app: Blacksmith, source_event: SourceEvent[Any, Any, Any], given: Any
) -> Iterator[tuple[str, Event[Any]]]:
    path, model = source_event.path, source_event.model
    if app.source_events.get(path) is not source_event:
        raise UsageError(f"{path} is not of this application; add its source to sources=")
    if isinstance(given, Event):
        data = msgspec.json.decode(msgspec.json.encode(given.data), type=model)
        yield path, msgspec.structs.replace(given, data=data)
        return
    request = given if isinstance(given, Request) else Request.of(given)
    made = Extractor(app, source_event)(request)
    if isinstance(made, Reply):
        return
    for new in made:
        context = {} if new.context is None else msgspec.json.decode(new.context)
        data = msgspec.json.decode(new.payload, type=model)
        yield path, Event(data, new.key, new.sent_at, context, new.version, parent=new.parent)
