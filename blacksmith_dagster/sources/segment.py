"""Segment's HTTP tracking API."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeAlias, Unpack

import msgspec

from blacksmith_dagster.errors import BadRequest, ValidationError
from blacksmith_dagster.pipeline.access import WriteKey
from blacksmith_dagster.pipeline.event import InvalidItem, TypedEvent
from blacksmith_dagster.pipeline.model import without_mark
from blacksmith_dagster.pipeline.source import Source, SourceEvent, SourceProperties, WebhookResult
from blacksmith_dagster.pipeline.triggers import HTTP, Reply, Request
from blacksmith_dagster.redaction import Secret
from blacksmith_dagster.sources.senders import (
    KEY,
    TEXT,
    TIME,
    as_secrets,
    invalid_body,
    json_object,
    operation_fields,
    parse_time,
    with_auth,
)

_Message: TypeAlias = dict[str, Any]

_SUCCESS = Reply(200, '{"success": true}', "application/json")
# The fields that Segment requires for each type, besides an id of the user.
_REQUIRED = {
    "track": ("event",),
    "identify": (),
    "page": (),
    "screen": (),
    "group": ("groupId",),
    "alias": ("previousId", "userId"),
}
# Not in the data: context is the event's, the others differ when the message is sent again.
_NOT_DATA = ("context", "writeKey", "sentAt", "_metadata")


class SegmentSource(Source):
    """Events of the libraries of Segment and RudderStack, and of others that use Segment's tracking API.

    - `write_key`: sent as basic authentication or in the body; several while a new one replaces an old
      one.
    - `path`: the prefix of the API's paths (`/v1`): `/v1/track`, `/v1/batch`, ..., and the short paths
      that browsers use, `/v1/t`, `/v1/b`. A second source in the same gateway needs another prefix.

    Its events are `track`, `identify`, `page`, `screen`, `group` and `alias`. `messageId` is the key.
    An event's data is the message, without its `context`, which is the event's, and without the fields
    about the sending. The header `AnonymousId`, which RudderStack's libraries send, is kept in the
    context, as `{"headers": {"AnonymousId": ...}}`. `sent_at` is `timestamp`, corrected for the sender's
    clock as Segment does it: the time of arrival - (`sentAt` - `timestamp`).

    A message that is not valid goes to quarantine, and the others of its batch are ingested: Segment's
    libraries drop a batch that is rejected. With `on_invalid="reject"` it rejects its batch with 422.
    The response is 200 `{"success": true}`.

    >>> segment = SegmentSource("shop", write_key=Secret("SEGMENT_KEY"))
    >>> segment.track.path
    'shop/track'

    Raises `DeclarationError`.
    """

    on_invalid = "quarantine"

    def __init__(
        self,
        name: str,
        *,
        write_key: Secret | Sequence[Secret],
        path: str = "/v1",
        **properties: Unpack[SourceProperties],
    ) -> None:
        key = SegmentKey(*as_secrets(write_key))
        super().__init__(name, **with_auth(key, name, properties))
        self.track: SourceEvent[_Message, Any, Any] = self.child("track")
        self.identify: SourceEvent[_Message, Any, Any] = self.child("identify")
        self.page: SourceEvent[_Message, Any, Any] = self.child("page")
        self.screen: SourceEvent[_Message, Any, Any] = self.child("screen")
        self.group: SourceEvent[_Message, Any, Any] = self.child("group")
        self.alias: SourceEvent[_Message, Any, Any] = self.child("alias")
        messages = {type_: _message_schema(type_) for type_ in _REQUIRED}
        batch = {"type": "array", "items": {"oneOf": [*messages.values()]}}
        endpoints = {
            **{type_: (self._reader(type_), messages[type_]) for type_ in _REQUIRED},
            "batch": (self._batch, json_object(("batch",), batch=batch, sentAt=TIME)),
        }
        for endpoint, (reader, schema) in endpoints.items():
            describe = partial(operation_fields, {"application/json": schema})
            for segment in (endpoint, endpoint[0]):
                on = HTTP(f"{path}/{segment}")
                self.webhook(on, response=_SUCCESS, describe=describe)(reader)

    def _reader(self, type_: str) -> Callable[[Request], WebhookResult]:
        def read(request: Request) -> TypedEvent:
            """A message of Segment's HTTP tracking API."""
            message = request.json(dict)
            if message.setdefault("type", type_) != type_:
                raise invalid_body(f"a message of the type {type_!r} is needed", "$.type")
            return self._typed_event(message, "$", _received_at(request), None, _kept(request))

        return read

    def _batch(self, request: Request) -> Sequence[TypedEvent | InvalidItem]:
        """Messages of Segment's HTTP tracking API."""
        is_json = True
        try:
            body = request.json(dict)
        except (BadRequest, ValidationError):
            body, is_json = _not_quite_json(request.body) or request.json(dict), False
        messages = body.get("batch")
        if not isinstance(messages, list):
            if not is_json:
                request.json(dict)
            raise invalid_body("an array is needed", "$.batch")
        received_at = _received_at(request)
        sent_at = parse_time(body.get("sentAt"), "$.sentAt")
        shared = {**_kept(request), **_object(body, "context", "$")}
        if not is_json:
            _check_numbers(shared, "$.context")
        events: list[TypedEvent | InvalidItem] = []
        for index, message in enumerate(messages):
            place = f"$.batch[{index}]"
            sent = dict(message) if isinstance(message, dict) else message
            try:
                if not is_json:
                    _check_numbers(message, place)
                events.append(self._typed_event(message, place, received_at, sent_at, shared))
            except ValidationError as error:
                alone = json.dumps({**body, "batch": [sent]}).encode()
                events.append(InvalidItem(alone, error))
        return events

    def _typed_event(
        self,
        message: Any,
        place: str,
        received_at: datetime,
        sent_at: datetime | None,
        shared_context: Mapping[str, Any],
    ) -> TypedEvent:
        """The event of a message; a request has one `sent_at` and `shared_context` for all of them."""
        if not isinstance(message, dict):
            raise invalid_body("an object is needed", place)
        type_ = message.get("type")
        if not isinstance(type_, str) or type_ not in _REQUIRED:
            raise invalid_body(f"one of {', '.join(_REQUIRED)} is needed", f"{place}.type")
        if not (message.get("userId") or message.get("anonymousId")):
            raise invalid_body("a userId or an anonymousId is needed", place)
        for field in _REQUIRED[type_]:
            if not message.get(field):
                raise invalid_body(f"a call of {type_} needs it", f"{place}.{field}")
        key = message.get("messageId")
        if key is not None and not isinstance(key, str):
            raise invalid_body("a text is needed", f"{place}.messageId")
        context = _object(message, "context", place)
        happened_at = parse_time(
            message.get("timestamp") or message.get("originalTimestamp"), f"{place}.timestamp"
        )
        if "sentAt" in message:
            sent_at = parse_time(message["sentAt"], f"{place}.sentAt")
        if happened_at is not None and sent_at is not None:
            try:
                happened_at = received_at - (sent_at - happened_at)
            except OverflowError as error:
                raise invalid_body("this is too far from sentAt", f"{place}.timestamp") from error
        for field in _NOT_DATA:
            message.pop(field, None)
        return self.events[type_].of(
            message,
            key=key,
            sent_at=happened_at,
            context={**shared_context, **context} if shared_context else context,
        )


