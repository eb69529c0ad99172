"""What uvicorn's HTTP protocol lacks: a time-out and a limit for heads, and one write for a response."""

from __future__ import annotations

import asyncio
from typing import cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_SECONDS = 10.0
HEAD_BYTES = 64 * 1024

_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
    b"content-type: application/problem+json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%s"
)
_WHY = (
    b'{"type":"about:blank","title":"Request Header Fields Too Large","status":431,'
    b'"detail":"the request line and the headers are over the limit of %d bytes; send fewer"}'
    % HEAD_BYTES
)


class GatewayProtocol(HttpToolsProtocol):
    """uvicorn's protocol; it closes a connection whose next request line and headers stay out, or
    have no end.

    uvicorn itself waits for ever, and for any number of headers: senders that open connections and
    say little, or too much, would fill the gateway. Between two requests its own keep-alive limit
    holds. What follows the last chunk of a body, trailers, is held to the same limit.
    """

    _in_head = False
    _too_large = False
    _unparsed = 0  # bytes that have come since the parser last told of something whole
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first head."""
        super().connection_made(cast(asyncio.Transport, _OneWrite(transport, self.loop)))
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        """Nearly every head comes whole, and needs no timer."""
        self._unparsed += len(data)
        super().data_received(data)
        if self._too_large or self._unparsed > HEAD_BYTES:
            self._reject_head()
        elif self._in_head:
            if self._deadline is None:
                self._wait_for_head()
        elif self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        if self._deadline is not None:
            self._deadline.cancel()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """A head begins."""
        super().on_message_begin()
        self._in_head = True

    def on_headers_complete(self) -> None:
        """The head is there."""
        self._in_head = False
        # It may have come whole, with all that is read at once.
        self._too_large = self._unparsed > HEAD_BYTES and self._head_bytes() > HEAD_BYTES
        self._unparsed = 0
        if not self._too_large:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A piece of the body is there."""
        self._unparsed = 0
        if not self._too_large:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is there."""
        self._unparsed = 0
        if not self._too_large:
            super().on_message_complete()

    def _head_bytes(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def _reject_head(self) -> None:
        if not self.transport.is_closing():
            self.transport.write(_TOO_LARGE % (len(_WHY), _WHY))
            self.transport.close()

    def _wait_for_head(self) -> None:
        self._deadline = self.loop.call_later(HEAD_SECONDS, self.transport.close)


class _OneWrite:
    """A transport that joins what is written in one turn of the loop.

    uvicorn writes a response's head and its body apart, and each costs a system call and
    wakes the other side: a fifth of the time that a small request takes.
    """

    __slots__ = (
        "_loop",
        "_transport",
        "_waiting",
        "get_extra_info",
        "is_closing",
        "pause_reading",
        "resume_reading",
    )

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._waiting: list[bytes] = []
        # All that uvicorn uses of a transport besides.
        self.get_extra_info = transport.get_extra_info
        self.is_closing = transport.is_closing
        self.pause_reading = transport.pause_reading
        self.resume_reading = transport.resume_reading

    def write(self, data: bytes) -> None:
        if not self._waiting:
            self._loop.call_soon(self._flush)
        self._waiting.append(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._waiting:
            joined = b"".join(self._waiting)
            self._waiting.clear()
            self._transport.write(joined)
