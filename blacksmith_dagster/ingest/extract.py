"""From a request or a message to the events that are to be kept of it: pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from enum import Enum
from functools import lru_cache
from hashlib import blake2b
from typing import Any, NamedTuple, cast

import msgspec
from msgspec import structs

from blacksmith_dagster.errors import (
    BadRequest,
    TooLarge,
    Unprocessable,
    UnsupportedMedia,
    ValidationError,
)
from blacksmith_dagster.pipeline.application import Blacksmith
from blacksmith_dagster.pipeline.event import Event, TypedEvent
from blacksmith_dagster.pipeline.model import decoder, encode, is_plain
from blacksmith_dagster.pipeline.source import SourceEvent, Webhook
from blacksmith_dagster.pipeline.triggers import Message, Reply, Request
from blacksmith_dagster.redaction import describe
from blacksmith_dagster.store.interface import NewEvent, NewJob

VERSION_HEADER = "api-version"
"""Of a request or a message: the version of its events that name none themselves."""

KEY_CHARACTERS = 512
REQUEST_EVENTS = 100_000

_ARRAY = re.compile(rb"[ \t\r\n]*\[")
_CHILDLESS = re.compile(rb"\[,*\]")
_ONE_BRACKET = bytes.maketrans(b"{}", b"[]")
_NO_BRACKET = bytes(set(range(256)) - set(b"[]{}"))
_NO_BRACKET_OR_COMMA = bytes(set(range(256)) - set(b"[]{},"))
_UNENCODABLE = (TypeError, ValueError, OverflowError, RecursionError)
_UNDECODABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

_raw_items = msgspec.json.Decoder(list[msgspec.Raw]).decode


class Extractor:
    """Turns the requests or messages that come to one source event or webhook into events with their
    jobs.

    >>> from blacksmith_dagster import Blacksmith, Request, Source
    >>> airport = Source("airport")
    >>> cancelled = airport.accept("cancelled")
    >>> app = Blacksmith(sources=[airport], destinations=[], since="2026-01-01")
    >>> [event.payload for event in Extractor(app, cancelled)(Request(b'[{"n": 1}, 2]'))]
    ['{"n": 1}', '2']
    """

    def __init__(self, app: Blacksmith, event: SourceEvent[Any, Any, Any] | Webhook) -> None:
        self.event = event
        self._function: Callable[[Any], Any] | None = event.function
        self._event_bytes = cast(int, event.limits.event_bytes)
        self._depth = cast(int, event.limits.depth)
        self._keys = cast(int, event.limits.keys)
        self._prepared = {
            each.path: _PreparedEvent(app, each) for each in event.source.events.values()
        }
        # What its own events are made with; `None` at a webhook, where each names its event type.
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
        and counts for the events that have no key of their own. If `invalid` is given,
        items that do not fit their model are added to it, and the others become events.

        Raises `RequestError` for what is rejected; whatever else the source event's function raises.
        """
        digest = None
        if key is not None:
            digest = _digest(request.body)
            check_key(key)
        version = request.headers.get(VERSION_HEADER)
        made = _ExtractedEvents(key, digest, version)
        if isinstance(request, Message) or self._own is None:
            items: Sequence[bytes] = (request.body,)
            self._check_size(request.body)
            if self._own is not None and _looks_like_json(request.body):
                self._check_shape(request.body)
        else:
            items = self._items(request)
        for item in items:
            before = len(made.events)
            try:
                if self._function is None:
                    self._accept(made, item)
                    continue
                one = request if item is request.body else structs.replace(request, body=item)
                returned = self._function(one)
                if isinstance(returned, Reply) and isinstance(request, Request):
                    return _checked_reply(self.event.path, returned)
                self._add(made, returned)
            except ValidationError as error:
                if invalid is None:
                    raise
                del made.events[before:]
                invalid.append(InvalidItem(made.place, item, error))
                made.left_out += 1
        return made.events

    def events(self, returned: Any) -> list[NewEvent]:
        """The events of what a function has returned that was handed neither: a poll or a listener.

        Raises `RequestError` for one that can't be kept, and `TypeError` for what is none.
        """
        made = _ExtractedEvents()
        self._add(made, returned)
        return made.events

    def _items(self, request: Request) -> Sequence[bytes]:
        body_format = _body_format(request.headers.get("content-type", ""))
        body = request.body
        items: Sequence[bytes] = (body,)
        if body_format is BodyFormat.NDJSON:
            if body.count(b"\n") > REQUEST_EVENTS:
                raise TooLarge(_TOO_MANY)
            items = [line for line in map(bytes.strip, body.split(b"\n")) if line]
        elif body_format is BodyFormat.JSON and _ARRAY.match(body):
            items = self._split(body)
        elif body_format is BodyFormat.OTHER and self._function is None:
            raise UnsupportedMedia(
                f"{self.event.path} accepts JSON; send it with Content-Type: application/json, or "
                "application/x-ndjson for a line an event"
            )
        for item in items:
            self._check_size(item)
            if body_format is not BodyFormat.OTHER or _looks_like_json(item):
                self._check_shape(item)
        return items

    def _split(self, array: bytes) -> list[bytes]:
        # A list of millions of tiny items would take fifty times the body's size: they are counted
        # first, and exactly only where commas are many.
        if array.count(b",") >= REQUEST_EVENTS:
            text = _without_strings(array).translate(_ONE_BRACKET, _NO_BRACKET_OR_COMMA)[1:-1]
            for _ in range(self._depth):
                text = _CHILDLESS.sub(b"", text)
            if text.count(b",") >= REQUEST_EVENTS:
                raise TooLarge(_TOO_MANY)
        try:
            return [bytes(item) for item in _raw_items(array)]
        except RecursionError as error:
            raise Unprocessable(self._too_deep) from error
        except msgspec.DecodeError as error:
            raise BadRequest(f"the body is not JSON: {error}") from error

    def _check_size(self, item: bytes) -> None:
        if len(item) > self._event_bytes:
            what = "an event" if self._own is not None else "a request"
            raise TooLarge(
                f"{what} of {len(item)} bytes is over the limit of {self._event_bytes} of "
                f"{self.event.path}; send less at once"
            )

    def _check_shape(self, item: bytes) -> None:
        # Brackets and colons inside of strings are counted too: nearly every document is below the
        # limits even so, and need not be looked at closely. A key takes four bytes at least: "":0
        few = len(item) <= 4 * self._keys or item.count(b":") <= self._keys
        if few and item.count(b"[") + item.count(b"{") <= self._depth:
            return
        bare = _without_strings(item)
        if bare.count(b":") > self._keys:
            raise Unprocessable(
                f"an event has more than {self._keys} keys, the limit of {self.event.path}; "
                "send fewer"
            )
        brackets = bare.translate(_ONE_BRACKET, _NO_BRACKET)
        for _ in range(self._depth):
            brackets = brackets.replace(b"[]", b"")  # the innermost level of what is left
        if brackets:
            raise Unprocessable(self._too_deep)

    @property
    def _too_deep(self) -> str:
        return (
            f"an event is nested deeper than {self._depth} levels, the limit of {self.event.path}, "
            "or its brackets do not match"
        )

    def _accept(self, made: _ExtractedEvents, item: bytes) -> None:
        prepared, place = cast(_PreparedEvent, self._own), made.place
        try:
            payload = item.decode()
            data = prepared.decode(item)
        except msgspec.ValidationError as error:
            raise ValidationError(f"event {place} does not fit {prepared.path}: {error}") from error
        except _UNDECODABLE as error:
            raise BadRequest(f"event {place} is not JSON: {error}") from error
        made.events.append(
            NewEvent(
                prepared.path,
                payload,
                prepared.jobs(Event(data)) if prepared.asks else prepared.all_jobs,
                made.key,
                place if made.key is not None else 0,
                made.digest,
                None,
                prepared.version(made.version),
            )
        )

    def _add(self, made: _ExtractedEvents, returned: Any) -> None:
        """Add what a function has returned: events, or typed events at a webhook."""
        wanted = TypedEvent if self._own is None else Event
        for each in self._several(returned, wanted):
            if isinstance(each, TypedEvent):
                self._add_event(made, self._prepared_of(each.event_type), each.event)
            else:
                self._add_event(made, cast(_PreparedEvent, self._own), each)

    def _several(self, returned: Any, wanted: type[Any]) -> Iterator[Any]:
        if isinstance(returned, wanted):
            yield returned
            return
        if isinstance(returned, Iterable) and not isinstance(returned, str | bytes | Mapping):
            for each in returned:
                if not isinstance(each, wanted):
                    break
                yield each
            else:
                return
            returned = each
        must = "an Event, several Events, or a Reply"
        if self._own is None:
            must = "what SourceEvent.of makes, several of it, or a Reply"
        raise TypeError(
            f"{self.event.path} gave a {type(returned).__name__}; it must return {must}"
        )

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
        made: _ExtractedEvents,
        prepared: _PreparedEvent,
        event: Event[Any],
        parent: str | int | None = None,
        family: tuple[str, int] | None = None,
    ) -> None:
        """Add an event, then its children.

        `family` is the key of the nearest ancestor that has one of its own, and the place of that
        one: children that have no key are made once with it.
        """
        index, place = len(made.events), made.place
        if index == REQUEST_EVENTS:
            raise TooLarge(_TOO_MANY)
        try:
            payload = encode(event.data)
            context = encode(event.context) if event.context else None
        except _UNENCODABLE as error:
            raise Unprocessable(
                f"event {place} of {prepared.path} cannot be written as JSON: {error}"
            ) from error
        if self._own is None:  # its request has many events, and this is the shape of one
            self._check_shape(payload)
            if context is not None:
                self._check_shape(context)
        try:
            if prepared.checks and is_plain(event.data):
                data = prepared.decode(payload)
                event = structs.replace(event, data=data) if prepared.asks else event
        except msgspec.ValidationError as error:
            raise ValidationError(f"event {place} does not fit {prepared.path}: {error}") from error
        # Places begin at 1, so that an event's own key never meets an equal one of a request.
        key, digest = made.key, made.digest
        if event.key is not None:
            key, digest, place = check_key(event.key), _digest(payload), 0
            family = (f"{prepared.path}:{event.key}", index)
        elif family is not None:
            key, digest, place = family[0], _digest(payload), index - family[1]
        made.events.append(
            NewEvent(
                prepared.path,
                payload.decode(),
                prepared.jobs(event) if prepared.asks else prepared.all_jobs,
                key,
                place if key is not None else 0,
                digest,
                None if context is None else context.decode(),
                prepared.version(_checked_text("version", event.version) or made.version),
                _in_utc(event.sent_at),
                _checked_text("parent", event.parent) if parent is None else parent,
            )
        )
        for child in event.children:
            self._add_event(made, self._prepared_of(child.event_type), child.event, index, family)


