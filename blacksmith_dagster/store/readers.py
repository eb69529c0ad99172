"""Readers of topics, tables and files: the cursor of each, and the status of each listener."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import msgspec
from sqlalchemy import Connection, select, update

from blacksmith_dagster.errors import CursorMoved
from blacksmith_dagster.store.interface import Cursor, ListenerStatus
from blacksmith_dagster.store.maintenance import upsert
from blacksmith_dagster.store.tables import cursors, listeners


def cursor(conn: Connection, reader: str) -> str | None:
    """A reader's cursor, or `None` if the store has not seen it."""
    found = select(cursors.c.value).where(cursors.c.reader == reader)
    return conn.execute(found).scalar()


def move_cursors(conn: Connection, moves: Sequence[Cursor]) -> None:
    """Move readers' cursors on. Raises `CursorMoved` if one is not where the reader left it."""
    # Sorted, so that two commits wait for each other and never in a circle.
    for reader, before, after in sorted((each.reader, each.before, each.after) for each in moves):
        if before is None:
            moved = upsert(conn, cursors).values(reader=reader, value=after)
            moved = moved.on_conflict_do_nothing()
        else:
            mine = (cursors.c.reader == reader, cursors.c.value == before)
            moved = update(cursors).where(*mine).values(value=after)
        if conn.execute(moved.returning(cursors.c.reader)).first() is None:
            raise CursorMoved(
                f"{reader} is no longer where it was read: another process has read on; read the "
                "cursor again and continue from there"
            )


def note_listener(conn: Connection, status: ListenerStatus, now: datetime) -> None:
    """Keep the status of a listener, in place of what was noted before."""
    values = msgspec.structs.asdict(status) | {"at": now}
    noted = upsert(conn, listeners).values(values)
    conn.execute(noted.on_conflict_do_update(index_elements=["path"], set_=values))


def listener_statuses(conn: Connection) -> Sequence[ListenerStatus]:
    """What was noted of each listener, by path."""
    found = select(listeners).order_by(listeners.c.path)
    return [ListenerStatus(**row) for row in conn.execute(found).mappings()]
