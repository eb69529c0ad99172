"""How listeners stand: what each of them noted last."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import msgspec
from sqlalchemy import Connection, select

from blacksmith_dagster.store.interface import Listening
from blacksmith_dagster.store.maintenance import upsert
from blacksmith_dagster.store.tables import listeners


def note(conn: Connection, listener: Listening, now: datetime) -> None:
    """Keep how a listener stands now, in place of what was noted before."""
    values = msgspec.structs.asdict(listener) | {"at": now}
    noted = upsert(conn, listeners).values(values)
    conn.execute(noted.on_conflict_do_update(index_elements=["path"], set_=values))


def noted(conn: Connection) -> Sequence[Listening]:
    """What was noted of each listener, by path."""
    found = select(listeners).order_by(listeners.c.path)
    return [Listening(**row) for row in conn.execute(found).mappings()]
