"""Reads the changes of a replication slot, and reports to the server which it may discard."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from struct import Struct
from time import monotonic, time
from typing import Any, cast

from psycopg.sql import SQL, Identifier, Literal

from blacksmith_dagster.errors import Unavailable
from blacksmith_dagster.pipeline.event import Event
from blacksmith_dagster.pipeline.triggers import Listener
from blacksmith_dagster.sources.postgres.change import Change, format_lsn, parse_lsn
from blacksmith_dagster.sources.postgres.pgoutput import Begin, Commit, PgoutputDecoder, RowChange
from blacksmith_dagster.sources.postgres.session import Session

NOTHING = cast("Event[Change]", [])
"""Yielded to commit a cursor without a change."""

_REPORT_SECONDS = 1.0  # between two reports of what is committed, if there is something new
_PING_SECONDS = 10.0  # between two reports that ask for a response
_SILENT_SECONDS = 30.0
_IDLE_SECONDS = 10.0  # without a change, until the cursor is committed nevertheless

_DATA, _KEEPALIVE = b"wk"
_DATA_HEADER = 25
_KEEPALIVE_FIELDS = Struct("!xqqB").unpack_from
_REPORT = Struct("!cqqqqB").pack
_EPOCH = 946_684_800  # PostgreSQL's, the year 2000, in Unix time


def cursor_at(slot: str, lsn: str, change: int = 0) -> dict[str, Any]:
    """The cursor after a change of the transaction that was committed at `lsn`."""
    return {"slot": slot, "lsn": lsn, "change": change}


class LogReader:
    """Reads the changes of a slot after the listener's cursor, and reports what is committed.

    The server may discard only what lies before the cursor that the store has committed. It sends a
    partly committed transaction again, and the committed part is skipped.

    Every transaction that was committed before `_reached` has been yielded. `_end` is where the log
    ended when reading began; later ends come with the server's messages.
    """

    def __init__(self, session: Session, slot: str, listener: Listener) -> None:
        self._session = session
        self._slot = slot
        self._listener = listener
        self._decode = PgoutputDecoder().decode
        cursor = listener.cursor
        self._transaction: Begin | None = None
        self._position = self._skip = 0  # of the transaction's changes
        self._begin, self._begin_changes = parse_lsn(cursor["lsn"]), cursor["change"]
        self._end = parse_lsn(session.rows(SQL("IDENTIFY_SYSTEM"))[0][2] or "0/0")
        self._reached = self._committed = self._begin
        self._confirmed = 0
        self._wants_response = False
        self._reported_at = self._received_at = self._changed_at = monotonic()

    def read(self) -> Iterator[Event[Change]]:
        """Yield the changes, until the listener stops.

        Raises `Unavailable` if the server has sent nothing for 30 seconds.
        """
        self._session.execute(
            SQL(
                "START_REPLICATION SLOT {} LOGICAL 0/0 (proto_version '1', publication_names {})"
            ).format(Identifier(self._slot), Literal(f'"{self._slot}"'))
        )
        while not self._listener.stopping:
            message = self._session.receive()
            if message is None:
                if monotonic() - self._received_at > _SILENT_SECONDS:
                    raise Unavailable(
                        f"{self._session.label} has been silent for {_SILENT_SECONDS:g} seconds"
                    )
            else:
                if message[0] == _DATA:
                    yield from self._changes(message)
                elif message[0] == _KEEPALIVE:
                    self._read_keepalive(message)
                self._received_at = monotonic()
            if self._transaction is None and self._is_idle():
                self._listener.cursor = cursor_at(self._slot, format_lsn(self._reached))
                yield NOTHING
            self._report()
        self._report(now=True)

    def _changes(self, message: bytes) -> Iterator[Event[Change]]:
        decoded = self._decode(message, _DATA_HEADER)
        if isinstance(decoded, Begin):
            self._transaction, self._position, self._skip = decoded, 0, 0
            if decoded.lsn < self._begin:
                self._skip = sys.maxsize
            elif decoded.lsn == self._begin:
                self._skip = self._begin_changes
        elif isinstance(decoded, Commit):
            self._transaction = None
            self._reached = max(self._reached, decoded.end)
        elif self._transaction is not None:
            for row in decoded:
                self._position += 1
                if self._position > self._skip:
                    yield self._event(self._transaction, row)
                    self._changed_at = monotonic()

    def _event(self, transaction: Begin, row: RowChange) -> Event[Change]:
        lsn = format_lsn(transaction.lsn)
        self._listener.cursor = cursor_at(self._slot, lsn, self._position)
        change = Change(
            row.operation,
            row.relation.schema,
            row.relation.table,
            lsn,
            self._position,
            transaction.committed_at,
            transaction.xid,
            row.new,
            row.old,
        )
        return Event(change, sent_at=transaction.committed_at)

    def _read_keepalive(self, message: bytes) -> None:
        """Read the server's place in the log; within a transaction, that was not reached yet."""
        position, _, wants_response = _KEEPALIVE_FIELDS(message)
        if self._transaction is None:
            self._reached = max(self._reached, position)
        self._wants_response = self._wants_response or bool(wants_response)

    def _is_idle(self) -> bool:
        """Whether to commit the cursor without a change.

        That is due after a while, or when the server requests a response: it does not shut down
        before everything is confirmed.
        """
        listener = self._listener
        is_due = self._wants_response or monotonic() - self._changed_at > _IDLE_SECONDS
        if not is_due or listener.committed != listener.cursor:
            return False
        self._changed_at = monotonic()
        return self._reached > parse_lsn(listener.cursor["lsn"])

    def _report(self, *, now: bool = False) -> None:
        """Report to the server what is committed, if a report is due."""
        elapsed = monotonic() - self._reported_at
        is_wanted = now or self._wants_response
        if not is_wanted and elapsed < _REPORT_SECONDS:
            return
        cursor = self._listener.committed
        if cursor is not None and cursor["slot"] == self._slot:
            self._committed = max(self._committed, parse_lsn(cursor["lsn"]))
        committed, ping = self._committed, elapsed >= _PING_SECONDS
        self._listener.lag = max(0, max(self._reached, self._end) - committed)
        if is_wanted or ping or committed > self._confirmed:
            now_us = int((time() - _EPOCH) * 1_000_000)
            self._session.send(_REPORT(b"r", self._reached, committed, committed, now_us, ping))
            self._confirmed, self._wants_response = committed, False
            self._reported_at = monotonic()
