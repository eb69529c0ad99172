"""From a replication slot to changes: a snapshot first, if asked for, and then what is committed."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec
from psycopg.sql import SQL, Identifier

from blacksmith_dagster.errors import DeclarationError
from blacksmith_dagster.pipeline.event import Event
from blacksmith_dagster.pipeline.triggers import Listener
from blacksmith_dagster.redaction import Secret
from blacksmith_dagster.sources.postgres.change import Change, Notification, Operation
from blacksmith_dagster.sources.postgres.follow import NOTHING, cursor_at, follow
from blacksmith_dagster.sources.postgres.session import ListenerStopped, Session, SourceDatabase
from blacksmith_dagster.sources.postgres.slot import (
    PublishedTable,
    SlotPosition,
    check_continuous,
    check_server,
    drop_slot,
    find_slot,
    find_tables,
    lost_if_refused,
    make_slot,
    publish,
)
from blacksmith_dagster.sources.postgres.values import convert_of

_log = logging.getLogger(__name__)

_ROWS = 1_000  # of a snapshot that are fetched at once
_FETCH_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class ChangeStream:
    """The changes of some tables, by the slot and the publication that are named `slot`."""

    where: str
    url: Secret | str
    tables: Sequence[str]
    slot: str
    snapshot: bool

    def listen(self, listener: Listener) -> Iterator[Event[Change]]:
        """Yield what was changed since the listener's cursor, until it is asked to stop.

        Raises `SettingsError`, `DeclarationError`, `ChangesLost`, `Unavailable`.
        """
        database = SourceDatabase(self.where, self.url)
        try:
            with (
                database.translate_errors(),
                closing(Session(database, listener, replication=True)) as session,
            ):
                yield from self._begin(session, database.label, listener)
                with lost_if_refused(database.label):
                    yield from follow(session, database.label, self.slot, listener)
        except ListenerStopped:
            return

    def _begin(self, session: Session, label: str, listener: Listener) -> Iterator[Event[Change]]:
        """Come to where the slot can be followed from the listener's cursor."""
        check_server(session, label)
        place = _place(label, listener.cursor)
        slot = find_slot(session, label, self.slot)
        if place is not None and place.slot != self.slot:
            _log.warning(
                "%s begins anew with the slot %r; if the server still has %r, it keeps its log for it: "
                "SELECT pg_drop_replication_slot('%s')",
                *(label, self.slot, place.slot, place.slot),
            )
            place = None
        anew = place is None or (place.row is not None and self.snapshot)
        if place is not None and not anew:
            check_continuous(session, label, place, slot)
        # The publication comes first: the log that was written before it can't be read with it.
        publish(session, label, self.slot, self.tables, create=anew)
        if anew and self.snapshot:
            # What is there belongs to a snapshot that was not finished, and can't be gone on with.
            if slot is not None:
                drop_slot(session, self.slot)
            lsn = make_slot(session, label, self.slot, snapshot=True)
            yield from self._read_tables(session, lsn, listener)
            session.execute(SQL("COMMIT"))
            return
        if anew:
            lsn = slot.confirmed if slot else make_slot(session, label, self.slot, snapshot=False)
        elif place is not None and place.row is not None:  # the rest of a snapshot is not wanted
            lsn = place.lsn
        else:
            return
        listener.cursor = cursor_at(self.slot, lsn)
        yield NOTHING

    def _read_tables(
        self, session: Session, lsn: str, listener: Listener
    ) -> Iterator[Event[Change]]:
        tables = find_tables(session, self.slot)
        now = datetime.fromisoformat(session.rows(SQL("SELECT now()"))[0][0] or "")
        number = 0
        for table in tables:
            for row in _rows(session, table):
                number += 1
                listener.cursor = {"slot": self.slot, "lsn": lsn, "row": number}
                yield _of_snapshot("snapshot", table, lsn, now, row)
            number += 1
            listener.cursor = {"slot": self.slot, "lsn": lsn, "row": number}
            if table is tables[-1]:
                listener.cursor = cursor_at(self.slot, lsn)
            yield _of_snapshot("snapshot_completed", table, lsn, now, None)


def _place(label: str, cursor: Any) -> SlotPosition | None:
    try:
        return msgspec.convert(cursor, SlotPosition | None)
    except msgspec.ValidationError:
        raise DeclarationError(
            f"{label}: its cursor {cursor!r} was written by another listener under the same name; give "
            "the event another name"
        ) from None


def _rows(session: Session, table: PublishedTable) -> Iterator[dict[str, Any]]:
    """All rows of a table, in the session's transaction."""
    chosen = SQL("SELECT {} FROM {} {}").format(
        SQL(", ").join(map(Identifier, table.columns)),
        SQL("{}" if table.partitioned else "ONLY {}").format(table.named),
        SQL("" if table.where is None else f"WHERE {table.where}"),
    )
    session.execute(SQL("DECLARE read NO SCROLL CURSOR FOR {}").format(chosen), _FETCH_SECONDS)
    while True:
        found = session.execute(SQL(f"FETCH {_ROWS} FROM read"), _FETCH_SECONDS)
        converts = [convert_of(found.ftype(column)) for column in range(found.nfields)]
        columns = list(enumerate(zip(table.columns, converts, strict=True)))
        for row in range(found.ntuples):
            yield {
                name: None if (value := found.get_value(row, column)) is None else convert(value)
                for column, (name, convert) in columns
            }
        if found.ntuples < _ROWS:
            break
    session.execute(SQL("CLOSE read"))


def _of_snapshot(
    operation: Operation, table: PublishedTable, lsn: str, at: datetime, row: dict[str, Any] | None
) -> Event[Change]:
    return Event(Change(operation, table.schema, table.name, lsn, 0, at, new=row), sent_at=at)


_TICK = 0.5


@dataclass(frozen=True, slots=True)
class Channel:
    """What is notified on a channel of a database."""

    where: str
    url: Secret | str
    channel: str

    def listen(self, listener: Listener) -> Iterator[Event[Notification]]:
        """Yield what is notified from now on, until the listener is asked to stop.

        Raises `SettingsError`, `Unavailable`.
        """
        database = SourceDatabase(self.where, self.url)
        try:
            with database.translate_errors(), closing(Session(database, listener)) as session:
                session.execute(SQL("LISTEN {}").format(Identifier(self.channel)))
                while not listener.stopping:
                    for heard in session.connection.notifies(timeout=_TICK):
                        yield Event(Notification(heard.channel, heard.payload, heard.pid))
        except ListenerStopped:
            return
