"""A connection to NATS."""

from __future__ import annotations

import asyncio
import logging
import ssl
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError
from typing import Any, TypeVar

import nats.errors
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.errors import APIError, ServiceUnavailableError

from blacksmith_dagster.errors import Unavailable
from blacksmith_dagster.pubsub.address import BrokerAddress

_logger = logging.getLogger(__name__)
_T = TypeVar("_T")

_CALL_SECONDS = 5.0
_CONNECT_SECONDS = 3  # of all servers together
_RESPONSE_SECONDS = 2.0
# A server that has gone without a word is found out by the second ping without a response.
_PING_SECONDS = 10
_CLOSE_SECONDS = 1.0


def jetstream(client: Client) -> JetStreamContext:
    """What asks the server about streams."""
    return client.jetstream(timeout=_RESPONSE_SECONDS)


class NATSConnection:
    """A connection to the first server that accepts us, in an event loop in a thread of its own.

    That thread responds to the server's pings, whatever the caller does. `lost` is called in it when
    the connection breaks.
    """

    def __init__(self, address: BrokerAddress, lost: Callable[[], None] = lambda: None) -> None:
        self._address = address
        self._on_lost = lost
        self._client: Client | None = None
        self._work: asyncio.Task[Any] | None = None
        self._last_error: Exception | None = None
        self._lock = threading.Lock()  # between `call` and `close`
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._stop = asyncio.Event()

    @property
    def client(self) -> Client | None:
        """The client, while it is connected."""
        return self._client if self._client and self._client.is_connected else None

    def call(self, work: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        """What `work` returns, done in the loop.

        Raises `Unavailable`, and `CancelledError` once the connection is closed.
        """

        async def in_time() -> _T:
            self._work, self._last_error = asyncio.current_task(), None
            async with asyncio.timeout(_CALL_SECONDS):
                return await work()

        with self._lock:
            if self._closed:
                raise CancelledError
            done = asyncio.run_coroutine_threadsafe(in_time(), self._loop or self._start())
        try:
            return done.result()
        except (nats.errors.Error, OSError) as error:
            raise Unavailable(self._explain(error)) from None

    def close(self) -> None:
        """Disconnect, and cancel what is called for."""
        with self._lock:
            if self._loop is not None and not self._closed:
                self._loop.call_soon_threadsafe(self._stop.set)
            self._closed = True
        if self._thread is not None:
            self._thread.join(_CLOSE_SECONDS)

    def _start(self) -> asyncio.AbstractEventLoop:
        self._loop = loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._run, args=[loop], name="blacksmith-nats", daemon=True
        )
        self._thread.start()
        return loop

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(self._run_until_closed())

    async def _run_until_closed(self) -> None:
        await self._stop.wait()
        while self._work is not None and not self._work.done():
            self._work.cancel()  # again: nats-py swallows one here and there
            await asyncio.wait([self._work], timeout=_CLOSE_SECONDS)
        await self.disconnect()

    async def connect(self) -> Client:
        """Connect, to the first server that accepts us."""
        error: Exception | None = None
        for server in self._address.servers.split(","):
            client = _Client()
            try:
                await self._connect(client, f"nats://{server}")
                self._client = client
                return client
            except (nats.errors.Error, OSError) as why:
                # The error before NoServersError says why.
                error = self._last_error if isinstance(why, nats.errors.NoServersError) else why
            finally:
                if self._client is not client:
                    await _close(client)
        raise error or ConnectionError("no server is given")

    async def disconnect(self) -> None:
        """Disconnect; `lost` is not called."""
        client, self._client = self._client, None
        if client is not None:
            await _close(client)

    async def _connect(self, client: Client, server: str) -> None:
        address = self._address
        by_token = address.password is None

        async def note(error: Exception) -> None:
            _logger.debug("%s: %s", address.label, error)
            self._last_error = error

        async def closed() -> None:
            if self._client is client:
                self._on_lost()

        await client.connect(
            server,
            name=address.subscription,
            error_cb=note,
            closed_cb=closed,
            allow_reconnect=False,  # who listens must know of the gap
            max_reconnect_attempts=1,
            reconnect_time_wait=0,
            connect_timeout=max(1, _CONNECT_SECONDS // len(address.hosts)),
            ping_interval=_PING_SECONDS,
            max_outstanding_pings=1,
            tls=ssl.create_default_context(cafile=address.ca) if address.tls else None,
            token=address.username if by_token else None,
            user=None if by_token else address.username,
            password=address.password,
        )
        if not client.is_connected:  # nats-py takes an end of the stream for a welcome
            raise ConnectionResetError("the server ended the connection")

    def _explain(self, error: Exception) -> str:
        where = self._address.label
        # A request that is not allowed gets no response: the server reports why beside it.
        why = self._last_error if isinstance(error, TimeoutError) and self._last_error else error
        said = str(why).strip().partition("\n")[0]
        if "authorization" in said.lower() or "authentication" in said.lower():
            return (
                f"{where} refused the credentials; fix the user, the password or the token in "
                f"{self._address.variable}"
            )
        if isinstance(error, ServiceUnavailableError):
            return f"{where} has no JetStream; start nats-server with -js"
        if isinstance(error, APIError):
            return (
                f"{where} refused: {error.description}; see to the stream of that name, or choose "
                "another by topic= in BLACKSMITH_PUBSUB_URL"
            )
        return f"{where} does not respond: {said or f'not within {_CALL_SECONDS:g} seconds'}"


class _Client(Client):
    def _connect_command(self) -> bytes:
        # nats-py would send the credentials in the clear.
        if self.options.get("tls") and not self._server_info.get("tls_required"):
            raise nats.errors.SecureConnWantedError
        return super()._connect_command()


async def _close(client: Client) -> None:
    try:
        await asyncio.wait_for(client.close(), _CLOSE_SECONDS)
    except (nats.errors.Error, OSError) as error:
        _logger.debug("closing a connection: %s", error)
