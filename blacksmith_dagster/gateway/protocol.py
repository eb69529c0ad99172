"""Extends uvicorn's HTTP protocol: a time-out and a limit for request heads, one write per response."""

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
_TOO_LARGE_BODY = (
    b'{"type":"about:blank","title":"Request Header Fields Too Large","status":431,'
    b'"detail":"the request line and the headers are over the limit of %d bytes; send fewer"}'
    % HEAD_BYTES
)


class GatewayProtocol(HttpToolsProtocol):
    """uvicorn's protocol; it closes a connection whose next request line and headers do not arrive in
    time, or are too large.

    uvicorn itself waits without a limit, so senders that open connections and send little, or too
    many headers, would exhaust the gateway. Between two requests uvicorn's own keep-alive limit
    applies. The trailers after a chunked body have the same size limit.
    """

    _in_head = False
    _too_large = False
    _unparsed = 0  # bytes received since the parser last completed a part
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the time-out of the first head."""
        super().connection_made(cast(asyncio.Transport, _OneWrite(transport, self.loop)))
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        """Most request heads arrive in one read and need no timer."""
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
        """Stop the time-out."""
        if self._deadline is not None:
            self._deadline.cancel()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """A head begins."""
        super().on_message_begin()
        self._in_head = True

    def on_headers_complete(self) -> None:
        """The head is complete."""
        self._in_head = False
        # One read may hold a head of any size, complete.
        self._too_large = self._unparsed > HEAD_BYTES and self._head_bytes() > HEAD_BYTES
        self._unparsed = 0
        if not self._too_large:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A part of the body has arrived."""
        self._unparsed = 0
        if not self._too_large:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is complete."""
        self._unparsed = 0
        if not self._too_large:
            super().on_message_complete()

    def _head_bytes(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def _reject_head(self) -> None:
        if not self.transport.is_closing():
            self.transport.write(_TOO_LARGE % (len(_TOO_LARGE_BODY), _TOO_LARGE_BODY))
            self.transport.close()

    def _wait_for_head(self) -> None:
        self._deadline = self.loop.call_later(HEAD_SECONDS, self.transport.close)


class _OneWrite:
    """A transport that joins all writes of one iteration of the event loop.

    uvicorn writes a response's head and body separately; the second system call, which wakes the
    other side again, costs a fifth of the time of a small request.
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
        # The other methods that uvicorn uses.
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
