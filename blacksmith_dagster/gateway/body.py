"""Reads a request's body: in time, within its limit, decompressed, and with bounded memory."""

from __future__ import annotations

import asyncio
import time
import zlib
from typing import Self, cast

from starlette.requests import ClientDisconnect
from starlette.types import Receive

from blacksmith_dagster.errors import (
    BadRequest,
    RequestTimeout,
    TooLarge,
    TooManyRequests,
    UnsupportedMedia,
)

_CHECK_SECONDS = 0.25
_GZIP, _ZLIB, _BARE = 31, 15, -15  # zlib's names for its formats: RFC 1952, RFC 1950, RFC 1951
_MEMBERS = 100  # gzip files may follow each other in one (RFC 1952, section 2.2)


class BodyReader:
    """Reads the bodies of all requests, within one limit of memory and each within its time.

    `capacity` is how many bytes may be in memory at once: bodies being read or waiting for a commit.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.reserved = 0
        self._deadlines: dict[asyncio.Task[object], float] = {}
        self._late: set[asyncio.Task[object]] = set()

    async def read(
        self,
        receive: Receive,
        memory: Reservation,
        declared: bytes | None,
        limit: int,
        seconds: float,
    ) -> bytes:
        """A body; its bytes are reserved in `memory`.

        `declared` is the Content-Length: it is not trusted, but a body that declares itself too large
        is rejected unread.

        Raises `TooLarge`, `RequestTimeout`, `TooManyRequests`, and `ClientDisconnect`.
        """
        if declared is not None and int(declared) > limit:
            raise TooLarge(_over(limit))
        task = cast("asyncio.Task[object]", asyncio.current_task())
        self._deadlines[task] = time.monotonic() + seconds
        chunks: list[bytes] = []
        try:
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                chunk: bytes = message.get("body", b"")
                if memory.size + len(chunk) > limit:
                    raise TooLarge(_over(limit))
                memory.add(len(chunk))
                chunks.append(chunk)
                if not message.get("more_body", False):
                    return chunks[0] if len(chunks) == 1 else b"".join(chunks)
        except asyncio.CancelledError as error:
            if task not in self._late:
                raise
            task.uncancel()
            raise RequestTimeout(
                f"the body did not arrive within {seconds:g} seconds; send it at once"
            ) from error
        finally:
            del self._deadlines[task]
            self._late.discard(task)

    async def watch(self) -> None:
        """Cancel the reading of late bodies, until cancelled itself.

        It checks a few times a second: a timer per request would cost a tenth of the request's time.
        """
        while True:
            await asyncio.sleep(_CHECK_SECONDS)
            now = time.monotonic()
            for task, deadline in list(self._deadlines.items()):
                if deadline < now:
                    self._late.add(task)
                    task.cancel()


class Reservation:
    """The bytes in memory of one request, of those of a `BodyReader`; a `with` block releases them."""

    __slots__ = ("_reader", "size")

    def __init__(self, reader: BodyReader) -> None:
        self._reader = reader
        self.size = 0

    def add(self, size: int) -> None:
        """Reserve more bytes. Raises `TooManyRequests` over the capacity, unless none are reserved."""
        reader = self._reader
        if reader.reserved and reader.reserved + size > reader.capacity:
            raise TooManyRequests(
                f"{reader.reserved} bytes of other requests are being processed; try again in a second"
            )
        reader.reserved += size
        self.size += size

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.reserved -= self.size


def unpack(body: bytes, encoding: str, limit: int) -> bytes:
    """The body without its Content-Encoding. Decompressing stops beyond `limit` bytes.

    Raises `UnsupportedMedia`, `BadRequest`, `TooLarge`.
    """
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        return body
    if encoding in ("gzip", "x-gzip"):
        formats = [_GZIP]
    elif encoding == "deflate":
        # The standard means zlib's format, but some senders leave out its header.
        formats = [_ZLIB, _BARE]
    else:
        raise UnsupportedMedia(
            f"Content-Encoding {encoding!r} is not supported; send gzip, deflate, or neither"
        )
    for wbits in formats:
        try:
            return _inflated(body, wbits, limit)
        except zlib.error as error:
            unreadable = BadRequest(f"the body is not {encoding}: {error}")
    raise unreadable


def _inflated(body: bytes, wbits: int, limit: int) -> bytes:
    parts: list[bytes] = []
    room = limit
    for _ in range(_MEMBERS if wbits == _GZIP else 1):
        inflater = zlib.decompressobj(wbits)
        part = inflater.decompress(body, room + 1)
        if len(part) > room:
            raise TooLarge(_over(limit))
        room -= len(part)
        parts.append(part)
        if not inflater.eof:
            raise zlib.error("it is truncated")
        body = inflater.unused_data
        if not body:
            return b"".join(parts)
    raise zlib.error("there is data after its end")


def _over(limit: int) -> str:
    return f"the body is over the limit of {limit} bytes; send it in several requests"
