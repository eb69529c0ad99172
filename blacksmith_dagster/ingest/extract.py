"""Extracts the events of a request or a message, each with the jobs that it needs: pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any, TypeVar, cast

import msgspec
from msgspec import structs

from blacksmith_dagster.errors import (
    BadRequest,
    RequestError,
    TooLarge,
    Unprocessable,
    ValidationError,
)
from blacksmith_dagster.ingest.items import (
    KEY_CHARACTERS,
    REQUEST_EVENTS,
    TOO_MANY,
    ItemSplitter,
    looks_like_json,
    name_item,
)
from blacksmith_dagster.ingest.quarantine import item_of, key_of, raw_request_of
from blacksmith_dagster.pipeline.application import Blacksmith
from blacksmith_dagster.pipeline.event import Event, InvalidItem, TypedEvent
from blacksmith_dagster.pipeline.model import check_json, decoder, encode, is_plain
from blacksmith_dagster.pipeline.source import AnySourceEvent, Webhook
from blacksmith_dagster.pipeline.triggers import Message, Reply, Request
from blacksmith_dagster.redaction import describe
from blacksmith_dagster.store.records import NewEvent, NewJob, RawRequest

VERSION_HEADER = "api-version"
"""The header with the version of those events that name none."""

T = TypeVar("T")
_KEPT_BYTES, _KEPT_TIMES = 1024 * 1024, 8
_UNENCODABLE = (TypeError, ValueError, OverflowError, RecursionError)
_UNDECODABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class Extracted(msgspec.Struct, frozen=True):
    """What a request or a message is turned into.

    - `reply`: what its function responds at once; then there are no events.
    - `quarantined`: the items that do not fit their model, if those go to quarantine.
    """

    events: list[NewEvent]
    quarantined: Sequence[RawRequest] = ()
    reply: Reply | None = None


class Extractor:
    """Turns the requests or messages to one source event or webhook into events with their jobs.

    With `quarantines_invalid`, an item that does not fit its model goes to quarantine instead of
    rejecting its request.

    >>> from blacksmith_dagster import Blacksmith, Request, Source
    >>> airport = Source("airport")
    >>> cancelled = airport.accept("cancelled")
    >>> app = Blacksmith(sources=[airport], destinations=[])
    >>> extracted = Extractor(app, cancelled).extract(Request(b'[{"n": 1}, 2]'))
    >>> [event.payload for event in extracted.events]
    ['{"n": 1}', '2']
    """

    def __init__(
        self,
        app: Blacksmith,
        event: AnySourceEvent | Webhook,
        *,
        quarantines_invalid: bool = False,
    ) -> None:
        self.event = event
        self._quarantines_invalid = quarantines_invalid
        self._function: Callable[[Any], Any] | None = event.function
        self._items = ItemSplitter(event)
        events = event.source.events.values()
        self._prepared = {own.path: _PreparedEvent(app, own) for own in events}
        # For the source event's own events; `None` at a webhook, where each event names its type.
        self._own = self._prepared.get(event.path)
        self._returns: tuple[Any, str, str] = (
            (
                (TypedEvent, InvalidItem),
                event.path,
                "an event made by SourceEvent.of, several of them, or a Reply",
            )
            if self._own is None
            else (Event, event.path, "an Event, several Events, or a Reply")
        )

    def extract(self, request: Request | Message) -> Extracted:
        """The events of a request or a message, or the reply that its function gave to a request; all
        or nothing.

        The request's `Idempotency-Key`, or the message's id, stands for the whole body, and applies to
        the events that have no key of their own.

        Raises `RequestError` for what is rejected, and what the source event's function raises.
        """
        facts = _facts_of(request)
        request = self._items.without_mark(request)
        events: list[NewEvent] = []
        quarantined: list[RawRequest] = []
        # Items of a batch are kept with what they share, which may be most of it.
        kept_bytes, most_kept = 0, _KEPT_BYTES + _KEPT_TIMES * len(request.body)

        def quarantine(invalid: InvalidItem, place: int) -> None:
            nonlocal kept_bytes
            if not self._quarantines_invalid:
                raise invalid.error
            kept_bytes += len(invalid.body)
            if len(quarantined) == REQUEST_EVENTS or kept_bytes > most_kept:
                raise TooLarge(
                    f"{len(quarantined)} and more items do not fit {self.event.path}, which is too much "
                    "to keep in quarantine; send fewer at once"
                )
            kept = item_of(request, invalid.body, place)
            quarantined.append(raw_request_of(self.event.path, kept, invalid.error))

        items = self._split(request)
        for number, item in enumerate(items, 1):
            # Items in quarantine keep their places, so that the others have the same once it is fixed.
            place = len(events) + len(quarantined) + 1
            before = len(quarantined)
            try:
                if self._function is None:
                    events.append(self._accepted(item, place, facts))
                    continue
                whole = item is request.body
                try:
                    returned = self._function(
                        request if whole else structs.replace(request, body=item)
                    )
                    if isinstance(returned, Reply) and isinstance(request, Request):
                        return Extracted([], reply=_checked_reply(self.event.path, returned))
                    events += self._events_of(returned, len(events), place, facts, quarantine)
                except RequestError as error:
                    name_item(error, number, items)
                    raise
            except ValidationError as error:
                del quarantined[before:]  # they are in the item
                quarantine(InvalidItem(item, error), place)
        return Extracted(events, quarantined)

    def extract_returned(self, returned: Any) -> list[NewEvent]:
        """The events that the function of a poll or a listener has returned.

        Raises `RequestError` for one that cannot be stored, and `TypeError` for anything else.
        """
        return self._events_of(returned, 0, 1, _NO_FACTS, _raise_invalid)

    def _split(self, request: Request | Message) -> Sequence[bytes]:
        if self._own is not None and isinstance(request, Request):
            return self._items.split(request)
        self._items.check_size(request.body)
        if self._own is not None and looks_like_json(request.body):
            self._items.check_shape(request.body)
        return (request.body,)

    def _accepted(self, item: bytes, place: int, facts: _RequestFacts) -> NewEvent:
        """The event of an item, without a function."""
        prepared = cast(_PreparedEvent, self._own)
        try:
            payload = item.decode()
            try:
                data = prepared.decode(item)
            except msgspec.ValidationError as error:
                check_json(item)
                raise ValidationError(
                    f"event {place} does not fit {prepared.path}: {error}"
                ) from error
        except _UNDECODABLE as error:
            raise BadRequest(f"event {place} is not JSON: {error}") from error
        return NewEvent(
            prepared.path,
            payload,
            prepared.jobs(Event(data)) if prepared.has_conditions else prepared.all_jobs,
            facts.key,
            place if facts.key is not None else 0,
            facts.digest,
            None,
            prepared.version(facts.version),
        )

    def _events_of(
        self,
        returned: Any,
        index: int,
        place: int,
        facts: _RequestFacts,
        quarantine: Callable[[InvalidItem, int], None],
    ) -> list[NewEvent]:
        """The events that a function has returned, each followed by its children and theirs.

        `index` and `place` are those of the first: among the request's events, and among its events and
        items in quarantine. `quarantine` is called with each invalid item and its place.
        """
        events: list[NewEvent] = []
        own = self._own
        for root in events_in(returned, *self._returns):
            if isinstance(root, InvalidItem):
                quarantine(root, place + len(events))
                place += 1
                continue
            waiting = [self._member(root) if own is None else _Member(own, root)]
            while waiting:
                member = waiting.pop()
                at = len(events)
                if index + at == REQUEST_EVENTS:
                    raise TooLarge(TOO_MANY)
                events.append(self._new_event(member, index + at, place + at, facts))
                if member.event.children:
                    waiting += self._children(member, index + at)
        return events

    def _children(self, parent: _Member, index: int) -> list[_Member]:
        """The children of an event, the last first."""
        family = parent.family
        if parent.event.key is not None:
            family = (f"{parent.prepared.path}:{parent.event.key}", index)
        return [self._member(child, index, family) for child in [*parent.event.children][::-1]]

    def _member(
        self,
        typed: TypedEvent,
        parent: int | None = None,
        family: tuple[str, int] | None = None,
    ) -> _Member:
        prepared = self._prepared.get(typed.event_type)
        if prepared is None:
            raise ValueError(
                f"{self.event.path} gave an event of {typed.event_type}, which its source does not "
                f"have; it has {', '.join(self._prepared)}"
            )
        return _Member(prepared, typed.event, parent, family)

    def _new_event(self, member: _Member, index: int, place: int, facts: _RequestFacts) -> NewEvent:
        prepared, event, parent = member.prepared, member.event, member.parent
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
            needed = prepared.has_conditions and isinstance(event.data, msgspec.Raw)
            if needed or (prepared.checks and is_plain(event.data)):
                data = prepared.decode(payload)
                event = structs.replace(event, data=data) if prepared.has_conditions else event
        except msgspec.ValidationError as error:
            raise ValidationError(f"event {place} does not fit {prepared.path}: {error}") from error
        key, ordinal, digest = _identity(member, payload, index, place, facts)
        return NewEvent(
            prepared.path,
            payload.decode(),
            prepared.jobs(event) if prepared.has_conditions else prepared.all_jobs,
            key,
            ordinal,
            digest,
            None if context is None else context.decode(),
            prepared.version(_checked_text("version", event.version) or facts.version),
            _in_utc(event.sent_at),
            _checked_text("parent", event.parent) if parent is None else parent,
        )


class _RequestFacts(msgspec.Struct, frozen=True):
    """What applies to the events of a request that do not say it themselves."""

    key: str | None = None
    digest: bytes | None = None
    version: str | None = None


_NO_FACTS = _RequestFacts()


def _facts_of(request: Request | Message) -> _RequestFacts:
    key, version = key_of(request), request.headers.get(VERSION_HEADER)
    if key is None:
        return _NO_FACTS if version is None else _RequestFacts(version=version)
    return _RequestFacts(check_key(key), _digest(request.body), version)


class _Member(msgspec.Struct, frozen=True, gc=False):
    """An event that a function has returned, or a child of one.

    `parent` is its parent's index in the request. `family` is the key of the nearest ancestor that has
    its own, and that ancestor's index: it makes children without a key unique.
    """

    prepared: _PreparedEvent
    event: Event[Any]
    parent: int | None = None
    family: tuple[str, int] | None = None


def _identity(
    member: _Member, payload: bytes, index: int, place: int, facts: _RequestFacts
) -> tuple[str | None, int, bytes | None]:
    """An event's idempotency key, its place under that key, and the digest of what the key stands for.

    Places begin at 1, so an event's own key (place 0) never equals the same key of a request.
    """
    if member.event.key is not None:
        return check_key(member.event.key), 0, _digest(payload)
    if member.family is not None:
        key, ancestor = member.family
        return key, index - ancestor, _digest(payload)
    return facts.key, place if facts.key is not None else 0, facts.digest


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


def _raise_invalid(invalid: InvalidItem, place: int) -> None:  # noqa: ARG001
    raise invalid.error


def events_in(returned: Any, event_class: type[T], path: str, rule: str) -> Iterable[T]:
    """The events, one or several, that the function of `path` returned.

    Raises `TypeError` with `rule`, which says what it must return.
    """
    return (
        (returned,)
        if isinstance(returned, event_class)
        else _several(returned, event_class, path, rule)
    )


def _several(returned: Any, event_class: type[T], path: str, rule: str) -> Iterator[T]:
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
