"""A cancellable PostgreSQL session that raises our exceptions."""

from __future__ import annotations

import re
import select
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from time import monotonic
from typing import Any, TypeVar

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import DiagnosticField, ExecStatus
from psycopg.pq.abc import PGresult
from psycopg.sql import SQL, Composable, Literal

from blacksmith_dagster.errors import SettingsError, Unavailable
from blacksmith_dagster.pipeline.event import Event
from blacksmith_dagster.pipeline.triggers import Listener
from blacksmith_dagster.redaction import Secret
from blacksmith_dagster.sources.postgres.values import SETTINGS

T = TypeVar("T")

RESPONSE_SECONDS = 30.0

_TICK = 0.5
_CONNECTION: dict[str, Any] = {
    "autocommit": True,
    "client_encoding": "utf8",
    "connect_timeout": 10,
    # A peer that has vanished is noticed within 15 s, and within 5 s while data waits to be sent.
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 1,
    "tcp_user_timeout": 5000,
}
_SESSION = {
    # A snapshot takes as long as its events take to be stored.
    "statement_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    # Fail instead of leaving out rows whose changes would be sent.
    "row_security": "off",
    # From 18 on, a publication that is missing in the log raises no error: its changes are skipped.
    "client_min_messages": "warning",
}
_SKIPPED = "55000"  # SQLSTATE of the warning that a publication was skipped
_SUCCEEDED = (ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK, ExecStatus.COPY_BOTH)


class ListenerStopped(Exception):
    """The listener was stopped while the session waited."""


class ServerError(Exception):
    """An error of the server: its SQLSTATE and its message."""

    def __init__(self, state: str, message: str) -> None:
        super().__init__(message)
        self.state = state


class Session:
    """A connection whose statements end early when the listener stops. `label` names it in errors.

    With `replication` it can create slots and stream changes. It uses the driver's low-level calls,
    because the driver's own statements wait forever for a hanging server and cannot replicate.
    """

    def __init__(self, label: str, url: str, listener: Listener, *, replication: bool) -> None:
        self.label = label
        self._listener = listener
        replicating = {"replication": "database"} if replication else {}
        try:
            self.connection = psycopg.connect(url, **{**_CONNECTION, **replicating})
        except psycopg.Error as error:
            if re.search("walsender|WAL sender", _first_line(error)):
                raise SettingsError(
                    f"{label}: its user may not replicate; run ALTER ROLE ... REPLICATION, or "
                    "grant the role of your managed database (rds_replication, for example)"
                ) from None
            raise
        self._driver = self.connection.pgconn
        self._warnings: list[ServerError] = []
        self._driver.notice_handler = _collect(self._warnings)
        self._poll = select.poll()
        self._poll.register(self._driver.socket, select.POLLIN)
        try:
            settings = {**SETTINGS, **_SESSION}
            if self.connection.info.parameter_status("server_encoding") == "SQL_ASCII":
                settings["client_encoding"] = "SQL_ASCII"  # its text may not be UTF-8
            for name, value in settings.items():
                self.execute(SQL("SET {} = {}").format(SQL(name), Literal(value)))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the session. The slot that it streams from is free a moment later."""
        self.connection.close()

    def execute(self, statement: Composable, seconds: float | None = RESPONSE_SECONDS) -> PGresult:
        """Run a statement for at most `seconds`; without a limit if `None`.

        Raises `ServerError`, `ListenerStopped`, `TimeoutError` and the driver's errors.
        """
        driver = self._driver
        driver.send_query(statement.as_bytes(self.connection))
        deadline = None if seconds is None else monotonic() + seconds
        failed = succeeded = None
        while True:
            while driver.flush() or driver.is_busy():
                self._wait(deadline)
            result = driver.get_result()
            if result is None:
                break
            if result.status in _SUCCEEDED:
                succeeded = result
            else:
                failed = result
            if result.status == ExecStatus.COPY_BOTH:
                break
        if failed is not None:
            raise _server_error(failed)
        assert succeeded is not None
        return succeeded

    def rows(self, statement: Composable) -> Sequence[tuple[str | None, ...]]:
        """The rows of a query's result, as text."""
        result = self.execute(statement)
        return [
            tuple(
                None if (value := result.get_value(row, column)) is None else value.decode()
                for column in range(result.nfields)
            )
            for row in range(result.ntuples)
        ]

    def receive(self) -> bytes | None:
        """The next message of the stream; `None` after half a second without one.

        Raises `ServerError` if the server has ended the stream or skips changes, and the driver's
        errors.
        """
        driver = self._driver
        size, data = driver.get_copy_data(1)
        if not size:
            driver.consume_input()
            size, data = driver.get_copy_data(1)
        if not size:
            if not self._poll.poll(_TICK * 1000):
                return None
            driver.consume_input()
            size, data = driver.get_copy_data(1)
        if self._warnings:
            raise self._warnings[0]
        if size > 0:
            return bytes(data)
        if size == 0:
            return None
        while (result := driver.get_result()) is not None:
            if result.status not in _SUCCEEDED:
                raise _server_error(result)
        raise ServerError("57P01", "the server has ended the stream")

    def send(self, message: bytes) -> None:
        """Send a message into the stream. Raises the driver's errors."""
        self._driver.put_copy_data(message)
        self._driver.flush()

    def _wait(self, deadline: float | None) -> None:
        if self._listener.stopping or (deadline is not None and monotonic() > deadline):
            with suppress(psycopg.Error):
                self.connection.cancel_safe(timeout=2.0)
            if self._listener.stopping:
                raise ListenerStopped
            raise TimeoutError("no response in time")
        if self._poll.poll(_TICK * 1000):
            self._driver.consume_input()


