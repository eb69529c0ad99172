"""Raw requests and messages that wait to be retried."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import Connection, delete, func, select

from blacksmith_dagster.errors import NotFound
from blacksmith_dagster.store.interface import RawRequest
from blacksmith_dagster.store.maintenance import batched, upsert
from blacksmith_dagster.store.tables import event_types, quarantine

_ID = re.compile(r"qua_([1-9][0-9]{0,17})")
_NAMED = 1000  # in one statement


def format_quarantine_id(number: int) -> str:
    """The public id of a request in quarantine."""
    return f"qua_{number}"


def parse_quarantine_id(quarantine_id: str) -> int:
    """The number that a public id stands for. Raises `NotFound` if it can be none's."""
    match = _ID.fullmatch(quarantine_id)
    if match is None:
        raise _gone(quarantine_id)
    return int(match[1])


def insert_raw(conn: Connection, event_type: int, raw: RawRequest, now: datetime) -> int:
    """Insert a raw request; returns its number, which is the first one's if its key is known."""
    added = upsert(conn, quarantine).values(
        event_type=event_type,
        received_at=now,
        headers=msgspec.json.encode(raw.headers).decode(),
        body=raw.body,
        error=raw.error,
        key=raw.key,
    )
    if raw.key is not None:
        # An update that changes nothing, as only what was written is returned.
        same = {"key": added.excluded.key}
        added = added.on_conflict_do_update(index_elements=["event_type", "key"], set_=same)
    number: int = conn.execute(added.returning(quarantine.c.id)).scalar_one()
    return number


def drop(conn: Connection, ids: Sequence[str]) -> None:
    """Remove requests. Raises `NotFound` if one is not there."""
    there: set[int] = set()
    # Locked in order, so that two who drop the same wait for each other and never in a circle.
    for some in batched(sorted({parse_quarantine_id(each) for each in ids}), _NAMED):
        named = quarantine.c.id.in_(some)
        locked = select(quarantine.c.id).where(named).order_by(quarantine.c.id).with_for_update()
        there.update(conn.execute(locked).scalars())
        conn.execute(delete(quarantine).where(named))
    for each in ids:
        if parse_quarantine_id(each) not in there:
            raise _gone(each)


def find_quarantined(conn: Connection, quarantine_id: str) -> Any:
    """The row of a request, whole, with the path of its event type. Raises `NotFound`."""
    number = parse_quarantine_id(quarantine_id)
    row = conn.execute(
        select(quarantine, event_types.c.path)
        .join(event_types, event_types.c.id == quarantine.c.event_type)
        .where(quarantine.c.id == number)
    ).first()
    if row is None:
        raise _gone(quarantine_id)
    return row


def oldest(conn: Connection, event_type: int | None, limit: int) -> Sequence[Any]:
    """Rows of the oldest requests, with the size of their bodies, which are not read."""
    size = func.length(quarantine.c.body).label("size")
    of = (quarantine.c.id, event_types.c.path, quarantine.c.received_at, quarantine.c.error, size)
    found = select(*of).join(event_types, event_types.c.id == quarantine.c.event_type)
    if event_type is not None:
        found = found.where(quarantine.c.event_type == event_type)
    return conn.execute(found.order_by(quarantine.c.id).limit(limit)).all()


def sizes(conn: Connection) -> dict[str, int]:
    """How many requests there are, by the path of their event type."""
    number = func.count().label("requests")
    per_event_type = (
        select(quarantine.c.event_type, number).group_by(quarantine.c.event_type).subquery()
    )
    found = select(event_types.c.path, per_event_type.c.requests).join(
        per_event_type, per_event_type.c.event_type == event_types.c.id
    )
    return dict(conn.execute(found.order_by(event_types.c.path)).tuples().all())


def _gone(quarantine_id: str) -> NotFound:
    return NotFound(
        f"no request {quarantine_id!r} in quarantine; `blacksmith quarantine list` shows what is there"
    )
