"""Extracts the events of a request or a message, each with the jobs that it needs: pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any, NamedTuple, cast

import msgspec
from msgspec import structs

from blacksmith_dagster.errors import BadRequest, TooLarge, Unprocessable, ValidationError
from blacksmith_dagster.ingest.items import (
    REQUEST_EVENTS,
    TOO_MANY,
    ItemSplitter,
    looks_like_json,
)
from blacksmith_dagster.pipeline.application import Blacksmith
from blacksmith_dagster.pipeline.event import Event, TypedEvent
from blacksmith_dagster.pipeline.model import decoder, encode, is_plain
from blacksmith_dagster.pipeline.source import AnySourceEvent, Webhook
from blacksmith_dagster.pipeline.triggers import Message, Reply, Request
from blacksmith_dagster.redaction import describe
from blacksmith_dagster.store.records import NewEvent, NewJob, RawRequest

VERSION_HEADER = "api-version"
"""The header with the version of those events that name none."""

KEY_CHARACTERS = 512

_UNENCODABLE = (TypeError, ValueError, OverflowError, RecursionError)
_UNDECODABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class Extractor:
    """Turns the requests or messages to one source event or webhook into events with their jobs.

    >>> from blacksmith_dagster import Blacksmith, Request, Source
    >>> airport = Source("airport")
    >>> cancelled = airport.accept("cancelled")
    >>> app = Blacksmith(sources=[airport], destinations=[])
    >>> [event.payload for event in Extractor(app, cancelled)(Request(b'[{"n": 1}, 2]'))]
    ['{"n": 1}', '2']
    """

    def __init__(self, app: Blacksmith, event: AnySourceEvent | Webhook) -> None:
        self.event = event
        self._function: Callable[[Any], Any] | None = event.function
        self._items = ItemSplitter(event)
        events = event.source.events.values()
        self._prepared = {own.path: _PreparedEvent(app, own) for own in events}
        # For the source event's own events; `None` at a webhook, where each event names its type.
        self._own = self._prepared.get(event.path)

    def __call__(
        self,
        request: Request | Message,
        key: str | None = None,
        invalid: list[InvalidItem] | None = None,
    ) -> list[NewEvent] | Reply:
        """The events of a request or a message, or the reply that its function gave to a request; all
        or nothing.

        `key` is the request's `Idempotency-Key`, or the message's id: it stands for the whole body,
        and applies to the events that have no key of their own. If `invalid` is given, items that do
        not fit their model are added to it, and the others become events.

        Raises `RequestError` for what is rejected, and what the source event's function raises.
        """
        digest = None
        if key is not None:
            digest = _digest(request.body)
            check_key(key)
        extracted = _ExtractedEvents(key, digest, request.headers.get(VERSION_HEADER))
        if isinstance(request, Message) or self._own is None:
            items: Sequence[bytes] = (request.body,)
            self._items.check_size(request.body)
            if self._own is not None and looks_like_json(request.body):
                self._items.check_shape(request.body)
        else:
            items = self._items.split(request)
        for item in items:
            before = len(extracted.events)
            try:
                if self._function is None:
                    self._accept(extracted, item)
                    continue
                whole = item is request.body
                returned = self._function(request if whole else structs.replace(request, body=item))
                if isinstance(returned, Reply) and isinstance(request, Request):
                    return _checked_reply(self.event.path, returned)
                self._add(extracted, returned)
            except ValidationError as error:
                if invalid is None:
                    raise
                del extracted.events[before:]
                invalid.append(InvalidItem(extracted.place, item, error))
                extracted.left_out += 1
        return extracted.events

    def events(self, returned: Any) -> list[NewEvent]:
        """The events that the function of a poll or a listener has returned.

        Raises `RequestError` for one that cannot be stored, and `TypeError` for anything else.
        """
        extracted = _ExtractedEvents()
        self._add(extracted, returned)
        return extracted.events

    def _accept(self, extracted: _ExtractedEvents, item: bytes) -> None:
        prepared, place = cast(_PreparedEvent, self._own), extracted.place
        try:
            payload = item.decode()
            data = prepared.decode(item)
        except msgspec.ValidationError as error:
            raise ValidationError(f"event {place} does not fit {prepared.path}: {error}") from error
        except _UNDECODABLE as error:
            raise BadRequest(f"event {place} is not JSON: {error}") from error
        extracted.events.append(
            NewEvent(
                prepared.path,
                payload,
                prepared.jobs(Event(data)) if prepared.has_conditions else prepared.all_jobs,
                extracted.key,
                place if extracted.key is not None else 0,
                extracted.digest,
                None,
                prepared.version(extracted.version),
            )
        )

    def _add(self, extracted: _ExtractedEvents, returned: Any) -> None:
        """Add the events that a function has returned; typed events at a webhook."""
        path, own = self.event.path, self._own
        if own is not None:
            rule = "an Event, several Events, or a Reply"
            for event in events_in(returned, Event, path, rule):
                self._add_event(extracted, own, event)
            return
        rule = "an event made by SourceEvent.of, several of them, or a Reply"
        for typed in events_in(returned, TypedEvent, path, rule):
            self._add_event(extracted, self._prepared_of(typed.event_type), typed.event)

    def _prepared_of(self, path: str) -> _PreparedEvent:
        prepared = self._prepared.get(path)
        if prepared is None:
            raise ValueError(
                f"{self.event.path} gave an event of {path}, which its source does not have; it has "
                f"{', '.join(self._prepared)}"
            )
        return prepared

    def _add_event(
        self,
        extracted: _ExtractedEvents,
        prepared: _PreparedEvent,
        event: Event[Any],
        parent: str | int | None = None,
        family: tuple[str, int] | None = None,
    ) -> None:
        """Add an event, then its children.

        `family` is the key of the nearest ancestor that has its own, and the index of that ancestor:
        it makes children without a key unique.
        """
        index, place = len(extracted.events), extracted.place
        if index == REQUEST_EVENTS:
            raise TooLarge(TOO_MANY)
        try:
            payload = encode(event.data)
            context = encode(event.context) if event.context else None
        except _UNENCODABLE as error:
            raise Unprocessable(
                f"event {place} of {prepared.path} cannot be written as JSON: {error}"
            ) from error
        if self._own is None:  # at a webhook, the shape of an event is not known earlier
            self._items.check_shape(payload)
            if context is not None:
                self._items.check_shape(context)
        try:
            if prepared.checks and is_plain(event.data):
                data = prepared.decode(payload)
                event = structs.replace(event, data=data) if prepared.has_conditions else event
        except msgspec.ValidationError as error:
            raise ValidationError(f"event {place} does not fit {prepared.path}: {error}") from error
        # Places begin at 1, so an event's own key (place 0) never equals the same key of a request.
        key, digest = extracted.key, extracted.digest
        if event.key is not None:
            key, digest, place = check_key(event.key), _digest(payload), 0
            family = (f"{prepared.path}:{event.key}", index)
        elif family is not None:
            key, digest, place = family[0], _digest(payload), index - family[1]
        extracted.events.append(
            NewEvent(
                prepared.path,
                payload.decode(),
                prepared.jobs(event) if prepared.has_conditions else prepared.all_jobs,
                key,
                place if key is not None else 0,
                digest,
                None if context is None else context.decode(),
                prepared.version(_checked_text("version", event.version) or extracted.version),
                _in_utc(event.sent_at),
                _checked_text("parent", event.parent) if parent is None else parent,
            )
        )
        for child in event.children:
            child_type = self._prepared_of(child.event_type)
            self._add_event(extracted, child_type, child.event, index, family)


class InvalidItem(NamedTuple):
    """An item that does not fit its model: its place among the request's events, from 1."""

    place: int
    body: bytes
    error: ValidationError