def read_in_session(
    path: str,
    url: Secret | str,
    listener: Listener,
    read: Callable[[Session], Iterator[Event[T]]],
    *,
    replication: bool = False,
) -> Iterator[Event[T]]:
    """Yield what `read` yields in a session with the database of the source event `path`.

    Ends when the listener stops. Raises `SettingsError` for a URL that cannot be read or a user that
    lacks a right, `MissingSecret`, and `Unavailable`; and what `read` raises.
    """
    revealed = url.reveal() if isinstance(url, Secret) else url
    label = f"{path} at {_address(path, revealed)}"
    try:
        with closing(Session(label, revealed, listener, replication=replication)) as session:
            yield from read(session)
    except ListenerStopped:
        return
    except ServerError as error:
        raise _translated(label, error) from None
    except (psycopg.Error, OSError) as error:
        raise Unavailable(f"{label} does not respond: {_first_line(error)}") from None


def _address(path: str, url: str) -> str:
    """The URL without the user and the password."""
    try:
        options = conninfo_to_dict(url)
    except psycopg.Error:
        options = {}
    if not options or not url.startswith(("postgresql://", "postgres://")):
        raise SettingsError(
            f"{path}: its url cannot be read; write postgresql://user:password@host:5432/database, "
            "with special characters percent-encoded"
        ) from None
    host, port = options.get("host", ""), options.get("port", 5432)
    return f"postgresql://{host}:{port}/{options.get('dbname', '')}"


def _translated(label: str, error: ServerError) -> Exception:
    if error.state == "42501":
        return SettingsError(f"{label}: {error}; grant it to the user of its url")
    if error.state == "53400":
        return SettingsError(
            f"{label}: {error}; drop an unused slot, or raise max_replication_slots"
        )
    if error.state == "55006":
        return Unavailable(
            f"{label}: {error}; unless a listener has just ended, another "
            "deployment reads this slot: give one of them another slot="
        )
    return Unavailable(f"{label} failed: {error}")


def _collect(warnings: list[ServerError]) -> Callable[[PGresult], None]:
    """A handler of the server's notices that keeps those that say that changes are skipped."""

    def handle(notice: PGresult) -> None:
        warning = _server_error(notice)
        if warning.state == _SKIPPED:
            warnings.append(warning)

    return handle


def _server_error(result: PGresult) -> ServerError:
    state = result.error_field(DiagnosticField.SQLSTATE) or b""
    fields = (DiagnosticField.MESSAGE_PRIMARY, DiagnosticField.MESSAGE_DETAIL)
    parts = [
        part.decode("utf-8", "replace") for field in fields if (part := result.error_field(field))
    ]
    return ServerError(state.decode(), "; ".join(part.rstrip(".") for part in parts))


def _first_line(error: BaseException) -> str:
    message = str(error).strip()
    return message.splitlines()[0] if message else type(error).__name__