class InvalidItem(NamedTuple):
    """An item that does not fit its model: its place among the request's events, from 1."""

    place: int
    body: bytes
    error: ValidationError


class _ExtractedEvents:
    """The events that one request has made so far; its key with the body's digest, its version.

    `left_out` is how many items do not fit: they keep their places, so that the others have the same
    ones once they do.
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
        """That of the next event, from 1."""
        return len(self.events) + self.left_out + 1


class _PreparedEvent:
    """A source event, prepared before any event of it has come."""

    def __init__(self, app: Blacksmith, event: SourceEvent[Any, Any, Any]) -> None:
        self.path = event.path
        self._versions = event.versions
        self.decode = decoder(event.model)
        # A function that is annotated has made its data itself; others hand on what has come.
        self.checks = event.function is None and event.model is not Any
        self._flows = [
            (NewJob(destination.path), flow.when)
            for destination, flow in app.receivers.get(event.path, ())
        ]
        self.all_jobs = tuple(job for job, _ in self._flows)
        self.asks = any(when is not None for _, when in self._flows)

    def version(self, given: str | None) -> str | None:
        """The version of an event. Raises `Unprocessable` for an unknown one."""
        return self._versions.of(self.path, given)

    def jobs(self, event: Event[Any]) -> Sequence[NewJob]:
        """The jobs that its flows want of it."""
        made = []
        for job, when in self._flows:
            try:
                if when is None or when(event):
                    made.append(job)
            except Exception as error:  # noqa: BLE001 - the user's code; its job fails with it
                made.append(NewJob(job.destination, describe(error)))
        return made


class BodyFormat(Enum):
    """How a body is split into events."""

    JSON = "json"
    NDJSON = "ndjson"
    OTHER = "other"


@lru_cache(maxsize=64)
def _body_format(content_type: str) -> BodyFormat:
    essence = content_type.partition(";")[0].strip().lower()
    if essence in ("", "application/json", "text/json") or essence.endswith("+json"):
        return BodyFormat.JSON
    if essence in ("application/x-ndjson", "application/ndjson", "application/jsonl"):
        return BodyFormat.NDJSON
    return BodyFormat.OTHER


def _looks_like_json(body: bytes) -> bool:
    # curl sends JSON as a form unless it is told otherwise, and a function may read it as JSON.
    bare = body.strip()
    return bare.startswith((b"{", b"[")) and bare.endswith((b"}", b"]"))


def check_key(key: str) -> str:
    """`key` if it can be one; raises `Unprocessable`, and `TypeError` if it is no text."""
    if not isinstance(key, str):
        raise TypeError(f"the key {key!r} is a {type(key).__name__}; make it a str")
    if not key or len(key) > KEY_CHARACTERS:
        raise Unprocessable(
            f"a key has 1 to {KEY_CHARACTERS} characters, this one has {len(key)}; "
            "send a digest of it instead"
        )
    _checked_text("key", key)
    return key


_TOO_MANY = f"a request holds at most {REQUEST_EVENTS} events; send several requests"


def _without_strings(json: bytes) -> bytes:
    unescaped = json.replace(b"\\\\", b"").replace(b'\\"', b"")
    return b"".join(unescaped.split(b'"')[::2])


def _digest(content: bytes) -> bytes:
    return blake2b(content, digest_size=16).digest()


def _checked_text(what: str, text: str | None) -> str | None:
    if text is not None:
        if "\0" in text:
            raise Unprocessable(f"the {what} has a NUL character, which no database keeps")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise Unprocessable(f"the {what} has half of a surrogate pair: {error}") from error
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