class _ExtractedEvents:
    """The events extracted from a request so far; its key with the body's digest, its version.

    `left_out` counts the invalid items: they keep their places, so that the other events have the
    same places once these are fixed.
    """

    __slots__ = ("digest", "events", "key", "left_out", "version")

    def __init__(
        self, key: str | None = None, digest: bytes | None = None, version: str | None = None
    ) -> None:
        self.events: list[NewEvent] = []
        self.left_out = 0
        self.key = key
        self.digest = digest
        self.version = version

    @property
    def place(self) -> int:
        """The place of the next event, from 1."""
        return len(self.events) + self.left_out + 1


class _PreparedEvent:
    """What is computed for a source event in advance, before its first event arrives."""

    def __init__(self, app: Blacksmith, event: AnySourceEvent) -> None:
        self.path = event.path
        self._versions = event.versions
        self.decode = decoder(event.model)
        # An extract function builds its own data; without one, the body is passed on and must be
        # validated here.
        self.checks = event.function is None and event.model is not Any
        self._flows = [
            (NewJob(destination.path), flow.when)
            for destination, flow in app.receivers.get(event.path, ())
        ]
        self.all_jobs = tuple(job for job, _ in self._flows)
        self.has_conditions = any(when is not None for _, when in self._flows)

    def version(self, version: str | None) -> str | None:
        """The version of an event. Raises `Unprocessable` for an unknown one."""
        return self._versions.of(self.path, version)

    def jobs(self, event: Event[Any]) -> Sequence[NewJob]:
        """The jobs of an event: one for each flow whose `when` accepts it."""
        jobs = []
        for job, when in self._flows:
            try:
                if when is None or when(event):
                    jobs.append(job)
            except Exception as error:  # noqa: BLE001 - the user's code; its job fails with it
                jobs.append(NewJob(job.destination, describe(error)))
        return jobs


