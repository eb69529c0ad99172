"""The cursors of readers (polls, subscriptions, CDC, landed files), and the status of listeners."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import msgspec
from sqlalchemy import Connection, select, update

from blacksmith_dagster.errors import CursorMoved
from blacksmith_dagster.store.records import Cursor, ListenerStatus
from blacksmith_dagster.store.statements import upsert
from blacksmith_dagster.store.tables import cursors, listeners


def cursor(conn: Connection, reader: str) -> str | None:
    """A reader's cursor, or `None` if the store has not seen it."""
    return conn.execute(select(cursors.c.value).where(cursors.c.reader == reader)).scalar()


def move_cursors(conn: Connection, moves: Sequence[Cursor]) -> None:
    """Advance readers' cursors. Raises `CursorMoved` if one is not where its reader left it."""
    # Sorted, so that concurrent commits cannot deadlock.
    for reader, before, after in sorted((move.reader, move.before, move.after) for move in moves):
        if before is None:
            moved = upsert(conn, cursors).values(reader=reader, value=after)
            moved = moved.on_conflict_do_nothing()
        else:
            unmoved = (cursors.c.reader == reader, cursors.c.value == before)
            moved = update(cursors).where(*unmoved).values(value=after)
        if conn.execute(moved.returning(cursors.c.reader)).first() is None:
            raise CursorMoved(
                f"the cursor of {reader} has moved: another process has read further; read the cursor "
                "again and continue from there"
            )


def note_listener(conn: Connection, status: ListenerStatus, now: datetime) -> None:
    """Store the status of a listener, in place of the previous one."""
    values = msgspec.structs.asdict(status) | {"at": now}
    noted = upsert(conn, listeners).values(values)
    conn.execute(noted.on_conflict_do_update(index_elements=["path"], set_=values))


def listener_statuses(conn: Connection) -> Sequence[ListenerStatus]:
    """The last status of each listener, by path."""
    rows = conn.execute(select(listeners).order_by(listeners.c.path)).mappings()
    return [ListenerStatus(**row) for row in rows]
