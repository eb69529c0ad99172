"""A session with PostgreSQL that is given up when it is asked to, and whose errors become ours."""

from __future__ import annotations

import re
import select
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from time import monotonic
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import DiagnosticField, ExecStatus
from psycopg.pq.abc import PGresult
from psycopg.sql import SQL, Composable, Literal

from blacksmith_dagster.errors import SettingsError, Unavailable
from blacksmith_dagster.pipeline.triggers import Listener
from blacksmith_dagster.redaction import Secret
from blacksmith_dagster.sources.postgres.values import SETTINGS

RESPONSE_SECONDS = 30.0

_TICK = 0.5
_CONNECTION = {
    "autocommit": True,
    "client_encoding": "utf8",
    "connect_timeout": 10,
    # A peer that has gone without a word is found out within 15 s, and within 5 s while data waits.
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 1,
    "tcp_user_timeout": 5000,
}
_OWN = {
    # How long a snapshot takes is decided by who keeps it.
    "statement_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    # Fail rather than leave out rows that would come as changes.
    "row_security": "off",
}
_FINE = (ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK, ExecStatus.COPY_BOTH)


class ListenerStopped(Exception):
    """The listener was asked to stop while something was waited for."""


class ServerError(Exception):
    """What the server has refused: its code (SQLSTATE) and its words."""

    def __init__(self, state: str, said: str) -> None:
        super().__init__(said)
        self.state = state


class SourceDatabase:
    """Where a source's database is. `label` names it without the user and the password.

    Raises `SettingsError` for a URL that cannot be read, `MissingSecret`.
    """

    def __init__(self, where: str, url: Secret | str) -> None:
        revealed = url.reveal() if isinstance(url, Secret) else url
        try:
            options = conninfo_to_dict(revealed)
        except psycopg.Error:
            options = {}
        if not options or not revealed.startswith(("postgresql://", "postgres://")):
            raise SettingsError(
                f"{where}: its url cannot be read; write postgresql://user:password@host:5432/database, "
                "with special characters percent-encoded"
            ) from None
        place = f"{options.get('host', '')}:{options.get('port', 5432)}/{options.get('dbname', '')}"
        self.label = f"{where} at postgresql://{place}"
        self._url = revealed

    def connect(self, **options: Any) -> psycopg.Connection:
        """A connection whose values are written as `values` wants them.

        Raises `SettingsError` if the user may not, `Unavailable`.
        """
        try:
            connection = psycopg.connect(self._url, **{**_CONNECTION, **options})
        except psycopg.Error as error:
            said = _first_line(error)
            if re.search("walsender|WAL sender", said):
                raise SettingsError(
                    f"{self.label}: its user may not replicate; run ALTER ROLE ... REPLICATION, or "
                    "grant what a managed database has for it (rds_replication, for example)"
                ) from None
            raise Unavailable(f"{self.label} does not respond: {said}") from None
        return connection

    @contextmanager
    def translate_errors(self) -> Iterator[None]:
        """Raise what goes wrong within as one of our errors."""
        try:
            yield
        except ServerError as error:
            raise self._translated(error) from None
        except (psycopg.Error, OSError) as error:
            raise Unavailable(f"{self.label} does not respond: {_first_line(error)}") from None

    def _translated(self, error: ServerError) -> Exception:
        if error.state == "42501":
            return SettingsError(f"{self.label}: {error}; grant it to the user of its url")
        if error.state == "53400":
            return SettingsError(
                f"{self.label}: {error}; drop a slot that nobody uses, or raise max_replication_slots"
            )
        if error.state == "55006":
            return Unavailable(
                f"{self.label}: {error}; if that is not a listener that has just ended, another "
                "deployment reads this slot: give one of them another slot="
            )
        return Unavailable(f"{self.label} does not go on: {error}")


class Session:
    """A connection on which statements run until they are done, or the listener is asked to stop.

    With `replication` it may make slots and stream changes. By the driver's own parts: as a whole it
    waits for a hanging server for ever, and knows nothing of replication.
    """

    def __init__(
        self, database: SourceDatabase, listener: Listener, *, replication: bool = False
    ) -> None:
        self._listener = listener
        self.connection = database.connect(**{"replication": "database"} if replication else {})
        self._driver = self.connection.pgconn
        self._poll = select.poll()
        self._poll.register(self._driver.socket, select.POLLIN)
        try:
            settings = {**SETTINGS, **_OWN}
            if self.connection.info.parameter_status("server_encoding") == "SQL_ASCII":
                settings["client_encoding"] = "SQL_ASCII"  # what is in there may be no UTF-8
            for name, value in settings.items():
                self.execute(SQL("SET {} = {}").format(SQL(name), Literal(value)))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the session; a slot that it streams from is free a moment later."""
        self.connection.close()

    def execute(self, statement: Composable, seconds: float | None = RESPONSE_SECONDS) -> PGresult:
        """Run a statement, for so long at most.

        Raises `ServerError`, `ListenerStopped`, `TimeoutError`, and what the driver raises.
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
            if result.status in _FINE:
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
        """What a query finds, as text."""
        result = self.execute(statement)
        return [
            tuple(
                None if (value := result.get_value(row, column)) is None else value.decode()
                for column in range(result.nfields)
            )
            for row in range(result.ntuples)
        ]

    def receive(self) -> bytes | None:
        """The next message of the stream; `None` if none comes within half a second.

        Raises `ServerError` if the server has ended the stream, and what the driver raises.
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
        if size > 0:
            return bytes(data)
        if size == 0:
            return None
        while (result := driver.get_result()) is not None:
            if result.status not in _FINE:
                raise _server_error(result)
        raise ServerError("57P01", "the server has ended the stream")

    def send(self, message: bytes) -> None:
        """Send a message into the stream. Raises what the driver raises."""
        self._driver.put_copy_data(message)
        self._driver.flush()

    def _wait(self, deadline: float | None) -> None:
        if self._listener.stopping or (deadline is not None and monotonic() > deadline):
            with suppress(psycopg.Error):
                self.connection.cancel_safe(timeout=2.0)
            if self._listener.stopping:
                raise ListenerStopped
            raise TimeoutError("it has not responded in time")
        if self._poll.poll(_TICK * 1000):
            self._driver.consume_input()


def _server_error(result: PGresult) -> ServerError:
    state = result.error_field(DiagnosticField.SQLSTATE) or b""
    fields = (DiagnosticField.MESSAGE_PRIMARY, DiagnosticField.MESSAGE_DETAIL)
    said = [
        part.decode("utf-8", "replace") for each in fields if (part := result.error_field(each))
    ]
    return ServerError(state.decode(), "; ".join(each.rstrip(".") for each in said))


def _first_line(error: BaseException) -> str:
    said = str(error).strip()
    return said.splitlines()[0] if said else type(error).__name__
