"""Listens to PostgreSQL: for changes, after an optional snapshot, and for notifications."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec
from psycopg.sql import SQL, Identifier

from blacksmith_dagster.errors import DeclarationError
from blacksmith_dagster.pipeline.event import Event
from blacksmith_dagster.pipeline.triggers import Listener
from blacksmith_dagster.sources.postgres.change import Change, Notification, Operation
from blacksmith_dagster.sources.postgres.follow import NOTHING, LogReader, cursor_at
from blacksmith_dagster.sources.postgres.session import Session
from blacksmith_dagster.sources.postgres.slot import (
    PublishedTable,
    SlotPosition,
    check_continuous,
    check_server,
    create_slot,
    drop_slot,
    find_slot,
    find_tables,
    lost_if_refused,
    publish,
)
from blacksmith_dagster.sources.postgres.values import convert_of

_log = logging.getLogger(__name__)

_ROWS = 1_000  # rows of a snapshot that are fetched at once
_FETCH_SECONDS = 600.0
_TICK = 0.5  # seconds between two checks whether the listener stops


@dataclass(frozen=True, slots=True)
class ChangeStream:
    """The changes of `tables`. The slot and the publication are both named `slot`."""

    tables: Sequence[str]
    slot: str
    snapshot: bool
    listener: Listener

    def read(self, session: Session) -> Iterator[Event[Change]]:
        """Yield the changes since the listener's cursor, until the listener stops.

        Raises `SettingsError`, `DeclarationError`, `ChangesLost`, `Unavailable`.
        """
        yield from self._prepare(session)
        with lost_if_refused(session):
            yield from LogReader(session, self.slot, self.listener).read()

    def _prepare(self, session: Session) -> Iterator[Event[Change]]:
        """Prepare the slot so that it can be followed from the listener's cursor; yields a snapshot."""
        check_server(session)
        position = _position_of(session.label, self.listener.cursor)
        slot = find_slot(session, self.slot)
        if position is not None and position.slot != self.slot:
            _log.warning(
                "%s starts over with the slot %r; if the server still has %r, drop that, or the server "
                "keeps its log: SELECT pg_drop_replication_slot('%s')",
                *(session.label, self.slot, position.slot, position.slot),
            )
            position = None
        starts_over = position is None or (position.row is not None and self.snapshot)
        if position is not None and not starts_over:
            check_continuous(session, position, slot)
        # The publication first: it does not apply to the log that was written before it.
        publish(session, self.slot, self.tables, create=starts_over)
        if starts_over and self.snapshot:
            # An existing slot belongs to an unfinished snapshot, which can't be continued.
            if slot is not None:
                drop_slot(session, self.slot)
            lsn = create_slot(session, self.slot, snapshot=True)
            yield from self._read_tables(session, lsn)
            session.execute(SQL("COMMIT"))
            return
        if starts_over:
            lsn = slot.confirmed if slot else create_slot(session, self.slot, snapshot=False)
        elif position is not None and position.row is not None:  # snapshot= was removed meanwhile
            lsn = position.lsn
        else:
            return
        self.listener.cursor = cursor_at(self.slot, lsn)
        yield NOTHING

    def _read_tables(self, session: Session, lsn: str) -> Iterator[Event[Change]]:
        tables = find_tables(session, self.slot)
        read_at = datetime.fromisoformat(session.rows(SQL("SELECT now()"))[0][0] or "")
        number = 0
        for table in tables:
            for row in _rows(session, table):
                number += 1
                self.listener.cursor = {"slot": self.slot, "lsn": lsn, "row": number}
                yield _snapshot_event("snapshot", table, lsn, read_at, row)
            number += 1
            self.listener.cursor = {"slot": self.slot, "lsn": lsn, "row": number}
            if table is tables[-1]:
                self.listener.cursor = cursor_at(self.slot, lsn)
            yield _snapshot_event("snapshot_completed", table, lsn, read_at, None)


def notifications(
    session: Session, channel: str, listener: Listener
) -> Iterator[Event[Notification]]:
    """Yield the notifications on a channel from now on, until the listener stops."""
    session.execute(SQL("LISTEN {}").format(Identifier(channel)))
    while not listener.stopping:
        for notify in session.connection.notifies(timeout=_TICK):
            yield Event(Notification(notify.channel, notify.payload, notify.pid))


def _position_of(label: str, cursor: Any) -> SlotPosition | None:
    try:
        return msgspec.convert(cursor, SlotPosition | None)
    except msgspec.ValidationError:
        raise DeclarationError(
            f"{label}: its cursor {cursor!r} was written by a listener of another kind; give the event "
            "another name"
        ) from None


def _rows(session: Session, table: PublishedTable) -> Iterator[dict[str, Any]]:
    """All rows of a table, read in the session's transaction."""
    query = SQL("SELECT {} FROM {} {}").format(
        SQL(", ").join(map(Identifier, table.columns)),
        SQL("{}" if table.partitioned else "ONLY {}").format(table.qualified_name),
        SQL("" if table.where is None else f"WHERE {table.where}"),
    )
    session.execute(SQL("DECLARE read NO SCROLL CURSOR FOR {}").format(query), _FETCH_SECONDS)
    while True:
        result = session.execute(SQL(f"FETCH {_ROWS} FROM read"), _FETCH_SECONDS)
        converts = [convert_of(result.ftype(column)) for column in range(result.nfields)]
        columns = list(enumerate(zip(table.columns, converts, strict=True)))
        for row in range(result.ntuples):
            yield {
                name: None if (value := result.get_value(row, column)) is None else convert(value)
                for column, (name, convert) in columns
            }
        if result.ntuples < _ROWS:
            break
    session.execute(SQL("CLOSE read"))


def _snapshot_event(
    operation: Operation,
    table: PublishedTable,
    lsn: str,
    read_at: datetime,
    row: dict[str, Any] | None,
) -> Event[Change]:
    change = Change(operation, table.schema, table.name, lsn, 0, read_at, new=row)
    return Event(change, sent_at=read_at)
