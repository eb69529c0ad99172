"""A connection to RabbitMQ."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable, Mapping
from time import monotonic
from typing import Any
from urllib.parse import unquote

import pika
import pika.exceptions
from pika.adapters.select_connection import IOLoop
from pika.adapters.utils import connection_workflow as workflow

from blacksmith_dagster.errors import Unavailable
from blacksmith_dagster.pubsub.address import BrokerAddress
from blacksmith_dagster.pubsub.interface import ConnectionLost

_CONNECT_SECONDS = 3.0  # for all servers together
_RESPONSE_SECONDS = 3.0
_CLOSE_SECONDS = 0.3
_KEEPALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}

# pika logs each failed attempt several times, with tracebacks, and raises the same as errors.
if (_pika_logger := logging.getLogger("pika")).level == logging.NOTSET:
    _pika_logger.setLevel(logging.CRITICAL)


class ChannelClosed(ConnectionLost):
    """The connection or its channel has ended. `code` is AMQP's, if the broker has given one."""

    def __init__(self, message: str, code: int | None = None) -> None:
        super().__init__(message)
        self.code = code


class RabbitMQConnection:
    """A connection with one channel. It does I/O only in its methods, each of which has a time limit.

    `heartbeat` is in seconds, `rights` are those that the user needs.

    It replaces pika's BlockingConnection, which has no time-outs, and uses the same I/O loop.
    Raises `Unavailable`, and `ChannelClosed` when the connection or the channel has ended.
    """

    def __init__(self, address: BrokerAddress, heartbeat: int, rights: str) -> None:
        self._address = address
        self._rights = rights
        self._loop = IOLoop()
        self._loop.activate_poller()
        self._connection: Any = None
        self._close_reason: BaseException | None = None  # of the connection or the channel
        try:
            self._connection = self._connect(heartbeat)
            self._connection.add_on_close_callback(self._on_close)
            opened: list[Any] = []
            self.channel = self._connection.channel(on_open_callback=opened.append)
            self.channel.add_on_close_callback(self._on_close)
            self.channel.add_on_cancel_callback(self._on_cancel)
            self.wait_for(lambda: bool(opened))
        except BaseException:
            self.close()
            raise

    def request(self, method: Callable[..., object], *args: object, **kwargs: object) -> Any:
        """Call a method of the channel and wait for the broker's response, which is returned."""
        responses: list[Any] = []
        self.send(method, *args, **kwargs, callback=responses.append)
        self.wait_for(lambda: bool(responses))
        return responses[0]

    def send(self, method: Callable[..., object], *args: object, **kwargs: object) -> None:
        """Call a method of the channel to which the broker does not respond."""
        try:
            method(*args, **kwargs)
        except pika.exceptions.AMQPError as error:
            raise self._channel_closed(self._close_reason or error) from None

    def wait_for(self, done: Callable[[], bool]) -> None:
        """Wait until the broker has responded."""
        if not self.run(done, monotonic() + _RESPONSE_SECONDS):
            raise Unavailable(
                self._explain(TimeoutError(f"not within {_RESPONSE_SECONDS:g} seconds"))
            )

    def run(self, done: Callable[[], bool], deadline: float) -> bool:
        """Read and write until `done`, or until the deadline; returns whether it is done."""
        self._run_loop(lambda: done() or self._close_reason is not None, deadline)
        if done():
            return True
        if self._close_reason is not None:
            raise self._channel_closed(self._close_reason)
        return False

    def wake(self) -> None:
        """Let `run` check again whether it is done. Any thread may call this."""
        self._loop.add_callback_threadsafe(lambda: None)

    def close(self) -> None:
        """Disconnect; waits a moment for the broker's response."""
        connection = self._connection
        if connection is not None:
            if connection.is_open:
                connection.close()
            if not self._run_loop(lambda: bool(connection.is_closed), monotonic() + _CLOSE_SECONDS):
                connection._terminate_stream(pika.exceptions.StreamLostError("given up"))
                self._run_loop(lambda: bool(connection.is_closed), monotonic() + _CLOSE_SECONDS)
        self._loop.close()

    def _connect(self, heartbeat: int) -> Any:
        try:
            servers = [
                self._parameters(host, port, heartbeat) for host, port in self._address.hosts
            ]
        except OSError as error:
            raise Unavailable(
                f"{self._address.label}: the file of ca= is unusable: {error}"
            ) from None
        done: list[Any] = []
        attempt = pika.SelectConnection.create_connection(
            servers, on_done=done.append, custom_ioloop=self._loop
        )
        if not self.run(lambda: bool(done), monotonic() + _CONNECT_SECONDS + _CLOSE_SECONDS):
            attempt.abort()
            self.run(lambda: bool(done), monotonic() + _CLOSE_SECONDS)
            raise Unavailable(self._explain(workflow.AMQPConnectorStackTimeout()))
        if isinstance(done[0], BaseException):
            raise Unavailable(self._explain(done[0]))
        return done[0]

    def _parameters(self, host: str, port: int, heartbeat: int) -> pika.ConnectionParameters:
        address = self._address
        optional: dict[str, Any] = {}
        if address.username is not None:
            optional["credentials"] = pika.PlainCredentials(
                address.username, address.password or ""
            )
        if address.tls:
            context = ssl.create_default_context(cafile=address.ca)
            optional["ssl_options"] = pika.SSLOptions(context, host)
        return pika.ConnectionParameters(
            host=host,
            port=port,
            virtual_host=unquote(address.path.removeprefix("/")) or "/",
            heartbeat=heartbeat,
            socket_timeout=_CONNECT_SECONDS / len(address.hosts),
            stack_timeout=_CONNECT_SECONDS / len(address.hosts),
            tcp_options=_KEEPALIVE,
            client_properties={"connection_name": address.subscription},
            **optional,
        )

    def _run_loop(self, done: Callable[[], bool], deadline: float) -> bool:
        late: list[bool] = []
        timer = self._loop.call_later(max(0.0, deadline - monotonic()), lambda: late.append(True))
        while not done() and not late:
            self._loop.poll()
            self._loop.process_timeouts()
        self._loop.remove_timeout(timer)
        return done()

    def _on_close(self, _: Any, reason: BaseException) -> None:
        self._close_reason = self._close_reason or reason

    def _on_cancel(self, _: Any) -> None:
        self._close_reason = self._close_reason or pika.exceptions.ConsumerCancelled(
            "the queue was deleted"
        )

    def _channel_closed(self, reason: BaseException) -> ChannelClosed:
        return ChannelClosed(self._explain(reason), getattr(reason, "reply_code", None))

    def _explain(self, error: BaseException) -> str:
        return f"{self._address.label} {self._reason_of(error)}"

    def _reason_of(self, error: BaseException) -> str:
        """The reason without pika's wrapper errors; if servers failed differently, the clearest one."""
        failed = workflow.AMQPConnectionWorkflowFailed
        causes = list(error.exceptions) if isinstance(error, failed) else [error]
        for index, cause in enumerate(causes):
            if isinstance(cause, workflow.AMQPConnectorPhaseErrorBase):
                causes[index] = cause.exception
        for cause in causes:
            if type(cause) in _EXPLAINED:
                return _EXPLAINED[type(cause)].format(self._address.variable)
            if getattr(cause, "reply_code", None) == _ACCESS_REFUSED:
                return f"refused the user a right; it must {self._rights}"
        return f"does not respond: {str(causes[-1]) or type(causes[-1]).__name__}"


_CREDENTIALS = "refused the credentials; fix the user or password in {}"
_EXPLAINED: Mapping[type[BaseException], str] = {
    pika.exceptions.AuthenticationError: _CREDENTIALS,
    pika.exceptions.ProbableAuthenticationError: _CREDENTIALS,
    pika.exceptions.ProbableAccessDeniedError: (
        "refused the virtual host; fix the path in {}, or give the user access to it"
    ),
    pika.exceptions.IncompatibleProtocolError: (
        "does not speak AMQP 0-9-1 here; fix the port or amqps:// in {}"
    ),
    workflow.AMQPConnectorStackTimeout: f"does not respond within {_CONNECT_SECONDS:g} seconds",
}
_ACCESS_REFUSED = 403
