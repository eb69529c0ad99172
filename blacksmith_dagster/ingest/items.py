"""Splits the body of a request into its items, and holds each to the limits: pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import Enum
from functools import lru_cache
from typing import TypeVar, cast

import msgspec
from msgspec import structs

from blacksmith_dagster.errors import (
    BadRequest,
    RequestError,
    TooLarge,
    Unprocessable,
    UnsupportedMedia,
)
from blacksmith_dagster.pipeline.model import ANY_MARK, without_mark
from blacksmith_dagster.pipeline.source import AnySourceEvent, Webhook
from blacksmith_dagster.pipeline.triggers import Message, Request

R = TypeVar("R", bound=Request | Message)

REQUEST_EVENTS = 100_000
"""The most events that one request or poll may have."""

KEY_CHARACTERS = 512
"""The most characters that an idempotency key may have."""

TOO_MANY = f"a request holds at most {REQUEST_EVENTS} events; send several requests"

_ARRAY = re.compile(rb"[ \t\r\n]*\[")
_CHILDLESS = re.compile(rb"\[,*\]")
_ONE_BRACKET = bytes.maketrans(b"{}", b"[]")
_NO_BRACKET = bytes(set(range(256)) - set(b"[]{}"))
_NO_BRACKET_OR_COMMA = bytes(set(range(256)) - set(b"[]{},"))

_PART = 1024 * 1024  # bytes
_BACKSLASH = ord("\\")

_raw_items = msgspec.json.Decoder(list[msgspec.Raw]).decode


class ItemSplitter:
    """Splits requests to one source event or webhook into items within its limits."""

    def __init__(self, event: AnySourceEvent | Webhook) -> None:
        self._path = event.path
        self._accepts_any_body = event.function is not None
        self._noun = "a request" if isinstance(event, Webhook) else "an event"
        self._event_bytes = cast(int, event.limits.event_bytes)
        self._depth = cast(int, event.limits.depth)
        self._keys = cast(int, event.limits.keys)

    def split(self, request: Request) -> Sequence[bytes]:
        """The items of a JSON array or of NDJSON; else the whole body.

        Raises `BadRequest`, `TooLarge`, `Unprocessable`, `UnsupportedMedia`.
        """
        body_format = _body_format(request.headers.get("content-type", ""))
        body = request.body
        items: Sequence[bytes] = (body,)
        if body_format is BodyFormat.NDJSON:
            if body.count(b"\n") > REQUEST_EVENTS:
                raise TooLarge(TOO_MANY)
            items = [line for line in map(bytes.strip, body.split(b"\n")) if line]
        elif body_format is BodyFormat.JSON and _ARRAY.match(body):
            items = self._split_array(body)
        elif body_format is BodyFormat.OTHER and not self._accepts_any_body:
            raise UnsupportedMedia(
                f"{self._path} accepts JSON; send it with Content-Type: application/json, or "
                "application/x-ndjson for one event per line"
            )
        for number, item in enumerate(items, 1):
            try:
                self.check_size(item)
                if body_format is not BodyFormat.OTHER or looks_like_json(item):
                    self.check_shape(item)
            except RequestError as error:
                name_item(error, number, items)
                raise
        return items

    def without_mark(self, request: R) -> R:
        """The request or message; its body without a byte order mark and in UTF-8, if that is JSON.

        Raises `BadRequest` if the body of a JSON request is not in the encoding of its mark.
        """
        body = request.body
        if not body.startswith(ANY_MARK):
            return request
        is_json = not self._accepts_any_body
        if isinstance(request, Request):
            content_type = request.headers.get("content-type", "")
            is_json = _body_format(content_type) is not BodyFormat.OTHER
        try:
            text = without_mark(body)
        except UnicodeDecodeError as error:
            if not is_json:
                return request
            raise BadRequest(
                f"the body is not in the encoding of its byte order mark: {error}; send UTF-8 without "
                "a mark"
            ) from error
        return structs.replace(request, body=text) if is_json or looks_like_json(text) else request

    def check_size(self, item: bytes) -> None:
        """Raise `TooLarge` if an item is over the limit."""
        if len(item) > self._event_bytes:
            raise TooLarge(
                f"{self._noun} of {len(item)} bytes is over the limit of {self._event_bytes} of "
                f"{self._path}; send less at once"
            )

    def check_shape(self, item: bytes) -> None:
        """Raise `Unprocessable` if JSON has too many keys, or is nested too deep."""
        # Fast path: counts that include brackets and colons inside strings are enough to clear nearly
        # every document. A key takes at least four bytes: "":0
        few_keys = len(item) <= 4 * self._keys or item.count(b":") <= self._keys
        if few_keys and item.count(b"[") + item.count(b"{") <= self._depth:
            return
        bare = _without_strings(item)
        if bare.count(b":") > self._keys:
            raise Unprocessable(
                f"an event has more than {self._keys} keys, the limit of {self._path}; send fewer"
            )
        brackets = bare.translate(_ONE_BRACKET, _NO_BRACKET)
        for _ in range(self._depth):
            brackets = brackets.replace(b"[]", b"")  # removes the innermost level
        if brackets:
            raise Unprocessable(self._too_deep)

    def _split_array(self, array: bytes) -> list[bytes]:
        # A list of millions of tiny items would take fifty times the body's size, so they are counted
        # first, and exactly only if there are many commas.
        if array.count(b",") >= REQUEST_EVENTS:
            text = _without_strings(array).translate(_ONE_BRACKET, _NO_BRACKET_OR_COMMA)[1:-1]
            for _ in range(self._depth):
                text = _CHILDLESS.sub(b"", text)
            if text.count(b",") >= REQUEST_EVENTS:
                raise TooLarge(TOO_MANY)
        try:
            return [bytes(item) for item in _raw_items(array)]
        except RecursionError as error:
            raise Unprocessable(self._too_deep) from error
        except msgspec.DecodeError as error:
            raise BadRequest(f"the body is not JSON: {error}") from error

    @property
    def _too_deep(self) -> str:
        return (
            f"an event is nested deeper than {self._depth} levels, the limit of {self._path}, or its "
            "brackets do not match"
        )


def name_item(error: RequestError, number: int, items: Sequence[bytes]) -> None:
    """Name the item in the error's message, if there are several."""
    if len(items) > 1:
        error.args = (f"item {number}: {error}",)


