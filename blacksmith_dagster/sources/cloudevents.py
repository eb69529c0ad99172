"""CloudEvents 1.0 over HTTP, in its three content modes."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote_to_bytes

import msgspec

from blacksmith_dagster.errors import BadRequest, UnsupportedMedia, ValidationError
from blacksmith_dagster.pipeline.event import InvalidItem, TypedEvent
from blacksmith_dagster.pipeline.source import WebhookResult
from blacksmith_dagster.pipeline.triggers import Request, decode_body
from blacksmith_dagster.sources.senders import (
    KEY,
    TIME,
    TypedSource,
    invalid_body,
    json_object,
    operation_fields,
    parse_time,
    text_field,
)

_PREFIX = "ce-"
_STRUCTURED = "application/cloudevents+json"
_BATCH = "application/cloudevents-batch+json"
_ESCAPED = re.compile(r"\\(.)")


class CloudEventsSource(TypedSource):
    """CloudEvents 1.0 over HTTP: in binary mode, in structured mode, and in batches of JSON.

    A CloudEvent's `type` is the type, its `source` and `id` together are the key, `time` is `sent_at`.
    The event's data is the CloudEvent's data, its context all attributes and extensions. Data that is
    not JSON is stored as text if its media type is textual (`text/...`, XML), else in base64, with
    `"datacontentencoding": "base64"` in the context.

    Senders are authenticated only if `auth` is set.

    >>> orders = CloudEventsSource("orders", auth=Bearer(Secret("ORDERS_TOKEN")))
    >>> placed = orders.on("com.example.order.placed", name="placed")
    >>> placed.path
    'orders/placed'

    Raises `DeclarationError`.
    """

    def _describe(self) -> Mapping[str, Any]:
        # Their key, both together, has 512 characters at most.
        part = {**KEY, "maxLength": 255}
        events = self._bodies_by_type(
            lambda type, data: json_object(
                ("specversion", "id", "source", "type"),
                specversion={"const": "1.0"},
                id=part,
                source=part,
                type=type,
                time=TIME,
                data=data,
                data_base64=False,
            )
        )
        event = {"oneOf": events}
        return operation_fields({_STRUCTURED: event, _BATCH: {"type": "array", "items": event}})

    def _receive(self, request: Request) -> WebhookResult:
        """One CloudEvent, or a batch of them."""
        media = _essence(request.headers.get("content-type", ""))
        if media == _STRUCTURED:
            return self._structured(request.json(), "$")
        if media == _BATCH:
            batch = request.json(list)
            return [self._batched(event, f"$[{index}]") for index, event in enumerate(batch)]
        if media.startswith("application/cloudevents"):
            raise UnsupportedMedia(
                f"CloudEvents as {media} are not supported; send JSON, or the binary content mode"
            )
        if f"{_PREFIX}specversion" not in request.headers:
            raise BadRequest(
                "this is not a CloudEvent: its Content-Type is neither application/cloudevents+json nor "
                "application/cloudevents-batch+json, and it has no header ce-specversion"
            )
        return self._binary(request)

    def _binary(self, request: Request) -> TypedEvent:
        attributes: dict[str, Any] = {
            name.removeprefix(_PREFIX): _unquoted(name, value)
            for name, value in request.headers.items()
            if name.startswith(_PREFIX)
        }
        media = request.headers.get("content-type")
        if media is not None:
            attributes["datacontenttype"] = media
        return self._typed_event(attributes, _data(attributes, request.body), "$")

    def _batched(self, event: Any, place: str) -> TypedEvent | InvalidItem:
        try:
            return self._structured(event, place)
        except ValidationError as error:
            return InvalidItem(msgspec.json.encode([event]), error)

    def _structured(self, event: Any, place: str) -> TypedEvent:
        if not isinstance(event, dict):
            raise invalid_body("an object is needed", place)
        event = dict(event)
        data, binary = event.pop("data", None), event.pop("data_base64", None)
        if binary is not None:
            if data is not None:
                raise ValidationError(
                    f"a CloudEvent has data or data_base64, not both - at `{place}`"
                )
            try:
                data = _data(event, base64.b64decode(binary, validate=True))
            except (ValueError, TypeError) as error:
                raise ValidationError(f"this is not base64 - at `{place}.data_base64`") from error
        return self._typed_event(event, data, place)

    def _typed_event(self, attributes: Mapping[str, Any], data: Any, place: str) -> TypedEvent:
        if text_field(attributes, "specversion", place) != "1.0":
            raise ValidationError(f"only CloudEvents 1.0 is supported - at `{place}.specversion`")
        source, id_ = text_field(attributes, "source", place), text_field(attributes, "id", place)
        return self._source_event(text_field(attributes, "type", place)).of(
            data,
            key=f"{source} {id_}",
            sent_at=parse_time(attributes.get("time"), f"{place}.time"),
            context=attributes,
        )


def _data(attributes: dict[str, Any], body: bytes) -> Any:
    """Data that JSON can hold; if it is base64, the attributes say so."""
    if not body:
        return None
    media = _essence(attributes.get("datacontenttype") or "application/json")
    if media.endswith(("/json", "+json")):
        return decode_body(body, Any)
    if media.startswith("text/") or media.endswith(("/xml", "+xml")):
        try:
            return body.decode()
        except UnicodeDecodeError as error:
            raise BadRequest(f"the data is {media} but not UTF-8; send it as UTF-8") from error
    attributes["datacontentencoding"] = "base64"
    return base64.b64encode(body).decode()


def _essence(media: Any) -> str:
    return str(media).partition(";")[0].strip().lower()


def _unquoted(name: str, value: str) -> str:
    """An attribute decoded from a header (HTTP binding, section 3.1.3.2)."""
    value = value.strip()
    if len(value) > 1 and value[0] == value[-1] == '"':
        value = _ESCAPED.sub(r"\1", value[1:-1])
    try:
        return unquote_to_bytes(value.encode("latin-1")).decode()
    except UnicodeDecodeError as error:
        raise BadRequest(
            f"the header {name} is not UTF-8 after percent-decoding; encode it as UTF-8"
        ) from error
