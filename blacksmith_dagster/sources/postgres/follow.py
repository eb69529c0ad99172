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
from blacksmith_dagster.sources.postgres.pgoutput import Begin, Commit, PgoutputDecoder
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


def follow(session: Session, label: str, slot: str, listener: Listener) -> Iterator[Event[Change]]:
    """Yield the changes after the listener's cursor, until the listener stops.

    The server may discard only what lies before the cursor that the store has committed. It sends a
    partly committed transaction again, and the committed part is skipped.
    """
    decode = PgoutputDecoder().decode
    read, read_changes = parse_lsn(listener.cursor["lsn"]), listener.cursor["change"]
    end = parse_lsn(session.rows(SQL("IDENTIFY_SYSTEM"))[0][2] or "0/0")
    progress = _LogProgress(session, label, slot, listener, read, end)
    transaction: Begin | None = None
    lsn, position, skip = "", 0, 0
    session.execute(
        SQL(
            "START_REPLICATION SLOT {} LOGICAL 0/0 (proto_version '1', publication_names {})"
        ).format(Identifier(slot), Literal(f'"{slot}"'))
    )
    while not listener.stopping:
        message = session.receive()
        if message is None:
            progress.check_silence()
        elif message[0] == _DATA:
            decoded = decode(message, _DATA_HEADER)
            if isinstance(decoded, Begin):
                transaction, lsn, position = decoded, format_lsn(decoded.lsn), 0
                skip = sys.maxsize if decoded.lsn < read else 0
                if decoded.lsn == read:
                    skip = read_changes
            elif isinstance(decoded, Commit):
                transaction = None
                progress.reached = max(progress.reached, decoded.end)
            elif transaction is not None:
                for row in decoded:
                    position += 1
                    if position <= skip:
                        continue
                    listener.cursor = cursor_at(slot, lsn, position)
                    yield Event(
                        Change(
                            row.operation,
                            row.relation.schema,
                            row.relation.table,
                            lsn,
                            position,
                            transaction.committed_at,
                            transaction.xid,
                            row.new,
                            row.old,
                        ),
                        sent_at=transaction.committed_at,
                    )
                    progress.changed_at = monotonic()
            progress.received_at = monotonic()
        elif message[0] == _KEEPALIVE:
            progress.read_keepalive(message, between=transaction is None)
        if transaction is None and progress.is_idle():
            listener.cursor = cursor_at(slot, format_lsn(progress.reached))
            yield NOTHING
        progress.report()
    progress.report(now=True)


class _LogProgress:
    """How far the log was read, and how much of it was reported to the server as committed.

    Every transaction that was committed before `reached` has been yielded. `end` is where the log
    ended when reading began; later ends come with the server's messages.
    """

    def __init__(
        self, session: Session, label: str, slot: str, listener: Listener, read: int, end: int
    ) -> None:
        self._session = session
        self._label = label
        self._slot = slot
        self._listener = listener
        self._committed = read
        self._end = end
        self._confirmed = 0
        self._wants_response = False
        self.reached = read
        self._reported_at = self.received_at = self.changed_at = monotonic()

    def read_keepalive(self, message: bytes, *, between: bool) -> None:
        """Read the server's place in the log, which it sends `between` transactions or within one."""
        position, _, wants_response = _KEEPALIVE_FIELDS(message)
        if between:
            self.reached = max(self.reached, position)
        self._wants_response = self._wants_response or bool(wants_response)
        self.received_at = monotonic()

    def check_silence(self) -> None:
        """Raise `Unavailable` if the server has sent nothing for 30 seconds."""
        if monotonic() - self.received_at > _SILENT_SECONDS:
            raise Unavailable(f"{self._label} has been silent for {_SILENT_SECONDS:g} seconds")

    def is_idle(self) -> bool:
        """Whether to commit the cursor without a change.

        That is due after a while, or when the server requests a response: it does not shut down
        before everything is confirmed.
        """
        listener = self._listener
        is_due = self._wants_response or monotonic() - self.changed_at > _IDLE_SECONDS
        if not is_due or listener.committed != listener.cursor:
            return False
        self.changed_at = monotonic()
        return self.reached > parse_lsn(listener.cursor["lsn"])

    def report(self, *, now: bool = False) -> None:
        """Report to the server what is committed, if a report is due."""
        elapsed = monotonic() - self._reported_at
        is_wanted = now or self._wants_response
        if not is_wanted and elapsed < _REPORT_SECONDS:
            return
        cursor = self._listener.committed
        if cursor is not None and cursor["slot"] == self._slot:
            self._committed = max(self._committed, parse_lsn(cursor["lsn"]))
        committed, ping = self._committed, elapsed >= _PING_SECONDS
        self._listener.lag = max(0, max(self.reached, self._end) - committed)
        if is_wanted or ping or committed > self._confirmed:
            now_us = int((time() - _EPOCH) * 1_000_000)
            self._session.send(_REPORT(b"r", self.reached, committed, committed, now_us, ping))
            self._confirmed, self._wants_response = committed, False
            self._reported_at = monotonic()
