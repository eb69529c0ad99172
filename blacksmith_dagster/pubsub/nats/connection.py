"""A connection to NATS."""

from __future__ import annotations

import asyncio
import logging
import ssl
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import nats.errors
from nats.aio.client import Client

from blacksmith_dagster.pubsub.address import BrokerAddress
from blacksmith_dagster.pubsub.interface import ConnectionLost

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

_CALL_SECONDS = 5.0
_CONNECT_SECONDS = 3  # for all servers together
RESPONSE_SECONDS = 2
# A server that has vanished is noticed at the second ping without a response.
_PING_SECONDS = 5
_CLOSE_SECONDS = 1.0


class NATSConnection:
    """A connection to the first server that accepts us, in an event loop in a thread of its own.

    That thread responds to the server's pings, whatever the caller does. `on_lost` is called in it when
    the connection breaks. Used by one thread.

    Raises `Unavailable`.
    """

    def __init__(self, address: BrokerAddress, on_lost: Callable[[], None]) -> None:
        self._address = address
        self._on_lost = on_lost
        self._reported: Exception | None = None  # by the server or the client, during a call
        self._stop = asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="blacksmith-nats", daemon=True)
        self._thread.start()
        self._client: Client | None = None
        try:
            self._client = self.client = self.call(self._connect)
        except BaseException:
            self.close()
            raise

    @property
    def is_lost(self) -> bool:
        """Whether the connection has ended."""
        return not self.client.is_connected

    def call(self, work: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        """Run `work` in the loop, and return its result."""

        async def in_time() -> _T:
            self._reported = None
            async with asyncio.timeout(_CALL_SECONDS):
                return await work()

        try:
            return asyncio.run_coroutine_threadsafe(in_time(), self._loop).result()
        except (nats.errors.Error, OSError) as error:
            raise ConnectionLost(self._explain(error)) from None

    async def flush(self) -> None:
        """Wait until the server has handled what was sent. Raises an error if it rejected any."""
        await self.client.flush(RESPONSE_SECONDS)
        if self._reported is not None:
            raise self._reported

    def close(self) -> None:
        """Disconnect."""
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(_CLOSE_SECONDS)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._run_until_closed())

    async def _run_until_closed(self) -> None:
        await self._stop.wait()
        if self._client is not None:
            await _close(self._client)

    async def _connect(self) -> Client:
        failure: Exception | None = None
        for server in self._address.servers.split(","):
            client = _TLSClient()
            try:
                await self._connect_to(client, f"nats://{server}")
                return client
            except (nats.errors.Error, OSError) as error:
                # The error reported before NoServersError has the reason.
                failure = self._reported if isinstance(error, nats.errors.NoServersError) else error
                await _close(client)
        raise failure or ConnectionError("no server is given")

    async def _connect_to(self, client: Client, server: str) -> None:
        address = self._address
        has_token = address.password is None

        async def note(error: Exception) -> None:
            _log.debug("%s: %s", address.label, error)
            self._reported = error

        async def closed() -> None:
            self._on_lost()

        await client.connect(
            server,
            name=address.subscription,
            error_cb=note,
            closed_cb=closed,
            allow_reconnect=False,  # a subscriber must know of the gap
            max_reconnect_attempts=1,
            reconnect_time_wait=0,
            connect_timeout=max(1, _CONNECT_SECONDS // len(address.hosts)),
            ping_interval=_PING_SECONDS,
            max_outstanding_pings=1,
            tls=ssl.create_default_context(cafile=address.ca) if address.tls else None,
            token=address.username if has_token else None,
            user=None if has_token else address.username,
            password=address.password,
        )
        if not client.is_connected:  # nats-py mistakes a closed stream for success
            raise ConnectionResetError("the server ended the connection")

    def _explain(self, error: Exception) -> str:
        label = self._address.label
        # A request that is not allowed gets no response: the server reports the reason separately.
        cause = self._reported if isinstance(error, TimeoutError) and self._reported else error
        text = str(cause).strip().partition("\n")[0]
        if "authorization" in text.lower() or "authentication" in text.lower():
            return (
                f"{label} refused the credentials; fix the user, the password or the token in "
                f"{self._address.variable}"
            )
        if "permissions violation" in text.lower():
            return f"{label} refused the user a right: {text}"
        return f"{label} does not respond: {text or f'not within {_CALL_SECONDS:g} seconds'}"


class _TLSClient(Client):
    def _connect_command(self) -> bytes:
        # nats-py would send the credentials in the clear.
        if self.options.get("tls") and not self._server_info.get("tls_required"):
            raise nats.errors.SecureConnWantedError
        return super()._connect_command()


async def _close(client: Client) -> None:
    try:
        await asyncio.wait_for(client.close(), _CLOSE_SECONDS)
    except (nats.errors.Error, OSError) as error:
        _log.debug("closing a connection: %s", error)
