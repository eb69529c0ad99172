"""Maintains a store: its names, the time index, the counters, and keys past their time."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    BigInteger,
    Connection,
    Date,
    Table,
    cast,
    delete,
    func,
    select,
    type_coerce,
    update,
)

from blacksmith_dagster.errors import UsageError
from blacksmith_dagster.store.database import Database
from blacksmith_dagster.store.records import Lane
from blacksmith_dagster.store.statements import upsert
from blacksmith_dagster.store.tables import (
    counter,
    destination_events,
    epochs,
    event_totals,
    event_types,
    events,
    fencing_tokens,
    job_totals,
    jobs,
    keys,
    loads,
    time_index,
)

if TYPE_CHECKING:
    from blacksmith_dagster.pipeline.application import Blacksmith

KEYS_KEPT = timedelta(days=7)
TIME_INDEX_GAP = timedelta(minutes=1)
_COUNTED_AT_ONCE = 200_000  # events in one transaction, so that writers never wait long


def register(conn: Connection, app: Blacksmith) -> None:
    """Add the application's names, and rename those with `renamed_from`."""
    received = {path for path in app.receivers if path not in app.source_events}
    webhooks = {webhook.path for source in app.sources.values() for webhook in source.webhooks}
    for event in app.destination_events.values():
        if event.renamed_from:
            old = f"{event.destination.name}/{event.renamed_from}"
            _rename(conn, destination_events, old, event.path)
            for outcome in event.outcomes:
                _rename(conn, event_types, f"{old}.{outcome.name}", outcome.path)
    _add_paths(conn, event_types, [*app.source_events, *received, *webhooks])
    _add_paths(conn, destination_events, list(app.destination_events))
    _make_fencing_tokens(conn)


def maintain(database: Database) -> None:
    """Do the regular maintenance; see `Store.maintain`."""
    database.read_names()  # another process may have begun a new epoch
    database.make_partitions()
    with database.writing() as conn:
        # In this order: events up to `low` were received before `now`, events above `high` after it.
        low, now = database.high_watermark(conn), database.now(conn)
        _add_to_time_index(conn, now, low, database.sequence(conn))
        _forget_keys(conn, now)
    has_more = True
    while has_more:
        with database.writing() as conn:
            has_more = _add_to_totals(conn, database.high_watermark(conn))


def _add_paths(conn: Connection, table: Table, paths: Iterable[str]) -> None:
    """Insert the paths that a table of names does not have, which gives each an id."""
    existing = set(conn.execute(select(table.c.path)).scalars())
    for path in sorted(set(paths) - existing):
        conn.execute(upsert(conn, table).on_conflict_do_nothing(), {"path": path})


def _rename(conn: Connection, table: Table, old: str, new: str) -> None:
    """Change a path and keep its id, unless the new path exists already."""
    existing = select(table.c.id).where(table.c.path == new)
    if conn.execute(existing).first() is None:
        conn.execute(update(table).where(table.c.path == old).values(path=new))


def _make_fencing_tokens(conn: Connection) -> None:
    """Insert the fencing token of each lane of each destination event, where it is missing."""
    existing = set(
        conn.execute(select(fencing_tokens.c.destination, fencing_tokens.c.lane)).tuples()
    )
    for destination in conn.execute(select(destination_events.c.id)).scalars():
        for lane in Lane:
            if (destination, lane) not in existing:
                values = {"destination": destination, "lane": lane, "token": 0, "holder": ""}
                conn.execute(upsert(conn, fencing_tokens).on_conflict_do_nothing(), values)


def highest_seq(conn: Connection) -> int:
    """The highest sequence number found in the store's tables."""
    maxima = (
        select(func.max(events.c.seq)),
        select(func.max(_LAST_CLAIMED)).select_from(destination_events),
        select(func.max(counter.c.upto)),
        select(func.max(epochs.c.first_seq - 1)),
        select(func.max(event_types.c.purged_upto)),
    )
    return max(conn.execute(maximum).scalar() or 0 for maximum in maxima)


# By destination event, as the index is: there may be millions of loads.
_LAST_CLAIMED = (
    select(func.max(loads.c.seq_to))
    .where(loads.c.destination == destination_events.c.id, loads.c.seq_to.is_not(None))
    .scalar_subquery()
)


def _add_to_time_index(conn: Connection, now: datetime, low: int, high: int) -> None:
    """Add a row to the time index, unless one was added within the last minute."""
    last = conn.execute(select(func.max(time_index.c.at))).scalar()
    if last is None or now - last > TIME_INDEX_GAP:
        values = {"at": now, "low": low, "high": high}
        conn.execute(upsert(conn, time_index).on_conflict_do_nothing(), values)


def begin_import(conn: Connection, at: datetime, low: int) -> None:
    """Add the time of imported history to the time index.

    Raises `UsageError` if the index has a later time already.
    """
    newest = conn.execute(select(func.max(time_index.c.at))).scalar()
    if newest is not None and at < newest:
        raise UsageError(
            f"history of {at:%Y-%m-%d %H:%M} cannot be imported: the store has received events at "
            f"{newest:%Y-%m-%d %H:%M}; import history in order of time, before you start the gateway"
        )
    values = {"at": at, "low": low, "high": low}
    conn.execute(upsert(conn, time_index).on_conflict_do_nothing(), values)


def end_import(conn: Connection, at: datetime, high: int) -> None:
    """Extend the row of the time index to the imported events."""
    conn.execute(update(time_index).where(time_index.c.at == at).values(high=high))


def _forget_keys(conn: Connection, now: datetime) -> None:
    """Delete keys older than KEYS_KEPT."""
    conn.execute(delete(keys).where(keys.c.received_at < now - KEYS_KEPT))


def _add_to_totals(conn: Connection, high_watermark: int) -> bool:
    """Add the next part of the log to the totals; returns whether there is more.

    `False` also if another process is doing it now.
    """
    row = conn.execute(select(counter.c.upto).with_for_update(skip_locked=True)).first()
    if row is None or row.upto >= high_watermark:
        return False
    after, upto = row.upto, min(high_watermark, row.upto + _COUNTED_AT_ONCE)
    day = _day(conn)
    events_per_day = (
        select(events.c.event_type, day, func.count())
        .where(events.c.seq > after, events.c.seq <= upto)
        .group_by(events.c.event_type, day)
    )
    for event_type, on_day, number in conn.execute(events_per_day).all():
        _add(conn, event_totals, {"event_type": event_type, "day": on_day}, "events", number)
    jobs_per_destination = (
        select(jobs.c.destination, func.count())
        .where(jobs.c.seq > after, jobs.c.seq <= upto)
        .group_by(jobs.c.destination)
    )
    for destination, number in conn.execute(jobs_per_destination).all():
        _add(conn, job_totals, {"destination": destination}, "jobs", number)
    conn.execute(update(counter).values(upto=upto))
    return bool(upto < high_watermark)


def _day(conn: Connection) -> Any:
    if conn.dialect.name == "sqlite":
        seconds = type_coerce(events.c.received_at, BigInteger) // 1_000_000
        return func.date(seconds, "unixepoch", type_=Date)
    return cast(func.timezone("UTC", events.c.received_at), Date)


def _add(conn: Connection, table: Table, key: dict[str, Any], column: str, number: int) -> None:
    added = upsert(conn, table).values({**key, column: number})
    total = table.c[column] + added.excluded[column]
    conn.execute(added.on_conflict_do_update(index_elements=list(key), set_={column: total}))
