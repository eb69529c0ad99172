"""Segment's HTTP tracking API."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeAlias, Unpack

import msgspec

from blacksmith_dagster.errors import ValidationError
from blacksmith_dagster.pipeline.access import WriteKey
from blacksmith_dagster.pipeline.event import TypedEvent
from blacksmith_dagster.pipeline.source import Properties, Source, SourceEvent, WebhookResult
from blacksmith_dagster.pipeline.triggers import HTTP, Reply, Request
from blacksmith_dagster.redaction import Secret
from blacksmith_dagster.sources.typed import parse_time, proved_by, several

_Message: TypeAlias = dict[str, Any]

_SUCCESS = Reply(200, '{"success": true}', "application/json")
# Segment's own rules: what a call cannot do without, besides an id of the user.
_NEEDS = {
    "track": ("event",),
    "identify": (),
    "page": (),
    "screen": (),
    "group": ("groupId",),
    "alias": ("previousId", "userId"),
}
# The event's own; and of how a message was sent, which differs when it is sent again.
_APART = ("context", "writeKey", "sentAt", "_metadata")


class SegmentSource(Source):
    """What Segment's libraries send, and whatever else speaks its HTTP tracking API.

    - `write_key`: as basic authentication or in the body; several while one is replaced by another.
    - `path`: what the API's paths begin with (`/v1`): `/v1/track`, `/v1/batch`, ..., and the short
      ones that browsers use, `/v1/t`, `/v1/b`. A second source of one gateway needs another.

    Its events are `track`, `identify`, `page`, `screen`, `group` and `alias`. `messageId` is the key.
    An event's data is the message, without its `context`, which is the event's, and without what is
    of the sending. `sent_at` is `timestamp`, by the sender's clock set right as Segment does it: the
    time of arrival - (`sentAt` - `timestamp`).

    A batch is all or nothing: one bad message rejects it with 422 and its place, unless
    `invalid="quarantine"`. The response is 200 `{"success": true}`.

    >>> segment = SegmentSource("shop", write_key=Secret("SEGMENT_KEY"))
    >>> segment.track.path
    'shop/track'

    Raises `DeclarationError`.
    """

    def __init__(
        self,
        name: str,
        *,
        write_key: Secret | Sequence[Secret],
        path: str = "/v1",
        **given: Unpack[Properties],
    ) -> None:
        key = SegmentKey(*several(write_key))
        super().__init__(name, **proved_by(key, name, given))
        self.track: SourceEvent[_Message, Any, Any] = self.child("track")
        self.identify: SourceEvent[_Message, Any, Any] = self.child("identify")
        self.page: SourceEvent[_Message, Any, Any] = self.child("page")
        self.screen: SourceEvent[_Message, Any, Any] = self.child("screen")
        self.group: SourceEvent[_Message, Any, Any] = self.child("group")
        self.alias: SourceEvent[_Message, Any, Any] = self.child("alias")
        readers = {kind: self._reader(kind) for kind in _NEEDS} | {"batch": self._batch}
        for named, read in readers.items():
            for at in (named, named[0]):
                self.webhook(HTTP(f"{path}/{at}"), response=_SUCCESS)(read)

    def _reader(self, kind: str) -> Callable[[Request], WebhookResult]:
        def one(request: Request) -> TypedEvent:
            """A message of Segment's HTTP tracking API."""
            message = request.json(dict)
            if message.setdefault("type", kind) != kind:
                raise _invalid(f"a message of the type {kind!r} is needed", "$.type")
            return self._typed_event(message, "$", _received(request), None, {})

        return one

    def _batch(self, request: Request) -> Sequence[TypedEvent]:
        """Messages of Segment's HTTP tracking API."""
        body = request.json(dict)
        messages = body.get("batch")
        if not isinstance(messages, list):
            raise _invalid("an array is needed", "$.batch")
        received, sent = _received(request), parse_time(body.get("sentAt"), "$.sentAt")
        shared = _object(body, "context", "$")
        return [
            self._typed_event(message, f"$.batch[{place}]", received, sent, shared)
            for place, message in enumerate(messages)
        ]

    def _typed_event(
        self,
        message: Any,
        at: str,
        received: datetime,
        sent: datetime | None,
        shared: Mapping[str, Any],
    ) -> TypedEvent:
        """The event of a message; `sent` and `shared` are said once for all of a batch."""
        if not isinstance(message, dict):
            raise _invalid("an object is needed", at)
        kind = message.get("type")
        if not isinstance(kind, str) or kind not in _NEEDS:
            raise _invalid(f"one of {', '.join(_NEEDS)} is needed", f"{at}.type")
        if not (message.get("userId") or message.get("anonymousId")):
            raise _invalid("a userId or an anonymousId is needed", at)
        for field in _NEEDS[kind]:
            if not message.get(field):
                raise _invalid(f"a call of {kind} needs it", f"{at}.{field}")
        key = message.get("messageId")
        if key is not None and not isinstance(key, str):
            raise _invalid("a text is needed", f"{at}.messageId")
        context = _object(message, "context", at)
        happened = parse_time(
            message.get("timestamp") or message.get("originalTimestamp"), f"{at}.timestamp"
        )
        if "sentAt" in message:
            sent = parse_time(message["sentAt"], f"{at}.sentAt")
        if happened is not None and sent is not None:
            try:
                happened = received - (sent - happened)
            except OverflowError as error:
                raise _invalid("this is out of range beside sentAt", f"{at}.timestamp") from error
        for field in _APART:
            message.pop(field, None)
        return self.events[kind].of(
            message,
            key=key,
            sent_at=happened,
            context={**shared, **context} if shared else context,
        )


class SegmentKey(WriteKey):
    """A key as Segment's libraries send it: in the header, or in the body where a page may not."""

    def admit(self, headers: Mapping[bytes, bytes]) -> None:
        if b"authorization" in headers:
            super().admit(headers)

    def verify(self, headers: Mapping[bytes, bytes], body: bytes) -> str | None:
        if b"authorization" not in headers:
            try:
                given = _key_of(body).writeKey
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                given = ""
            basic = base64.b64encode(f"{given}:".encode("utf-8", "surrogatepass"))
            super().admit({b"authorization": b"Basic " + basic})
        return None


class _WriteKeyField(msgspec.Struct):
    writeKey: str = ""  # noqa: N815 - as it is sent


_key_of = msgspec.json.Decoder(_WriteKeyField).decode


def _object(body: Mapping[str, Any], field: str, at: str) -> Mapping[str, Any]:
    value = body.get(field)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _invalid("an object is needed", f"{at}.{field}")
    return value


def _invalid(why: str, at: str) -> ValidationError:
    return ValidationError(f"the body does not fit: {why} - at `{at}`")


def _received(request: Request) -> datetime:
    return request.received_at or datetime.now(UTC)
