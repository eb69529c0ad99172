"""For the tests of those who write pipelines: no Dagster, no server, no store, no disk."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, cast

import msgspec

from blacksmith_dagster.errors import KeyReused, UsageError
from blacksmith_dagster.ingest.extract import Extractor
from blacksmith_dagster.pipeline.application import Blacksmith
from blacksmith_dagster.pipeline.event import Event, Job
from blacksmith_dagster.pipeline.model import decoder, encode
from blacksmith_dagster.pipeline.source import AnySourceEvent
from blacksmith_dagster.pipeline.triggers import Message, Poll, Reply, Request, Subscription
from blacksmith_dagster.store.idempotency import resolve
from blacksmith_dagster.store.interface import NewEvent


def run(
    app: Blacksmith, events: Iterable[tuple[AnySourceEvent, Any]]
) -> Mapping[str, list[Job[Any]]]:
    """The jobs that each destination event would be handed, by its path, in the events' order.

    `events` are pairs of a source event and what is sent to it: a `Request` or a `Message`, data (sent
    as a JSON body), a `Poll`, or an `Event` as the extract function would return it. Everything happens
    as it does between the gateway and a destination: extract, limits, `when`, the way through JSON into
    the model, `transform`. A key that comes again is the same event. Ids are `evt_1`, `evt_2`, ...;
    destinations are not called, so outcomes make no jobs. To test a destination's function, call it
    with a `Batch` of these jobs.

    Raises whatever the pipeline's own functions raise, `RequestError` for a request that the gateway
    would reject, and `UsageError` for a source event that is not the application's.

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
    requests = [_extracted(app, source_event, given) for source_event, given in events]
    admission = resolve(requests, {})
    parents: dict[int, str | None] = {}
    for request, slot in zip(requests, admission.slots, strict=True):
        if isinstance(slot, KeyReused):
            raise slot
        for new, index in zip(request, slot, strict=True):
            at = new.parent
            parents[index] = _id(slot[at]) if isinstance(at, int) else at
    jobs: dict[str, list[Job[Any]]] = {path: [] for path in app.destination_events}
    for index, new in enumerate(admission.new):
        event = _as_stored(app, new, _id(index), parents[index])
        for wanted in new.jobs:
            flow = app.destination_events[wanted.destination].flows[new.event_type]
            if wanted.when_error is not None and flow.when is not None:
                flow.when(event)  # the gateway keeps what it raises, for the job to fail with
            data = event.data if flow.transform is None else flow.transform(event)
            jobs[wanted.destination].append(Job(data, event, f"{event.id}-1", attempt=1))
    return jobs


def _id(index: int) -> str:
    return f"evt_{index + 1}"


def _extracted(app: Blacksmith, source_event: AnySourceEvent, given: Any) -> Sequence[NewEvent]:
    path = source_event.path
    if app.source_events.get(path) is not source_event:
        raise UsageError(f"{path} is not of this application; add its source to sources=")
    extractor = Extractor(app, source_event)
    if isinstance(given, Event):
        if source_event.function is None:  # nobody returns: it comes out of the body
            data = decoder(source_event.model)(encode(given.data))
            given = msgspec.structs.replace(given, data=data)
        return extractor.events(given)
    if isinstance(given, Poll):
        return extractor.events(source_event(given))
    if isinstance(source_event.trigger, Subscription):
        given = given if isinstance(given, Message) else Message.of(given)
        return cast("list[NewEvent]", extractor(given, given.id))
    request = given if isinstance(given, Request) else Request.of(given)
    made = extractor(request, request.headers.get("idempotency-key"))
    return [] if isinstance(made, Reply) else made


def _as_stored(app: Blacksmith, new: NewEvent, event_id: str, parent: str | None) -> Event[Any]:
    return Event(
        decoder(app.source_events[new.event_type].model, stored=True)(new.payload),
        new.key,
        new.sent_at,
        {} if new.context is None else msgspec.json.decode(new.context),
        new.version,
        event_id,
        datetime.now(UTC),
        parent,
    )