def events_in(returned: Any, event_class: type[Any], path: str, rule: str) -> Iterator[Any]:
    """The events, one or several, that the function of `path` returned.

    Raises `TypeError` with `rule`, which says what it must return.
    """
    if isinstance(returned, event_class):
        yield returned
        return
    if isinstance(returned, Iterable) and not isinstance(returned, str | bytes | Mapping):
        for event in returned:
            if not isinstance(event, event_class):
                returned = event
                break
            yield event
        else:
            return
    raise TypeError(f"{path} gave a {type(returned).__name__}; it must return {rule}")


def destinations_to_notify(extracted: Iterable[list[NewEvent] | RawRequest]) -> list[str]:
    """The destination events that have new jobs, each once, in the order of their first job."""
    destinations = (
        job.destination
        for events in extracted
        if not isinstance(events, RawRequest)
        for event in events
        for job in event.jobs
    )
    return list(dict.fromkeys(destinations))


def check_key(key: str) -> str:
    """`key` if it is valid. Raises `Unprocessable`, and `TypeError` unless it is a str."""
    if not isinstance(key, str):
        raise TypeError(f"the key {key!r} is a {type(key).__name__}; make it a str")
    if not key or len(key) > KEY_CHARACTERS:
        raise Unprocessable(
            f"a key has 1 to {KEY_CHARACTERS} characters, this one has {len(key)}; "
            "send a digest of it instead"
        )
    _checked_text("key", key)
    return key


def _digest(content: bytes) -> bytes:
    return blake2b(content, digest_size=16).digest()


def _checked_text(name: str, text: str | None) -> str | None:
    if text is not None:
        if "\0" in text:
            raise Unprocessable(f"the {name} has a NUL character, which no database can store")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise Unprocessable(f"the {name} has half of a surrogate pair: {error}") from error
    return text


def _in_utc(sent_at: datetime | None) -> datetime | None:
    if sent_at is None:
        return None
    if sent_at.tzinfo is None:
        raise Unprocessable(
            f"sent_at {sent_at.isoformat()} has no time zone; send it with one, as in "
            "2026-01-31T12:00:00Z"
        )
    try:
        return sent_at.astimezone(UTC)
    except OverflowError as error:
        raise Unprocessable(f"sent_at {sent_at.isoformat()} is out of range in UTC") from error


def _checked_reply(path: str, reply: Reply) -> Reply:
    if not 200 <= reply.status <= 599 or not reply.content_type.isprintable():
        raise ValueError(
            f"{path} gave {reply.status} and {reply.content_type!r}: a Reply has a status from 200 "
            "to 599 and a content type of one line"
        )
    return reply
