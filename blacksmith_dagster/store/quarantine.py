"""`store.quarantine`: raw requests that could not be ingested, until they are retried or dropped."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Connection, delete, func, insert, select

from blacksmith_dagster.errors import NotFound
from blacksmith_dagster.pipeline.retention import Retention
from blacksmith_dagster.store.database import Database
from blacksmith_dagster.store.records import Quarantined, RawRequest
from blacksmith_dagster.store.statements import batched, upsert
from blacksmith_dagster.store.tables import event_types, quarantine

_ID = re.compile(r"qua_([1-9][0-9]{0,17})")
_BATCH = 1000  # ids in one statement


class Selection(msgspec.Struct, frozen=True):
    """Requests in quarantine that fit all of these; a field that is `None` selects every one.

    - `source`: a source's name: its events, and its webhook endpoints.
    - `event_type`: the path of a source event, or the name of a source with webhook endpoints.
    - `before`: they were received before this time.
    - `error`: a text in their error.
    """

    source: str | None = None
    event_type: str | None = None
    before: datetime | None = None
    error: str | None = None


class Quarantine:
    """The requests in quarantine. Their ids are `qua_...`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, raw: RawRequest) -> str:
        """Store a raw request; returns its id."""
        with self._database.writing() as conn:
            return insert_all(self._database, conn, [raw])[0]

    def oldest(self, event_type: str | None = None, limit: int = 100) -> Sequence[Quarantined]:
        """The requests in quarantine, of one event type or of all, the oldest first."""
        size = func.length(quarantine.c.body)
        columns = (quarantine.c.id, event_types.c.path, quarantine.c.received_at)
        statement = select(*columns, quarantine.c.error, size).join(
            event_types, event_types.c.id == quarantine.c.event_type
        )
        if event_type is not None:
            of_type = quarantine.c.event_type == self._database.event_type(event_type)
            statement = statement.where(of_type)
        with self._database.reading() as conn:
            rows = conn.execute(statement.order_by(quarantine.c.id).limit(limit)).tuples()
            return [Quarantined(f"qua_{number}", *columns) for number, *columns in rows]

    def get(self, quarantine_id: str) -> RawRequest:
        """A request in quarantine, with its body. Raises `NotFound`."""
        number = _parse_id(quarantine_id)
        statement = select(quarantine, event_types.c.path).join(
            event_types, event_types.c.id == quarantine.c.event_type
        )
        with self._database.reading() as conn:
            row = conn.execute(statement.where(quarantine.c.id == number)).first()
        if row is None:
            raise _not_in_quarantine(quarantine_id)
        return RawRequest(row.path, row.body, msgspec.json.decode(row.headers), row.error, row.key)

    def drop(self, ids: Sequence[str]) -> None:
        """Delete requests in quarantine. If one does not exist, raises `NotFound` and deletes none."""
        with self._database.writing() as conn:
            drop(conn, ids)

    def size(self, selected: Selection) -> int:
        """How many requests are selected."""
        statement = select(func.count()).where(*self._conditions(selected))
        with self._database.reading() as conn:
            return conn.execute(statement.select_from(quarantine)).scalar_one()

    def drop_selected(self, selected: Selection) -> Iterator[int]:
        """Delete the selected requests in small transactions; yields how many each has deleted."""
        return self.drop_numbers(self.numbers(selected))

    def numbers(self, selected: Selection) -> Sequence[int]:
        """The numbers of the selected requests, in order."""
        matching = select(quarantine.c.id).where(*self._conditions(selected))
        with self._database.reading() as conn:
            return conn.execute(matching.order_by(quarantine.c.id)).scalars().all()

    def drop_numbers(self, numbers: Sequence[int]) -> Iterator[int]:
        """Delete the requests with these numbers that still exist, in small transactions; yields how
        many each has deleted."""
        for batch in batched(numbers, _BATCH):
            named = quarantine.c.id.in_(batch)
            # In the order of their numbers, so that concurrent drops cannot deadlock.
            locked = select(quarantine.c.id).where(named).order_by(quarantine.c.id)
            with self._database.writing() as conn:
                conn.execute(locked.with_for_update())
                dropped = conn.execute(delete(quarantine).where(named)).rowcount
            yield dropped

    def expired(self, retention: Mapping[str, Retention]) -> Mapping[str, Selection]:
        """What is past its retention, by event type."""
        self._database.read_names()
        with self._database.reading() as conn:
            now = self._database.now(conn)
        return {
            path: Selection(event_type=path, before=now - kept_for.quarantine)
            for path, kept_for in retention.items()
            if kept_for.quarantine is not None and path in self._database.event_types
        }

    def _conditions(self, selected: Selection) -> Iterator[ColumnElement[bool]]:
        if selected.source is not None:
            self._database.read_names()
            within = f"{selected.source}/"
            ids = [
                type_id
                for path, type_id in self._database.event_types.items()
                if path == selected.source or path.startswith(within)
            ]
            yield quarantine.c.event_type.in_(ids)
        if selected.event_type is not None:
            yield quarantine.c.event_type == self._database.event_type(selected.event_type)
        if selected.before is not None:
            yield quarantine.c.received_at < selected.before
        if selected.error is not None:
            # Not LIKE, which ignores case on SQLite.
            yield func.replace(quarantine.c.error, selected.error, "") != quarantine.c.error

    def sizes(self) -> Mapping[str, int]:
        """How many requests are in quarantine, by event type."""
        per_type = (
            select(quarantine.c.event_type, func.count().label("requests"))
            .group_by(quarantine.c.event_type)
            .subquery()
        )
        by_path = select(event_types.c.path, per_type.c.requests).join(
            per_type, per_type.c.event_type == event_types.c.id
        )
        with self._database.reading() as conn:
            return dict(conn.execute(by_path.order_by(event_types.c.path)).tuples().all())


