"""Extends uvicorn's HTTP protocol: a time-out and a limit for request heads, one write per response."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import cast

import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_SECONDS = 10.0
HEAD_BYTES = 64 * 1024

_RESPONSE = (
    b"HTTP/1.1 %d %s\r\n"
    b"content-type: application/problem+json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%s"
)
_TOO_LARGE = (
    f"the request line and the headers are over the limit of {HEAD_BYTES} bytes; send fewer"
)
_NOT_HTTP = "this is not a request of HTTP/1.1; send one as RFC 9112 defines it"
# If two values differ, a proxy may use one and the gateway the other.
_ONCE = frozenset(
    {
        b"authorization",
        b"content-encoding",
        b"content-length",
        b"content-type",
        b"host",
        b"idempotency-key",
        b"stripe-signature",
        b"svix-id",
        b"svix-signature",
        b"svix-timestamp",
        b"transfer-encoding",
        b"webhook-id",
        b"webhook-signature",
        b"webhook-timestamp",
        b"x-github-delivery",
        b"x-github-event",
        b"x-hub-signature-256",
        b"x-slack-request-timestamp",
        b"x-slack-signature",
    }
)


class GatewayProtocol(HttpToolsProtocol):
    """uvicorn's protocol; it closes a connection whose next request line and headers do not arrive in
    time, or are too large.

    uvicorn itself waits without a limit, so senders that open connections and send little, or too
    many headers, would exhaust the gateway. Between two requests uvicorn's own keep-alive limit
    applies. The trailers after a chunked body have the same size limit.

    A request that a proxy may read differently is rejected (RFC 9112, sections 3.2 and 6.1). A rejection
    is a problem document.
    """

    _in_head = False
    _fault: tuple[int, str] | None = None  # why the head is rejected: a status and its detail
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
        if self._unparsed > HEAD_BYTES:
            self._fault = 431, _TOO_LARGE
        if self._fault is not None:
            self._reject(*self._fault)
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
        if self._unparsed > HEAD_BYTES and self._head_bytes() > HEAD_BYTES:
            self._fault = 431, _TOO_LARGE
        elif (reason := self._ambiguity()) is not None:
            self._fault = 400, reason
        self._unparsed = 0
        if self._fault is None:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A part of the body has arrived."""
        self._unparsed = 0
        if self._fault is None:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is complete."""
        self._unparsed = 0
        if self._fault is None:
            super().on_message_complete()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - uvicorn's text says less
        """Reject what is not HTTP."""
        self._reject(400, _NOT_HTTP)

    def _ambiguity(self) -> str | None:
        """Why a proxy may read this head differently, if it may."""
        version = self.parser.get_http_version()
        if version not in ("1.1", "1.0"):
            return f"HTTP/{version} is not served here; send HTTP/1.1"
        headers = dict(self.headers)
        if len(headers) < len(self.headers):
            names = [name for name, _ in self.headers]
            for name in sorted(_ONCE):
                if names.count(name) > 1:
                    return f"the header {name.decode()} came more than once; send it once"
        if self.parser.should_upgrade():  # the parser would drop the body
            return "no other protocol is served here; send HTTP/1.1 without the header Upgrade"
        if version == "1.1" and b"host" not in headers:
            return "the header host is missing; send it"
        encoding = headers.get(b"transfer-encoding")
        if encoding is not None and version == "1.0":
            return "HTTP/1.0 has no Transfer-Encoding; send HTTP/1.1"
        if encoding is not None and encoding.strip().lower() != b"chunked":
            return (
                "only Transfer-Encoding: chunked is served; compress with Content-Encoding instead"
            )
        return None

    def _head_bytes(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def _reject(self, status: int, detail: str) -> None:
        if not self.transport.is_closing():
            title = HTTPStatus(status).phrase
            body = msgspec.json.encode(
                {"type": "about:blank", "title": title, "status": status, "detail": detail}
            )
            self.transport.write(_RESPONSE % (status, title.encode(), len(body), body))
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
