"""Runs a pipeline in a test, without Dagster, a server, a store or a disk."""

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
from blacksmith_dagster.pipeline.triggers import Message, Poll, Request, Subscription
from blacksmith_dagster.store.idempotency import resolve
from blacksmith_dagster.store.records import NewEvent


def run(
    app: Blacksmith, events: Iterable[tuple[AnySourceEvent, Any]]
) -> Mapping[str, list[Job[Any]]]:
    """The jobs that each destination event would receive, by its path, in the events' order.

    `events` are pairs of a source event and its input: a `Request` or a `Message`, data (sent as a JSON
    body), a `Poll`, or an `Event` as the extract function would return it. The steps are those between
    the gateway and a destination: extract, limits, `when`, encode as JSON and decode into the model,
    `transform`. A repeated key is the same event. Ids are `evt_1`, `evt_2`, ... Destinations are not
    called, so outcomes create no jobs. To test a destination's function, call it with a `Batch` of
    these jobs.

    Raises whatever the pipeline's functions raise, `RequestError` for a request that the gateway would
    reject, and `UsageError` for a source event that the application does not have.

    >>> from blacksmith_dagster import Flow
    >>> departed = Source("airport").accept("departed")
    >>> lake = Destination("lake")
    >>> @lake.event(receives=Flow(departed, when=lambda event: event.data["delay"] > 120))
    ... def late(batch: Batch) -> None: ...
    >>> app = Blacksmith(sources=[departed.source], destinations=[lake])
    >>> jobs = run(app, [(departed, {"delay": 5}), (departed, {"delay": 200})])
    >>> [job.data for job in jobs["lake/late"]]
    [{'delay': 200}]
    """
    requests = [_extract(app, source_event, sent) for source_event, sent in events]
    admission = resolve(requests, {})
    parents: dict[int, str | None] = {}
    for request, slot in zip(requests, admission.slots, strict=True):
        if isinstance(slot, KeyReused):
            raise slot
        indexes = cast("Sequence[int]", slot)  # no key is stored before
        for new, index in zip(request, indexes, strict=True):
            parent = new.parent
            parents[index] = _id(indexes[parent]) if isinstance(parent, int) else parent
    jobs: dict[str, list[Job[Any]]] = {path: [] for path in app.destination_events}
    for index, new in enumerate(admission.new):
        event = _as_stored(app, new, _id(index), parents[index])
        for new_job in new.jobs:
            flow = app.destination_events[new_job.destination].flows[new.event_type]
            if new_job.when_error is not None and flow.when is not None:
                flow.when(
                    event
                )  # raises here; the gateway stores the error, and the job fails with it
            data = event.data if flow.transform is None else flow.transform(event)
            jobs[new_job.destination].append(Job(data, event, f"{event.id}-1", attempt=1))
    return jobs


def _id(index: int) -> str:
    return f"evt_{index + 1}"


def _extract(app: Blacksmith, source_event: AnySourceEvent, sent: Any) -> Sequence[NewEvent]:
    path = source_event.path
    if app.source_events.get(path) is not source_event:
        raise UsageError(f"{path} is not in this application; add its source to sources=")
    extractor = Extractor(app, source_event)
    if isinstance(sent, Event):
        if source_event.function is None:  # no function returns the event: its data is a body
            data = decoder(source_event.model)(encode(sent.data))
            sent = msgspec.structs.replace(sent, data=data)
        return extractor.extract_returned(sent)
    if isinstance(sent, Poll):
        return extractor.extract_returned(source_event(sent))
    if isinstance(source_event.trigger, Subscription):
        return extractor.extract(sent if isinstance(sent, Message) else Message.of(sent)).events
    return extractor.extract(sent if isinstance(sent, Request) else Request.of(sent)).events


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
