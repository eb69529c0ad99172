"""Following a replication slot: the changes that it holds, each once, and what it may forget."""

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
"""Yielded to keep a cursor that no change belongs to."""

_REPORT_SECONDS = 1.0  # between two reports of what is safe, if there is something new
_PING_SECONDS = 10.0  # between two reports in any case, each of which asks for a response
_SILENT_SECONDS = 30.0
_IDLE_SECONDS = 10.0  # without a change, until it is kept how far the log was read

_DATA, _KEEPALIVE = b"wk"
_DATA_HEADER = 25
_KEPT_ALIVE = Struct("!xqqB").unpack_from
_REPORT = Struct("!cqqqqB").pack
_EPOCH = 946_684_800  # of PostgreSQL: the year 2000, in Unix time


def cursor_at(slot: str, lsn: str, change: int = 0) -> dict[str, Any]:
    """The cursor of what was read up to this change of the transaction that was committed at `lsn`."""
    return {"slot": slot, "lsn": lsn, "change": change}


def follow(session: Session, label: str, slot: str, listener: Listener) -> Iterator[Event[Change]]:
    """Yield the changes that come after the listener's cursor, until it is asked to stop.

    The slot forgets what lies before the cursor that is safe in the store, and nothing else: it never
    passes it. A transaction of which a part is safe is sent again, and that part left out.
    """
    decode = PgoutputDecoder().decode
    read, read_changes = parse_lsn(listener.cursor["lsn"]), listener.cursor["change"]
    end = parse_lsn(session.rows(SQL("IDENTIFY_SYSTEM"))[0][2] or "0/0")
    progress = _LogProgress(session, label, slot, listener, read, end)
    transaction: Begin | None = None
    lsn, place, again = "", 0, 0
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
                transaction, lsn, place = decoded, format_lsn(decoded.lsn), 0
                again = sys.maxsize if decoded.lsn < read else 0
                if decoded.lsn == read:
                    again = read_changes
            elif isinstance(decoded, Commit):
                transaction = None
                progress.reached = max(progress.reached, decoded.end)
            elif transaction is not None:
                for row in decoded:
                    place += 1
                    if place <= again:
                        continue
                    at = transaction.committed_at
                    listener.cursor = {"slot": slot, "lsn": lsn, "change": place}
                    yield Event(
                        Change(
                            row.operation,
                            row.relation.schema,
                            row.relation.table,
                            lsn,
                            place,
                            at,
                            transaction.xid,
                            row.new,
                            row.old,
                        ),
                        sent_at=at,
                    )
                    progress.changed_at = monotonic()
            progress.heard_at = monotonic()
        elif message[0] == _KEEPALIVE:
            progress.hear(message, between=transaction is None)
        if transaction is None and progress.is_idle():
            listener.cursor = cursor_at(slot, format_lsn(progress.reached))
            yield NOTHING
        progress.report()
    progress.report(now=True)


class _LogProgress:
    """How far the log was read, and how much of it was reported to the server as safe.

    `reached`: what was committed before it has been yielded. `end`: where the log ended when the
    reading began; the server tells later ends when it comes to them.
    """

    def __init__(
        self, session: Session, label: str, slot: str, listener: Listener, read: int, end: int
    ) -> None:
        self._session = session
        self._label = label
        self._slot = slot
        self._listener = listener
        self._safe = read
        self._end = end
        self._confirmed = 0
        self._asked = False
        self.reached = read
        self._reported_at = self.heard_at = self.changed_at = monotonic()

    def hear(self, message: bytes, *, between: bool) -> None:
        """Take in where the server is, as it tells now and then `between` transactions or in one."""
        position, _, wants_response = _KEPT_ALIVE(message)
        if between:
            self.reached = max(self.reached, position)
        self._asked = self._asked or bool(wants_response)
        self.heard_at = monotonic()

    def check_silence(self) -> None:
        """Raises `Unavailable` if the server has not responded for a long time."""
        if monotonic() - self.heard_at > _SILENT_SECONDS:
            raise Unavailable(f"{self._label} has been silent for {_SILENT_SECONDS:g} seconds")

    def is_idle(self) -> bool:
        """Whether it is time to keep how far the log was read, though no change has come.

        The server asks for it by wanting a response: it does not shut down before all is safe.
        """
        listener = self._listener
        quiet = self._asked or monotonic() - self.changed_at > _IDLE_SECONDS
        if not quiet or listener.committed != listener.cursor:
            return False
        self.changed_at = monotonic()
        return self.reached > parse_lsn(listener.cursor["lsn"])

    def report(self, *, now: bool = False) -> None:
        """Tell the server what is safe, if it is time to."""
        since = monotonic() - self._reported_at
        if not (now or self._asked) and since < _REPORT_SECONDS:
            return
        committed = self._listener.committed
        if committed is not None and committed["slot"] == self._slot:
            self._safe = max(self._safe, parse_lsn(committed["lsn"]))
        self._listener.lag = max(0, max(self.reached, self._end) - self._safe)
        if now or self._asked or self._safe > self._confirmed or since >= _PING_SECONDS:
            ping = since >= _PING_SECONDS
            at = int((time() - _EPOCH) * 1_000_000)
            self._session.send(_REPORT(b"r", self.reached, self._safe, self._safe, at, ping))
            self._confirmed, self._asked, self._reported_at = self._safe, False, monotonic()
