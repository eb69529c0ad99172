"""Quarantine: raw requests that could not be ingested, until they are retried or dropped."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import Connection, delete, func, select

from blacksmith_dagster.errors import NotFound
from blacksmith_dagster.store.interface import RawRequest
from blacksmith_dagster.store.statements import batched, upsert
from blacksmith_dagster.store.tables import event_types, quarantine

_ID = re.compile(r"qua_([1-9][0-9]{0,17})")
_BATCH = 1000  # ids in one statement


def format_quarantine_id(number: int) -> str:
    """The public id of a request in quarantine."""
    return f"qua_{number}"


def parse_quarantine_id(quarantine_id: str) -> int:
    """The number of a public id. Raises `NotFound` if it is not such an id."""
    match = _ID.fullmatch(quarantine_id)
    if match is None:
        raise _not_in_quarantine(quarantine_id)
    return int(match[1])


def insert_raw(conn: Connection, event_type: int, raw: RawRequest, now: datetime) -> int:
    """Insert a raw request; returns its number, or that of the stored request with the same key."""
    added = upsert(conn, quarantine).values(
        event_type=event_type,
        received_at=now,
        headers=msgspec.json.encode(raw.headers).decode(),
        body=raw.body,
        error=raw.error,
        key=raw.key,
    )
    if raw.key is not None:
        # An update that changes nothing, because RETURNING returns only rows that were written.
        same = {"key": added.excluded.key}
        added = added.on_conflict_do_update(index_elements=["event_type", "key"], set_=same)
    number: int = conn.execute(added.returning(quarantine.c.id)).scalar_one()
    return number


def drop(conn: Connection, ids: Sequence[str]) -> None:
    """Remove requests. Raises `NotFound` if one of them does not exist."""
    numbers = {quarantine_id: parse_quarantine_id(quarantine_id) for quarantine_id in ids}
    existing: set[int] = set()
    # Locked in the order of their ids, so that concurrent drops cannot deadlock.
    for batch in batched(sorted(set(numbers.values())), _BATCH):
        named = quarantine.c.id.in_(batch)
        locked = select(quarantine.c.id).where(named).order_by(quarantine.c.id).with_for_update()
        existing.update(conn.execute(locked).scalars())
        conn.execute(delete(quarantine).where(named))
    for quarantine_id, number in numbers.items():
        if number not in existing:
            raise _not_in_quarantine(quarantine_id)


def find_quarantined(conn: Connection, quarantine_id: str) -> Any:
    """The complete row of a request, with the path of its event type. Raises `NotFound`."""
    number = parse_quarantine_id(quarantine_id)
    row = conn.execute(
        select(quarantine, event_types.c.path)
        .join(event_types, event_types.c.id == quarantine.c.event_type)
        .where(quarantine.c.id == number)
    ).first()
    if row is None:
        raise _not_in_quarantine(quarantine_id)
    return row


def oldest(conn: Connection, event_type: int | None, limit: int) -> Sequence[Any]:
    """Rows of the oldest requests, with the size of each body instead of the body."""
    size = func.length(quarantine.c.body).label("size")
    columns = (
        quarantine.c.id,
        event_types.c.path,
        quarantine.c.received_at,
        quarantine.c.error,
        size,
    )
    statement = select(*columns).join(event_types, event_types.c.id == quarantine.c.event_type)
    if event_type is not None:
        statement = statement.where(quarantine.c.event_type == event_type)
    return conn.execute(statement.order_by(quarantine.c.id).limit(limit)).all()


def sizes(conn: Connection) -> dict[str, int]:
    """How many requests there are, by the path of their event type."""
    number = func.count().label("requests")
    per_event_type = (
        select(quarantine.c.event_type, number).group_by(quarantine.c.event_type).subquery()
    )
    sizes_by_path = select(event_types.c.path, per_event_type.c.requests).join(
        per_event_type, per_event_type.c.event_type == event_types.c.id
    )
    return dict(conn.execute(sizes_by_path.order_by(event_types.c.path)).tuples().all())


def _not_in_quarantine(quarantine_id: str) -> NotFound:
    return NotFound(
        f"no request {quarantine_id!r} in quarantine; `blacksmith quarantine list` lists the requests"
    )