class BodyFormat(Enum):
    """How a body is split into items."""

    JSON = "json"
    NDJSON = "ndjson"
    OTHER = "other"


def looks_like_json(body: bytes) -> bool:
    """Whether a body may be JSON, whatever its Content-Type: curl sends JSON as a form by default, and
    a function may read it as JSON."""
    bare = body.strip()
    return bare.startswith((b"{", b"[")) and bare.endswith((b"}", b"]"))


@lru_cache(maxsize=64)
def _body_format(content_type: str) -> BodyFormat:
    essence = content_type.partition(";")[0].strip().lower()
    if essence in ("", "application/json", "text/json") or essence.endswith("+json"):
        return BodyFormat.JSON
    if essence in ("application/x-ndjson", "application/ndjson", "application/jsonl"):
        return BodyFormat.NDJSON
    return BodyFormat.OTHER


def _without_strings(json: bytes) -> bytes:
    """JSON without its strings. It is split in parts: the pieces of 25 MiB would take six times that."""
    kept: list[bytes] = []
    in_string = start = 0
    while start < len(json):
        end = start + _PART
        while end < len(json) and json[end - 1] == _BACKSLASH:
            end += 1
        part = json[start:end].replace(b"\\\\", b"").replace(b'\\"', b"")
        pieces = part.split(b'"')
        kept.append(b"".join(pieces[in_string::2]))
        in_string = (in_string + len(pieces) - 1) % 2
        start = end
    return b"".join(kept)