def insert_all(
    database: Database, conn: Connection, raw_requests: Sequence[RawRequest]
) -> list[str]:
    """Insert raw requests; returns their ids, in order. The id of one with a known key is that key's."""
    if not raw_requests:
        return []
    now = database.now(conn)
    rows = [
        {
            "event_type": database.event_type(raw.event_type),
            "received_at": now,
            "headers": msgspec.json.encode(raw.headers).decode(),
            "body": raw.body,
            "error": raw.error,
            "key": raw.key,
        }
        for raw in raw_requests
    ]
    places = [(row["event_type"], row["key"]) for row in rows]
    by_place: dict[tuple[Any, Any], int] = {}
    # One row of a key, in order of the keys, so that concurrent commits cannot deadlock.
    keyed = {place: row for place, row in zip(places, rows, strict=True) if row["key"] is not None}
    if keyed:
        added = upsert(conn, quarantine)
        # An update that changes nothing, because RETURNING returns only rows that were written.
        same = {"key": added.excluded.key}
        added = added.on_conflict_do_update(index_elements=["event_type", "key"], set_=same)
        returned = added.returning(quarantine.c.event_type, quarantine.c.key, quarantine.c.id)
        for event_type, key, number in conn.execute(returned, [keyed[at] for at in sorted(keyed)]):
            by_place[event_type, key] = number
    unkeyed = [row for row in rows if row["key"] is None]
    numbers: Iterator[int] = iter(())
    if unkeyed:
        # With their ids: to return those of many rows in order would cost as much as to insert them.
        new = database.quarantine_ids(conn, len(unkeyed))
        numbered = [{**row, "id": number} for row, number in zip(unkeyed, new, strict=True)]
        conn.execute(insert(quarantine), numbered)
        numbers = iter(new)
    return [f"qua_{by_place.get(place) or next(numbers)}" for place in places]


def drop(conn: Connection, ids: Sequence[str]) -> None:
    """Remove requests. Raises `NotFound` if one of them does not exist."""
    numbers = {quarantine_id: _parse_id(quarantine_id) for quarantine_id in ids}
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


def _parse_id(quarantine_id: str) -> int:
    match = _ID.fullmatch(quarantine_id)
    if match is None:
        raise _not_in_quarantine(quarantine_id)
    return int(match[1])


def _not_in_quarantine(quarantine_id: str) -> NotFound:
    return NotFound(
        f"no request {quarantine_id!r} in quarantine; `blacksmith quarantine list` lists the requests"
    )
