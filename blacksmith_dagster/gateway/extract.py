"""From a request to the events that are to be kept of it. Pure: nothing is read, nothing written."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from enum import Enum
from functools import lru_cache
from hashlib import blake2b
from typing import Any, cast

import msgspec

from blacksmith_dagster.errors import (
    BadRequest,
    TooLarge,
    Unprocessable,
    UnsupportedMedia,
    describe,
)
from blacksmith_dagster.pipeline.application import Blacksmith
from blacksmith_dagster.pipeline.event import Event
from blacksmith_dagster.pipeline.source import SourceEvent
from blacksmith_dagster.pipeline.trigger import Reply, Request
from blacksmith_dagster.store.interface import NewEvent, NewJob

KEY_CHARACTERS = 512
REQUEST_EVENTS = 100_000

_ARRAY = re.compile(rb"[ \t\r\n]*\[")
_CHILDLESS = re.compile(rb"\[,*\]")
_ONE_BRACKET = bytes.maketrans(b"{}", b"[]")
_NO_BRACKET = bytes(set(range(256)) - set(b"[]{}"))
_NO_BRACKET_OR_COMMA = bytes(set(range(256)) - set(b"[]{},"))
_UNENCODABLE = (TypeError, ValueError, OverflowError, RecursionError)
_UNDECODABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

_encode = msgspec.json.Encoder().encode
_raw_items = msgspec.json.Decoder(list[msgspec.Raw]).decode


class Extractor:
    """Turns the requests that come to one source event into events with their jobs.

    >>> from blacksmith_dagster import Blacksmith, Request, Source
    >>> airport = Source("airport")
    >>> cancelled = airport.accept("cancelled")
    >>> app = Blacksmith(sources=[airport], destinations=[], since="2026-01-01")
    >>> [event.payload for event in Extractor(app, cancelled)(Request(b'[{"n": 1}, 2]'))]
    ['{"n": 1}', '2']
    """

    def __init__(self, app: Blacksmith, event: SourceEvent[Any, Any, Any]) -> None:
        self.event = event
        self._function: Callable[[Any], Any] | None = event.function
        self._event_bytes = cast(int, event.limits.event_bytes)
        self._depth = cast(int, event.limits.depth)
        self._keys = cast(int, event.limits.keys)
        self._decode = msgspec.json.Decoder(event.model).decode
        self._flows = [
            (NewJob(destination.path), flow.when)
            for destination, flow in app.receivers.get(event.path, ())
        ]
        self._all_jobs = tuple(job for job, _ in self._flows)
        self._asks = any(when is not None for _, when in self._flows)

    def __call__(self, request: Request, key: str | None = None) -> list[NewEvent] | Reply:
        """The events of a request, or the reply that its function gave; all or nothing.

        `key` is the request's `Idempotency-Key`: it stands for the whole body, and counts for the
        events that have no key of their own.

        Raises `Refused` for a request that must not be taken; whatever else the source event's
        function raises.
        """
        digest = None
        if key is not None:
            digest = _digest(request.body)
            check_key(key)
        items = self._items(request)
        if self._function is None:
            return [self._accepted(item, key, digest, place) for place, item in enumerate(items, 1)]
        made: list[NewEvent] = []
        for item in items:
            one = request if item is request.body else msgspec.structs.replace(request, body=item)
            returned = self._function(one)
            if isinstance(returned, Reply):
                return _checked_reply(self.event.path, returned)
            for event in self._events(returned):
                if len(made) == REQUEST_EVENTS:
                    raise TooLarge(_TOO_MANY)
                made.append(self._made(event, key, digest, len(made) + 1))
        return made

    def _items(self, request: Request) -> Sequence[bytes]:
        media = _media(request.headers.get("content-type", ""))
        body = request.body
        items: Sequence[bytes] = (body,)
        if media is Media.NDJSON:
            if body.count(b"\n") > REQUEST_EVENTS:
                raise TooLarge(_TOO_MANY)
            items = [line for line in map(bytes.strip, body.split(b"\n")) if line]
        elif media is Media.JSON and _ARRAY.match(body):
            items = self._split(body)
        elif media is Media.OTHER and self._function is None:
            raise UnsupportedMedia(
                f"{self.event.path} takes JSON; send it with Content-Type: application/json, or "
                "application/x-ndjson for a line an event"
            )
        for item in items:
            if len(item) > self._event_bytes:
                raise TooLarge(
                    f"an event of {len(item)} bytes is over the limit of {self._event_bytes} of "
                    f"{self.event.path}; send less in one event"
                )
            if media is not Media.OTHER or _looks_like_json(item):
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

    def _check_shape(self, item: bytes) -> None:
        # Brackets and colons inside of strings are counted too: nearly every document is below the
        # limits even so, and need not be looked at closely.
        if item.count(b"[") + item.count(b"{") <= self._depth and item.count(b":") <= self._keys:
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

    def _events(self, returned: Any) -> Iterator[Event[Any]]:
        if isinstance(returned, Event):
            yield returned
            return
        if isinstance(returned, Iterable) and not isinstance(returned, str | bytes | Mapping):
            for each in returned:
                if not isinstance(each, Event):
                    break
                yield each
            else:
                return
            returned = each
        raise TypeError(
            f"{self.event.path} gave a {type(returned).__name__}; it must return an Event, several "
            "Events, or a Reply"
        )

    def _accepted(self, item: bytes, key: str | None, digest: bytes | None, place: int) -> NewEvent:
        try:
            payload = item.decode()
            data = self._decode(item)
        except msgspec.ValidationError as error:
            raise Unprocessable(f"event {place} does not fit {self.event.path}: {error}") from error
        except _UNDECODABLE as error:
            raise BadRequest(f"event {place} is not JSON: {error}") from error
        return NewEvent(
            self.event.path,
            payload,
            self._jobs(Event(data)) if self._asks else self._all_jobs,
            key,
            place if key is not None else 0,
            digest,
        )

    def _made(
        self, event: Event[Any], key: str | None, digest: bytes | None, place: int
    ) -> NewEvent:
        try:
            payload = _encode(event.data)
            context = _encode(event.context).decode() if event.context else None
        except _UNENCODABLE as error:
            raise Unprocessable(
                f"event {place} of {self.event.path} cannot be written as JSON: {error}"
            ) from error
        if event.key is not None:
            # Places begin at 1, so that an event's own key never meets an equal one of a request.
            key, digest, place = check_key(event.key), _digest(payload), 0
        return NewEvent(
            self.event.path,
            payload.decode(),
            self._jobs(event) if self._asks else self._all_jobs,
            key,
            place if key is not None else 0,
            digest,
            context,
            _checked_text("version", event.version),
            _in_utc(event.sent_at),
            _checked_text("parent", event.parent),
        )

    def _jobs(self, event: Event[Any]) -> Sequence[NewJob]:
        made = []
        for job, when in self._flows:
            try:
                if when is None or when(event):
                    made.append(job)
            except Exception as error:  # noqa: BLE001 - the user's code; its job fails with it
                made.append(NewJob(job.destination, describe(error)))
        return made


class Media(Enum):
    """How a body is split into events."""

    JSON = "json"
    NDJSON = "ndjson"
    OTHER = "other"


@lru_cache(maxsize=64)
def _media(content_type: str) -> Media:
    essence = content_type.partition(";")[0].strip().lower()
    if essence in ("", "application/json", "text/json") or essence.endswith("+json"):
        return Media.JSON
    if essence in ("application/x-ndjson", "application/ndjson", "application/jsonl"):
        return Media.NDJSON
    return Media.OTHER


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