class SegmentKey(WriteKey):
    """A key as Segment's libraries send it: in the header, or in the body (web pages set no header)."""

    def admit(self, headers: Mapping[bytes, bytes]) -> None:
        if b"authorization" in headers:
            super().admit(headers)

    def verify(self, headers: Mapping[bytes, bytes], body: bytes) -> str | None:
        if b"authorization" not in headers:
            try:
                key = _decode_key(without_mark(body)).writeKey
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                key = str(_not_quite_json(body).get("writeKey", ""))
            basic = base64.b64encode(f"{key}:".encode("utf-8", "surrogatepass"))
            super().admit({b"authorization": b"Basic " + basic})
        return None


class _WriteKeyField(msgspec.Struct):
    writeKey: str = ""  # noqa: N815 - Segment's name


_decode_key = msgspec.json.Decoder(_WriteKeyField).decode


def _message_schema(type_: str) -> Mapping[str, Any]:
    """The JSON Schema of a message that has its type."""
    fields = {
        **dict.fromkeys(("userId", "anonymousId", *_REQUIRED[type_]), TEXT),
        "type": {"const": type_},
        "messageId": KEY,
        "timestamp": TIME,
        "sentAt": TIME,
        "context": {"type": "object"},
    }
    whose = [{"required": ["userId"]}, {"required": ["anonymousId"]}]
    return {**json_object(("type", *_REQUIRED[type_]), **fields), "anyOf": whose}


def _not_quite_json(body: bytes) -> dict[str, Any]:
    """An object whose only fault is that it has NaN or infinite numbers: libraries in Python send them.

    Empty for anything else.
    """
    try:
        decoded = json.loads(without_mark(body))
    except (ValueError, RecursionError):
        return {}
    return decoded if isinstance(decoded, dict) else {}


def _check_numbers(message: Any, place: str) -> None:
    try:
        json.dumps(message, allow_nan=False)
    except (ValueError, RecursionError) as error:
        raise invalid_body("JSON has no NaN and no infinite numbers", place) from error


def _object(body: Mapping[str, Any], field: str, place: str) -> Mapping[str, Any]:
    value = body.get(field)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise invalid_body("an object is needed", f"{place}.{field}")
    return value


def _kept(request: Request) -> Mapping[str, Any]:
    """What RudderStack's libraries say in a header, to be kept in the context."""
    anonymous_id = request.headers.get("anonymousid")
    return {} if anonymous_id is None else {"headers": {"AnonymousId": anonymous_id}}


def _received_at(request: Request) -> datetime:
    return request.received_at or datetime.now(UTC)
