"""What keeps a store in order: names, the time index, counters, old keys."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any, TypeVar

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
from sqlalchemy.dialects import postgresql, sqlite

from blacksmith_dagster.errors import UsageError
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

KEYS_KEPT = timedelta(days=7)
TIME_INDEX_GAP = timedelta(minutes=1)
_COUNTED_AT_ONCE = 200_000  # events in one transaction, so that writers never wait long


T = TypeVar("T")


def batched(values: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Slices of `size` values, in order; the last may be shorter.

    A statement names only so many values, and a transaction that is short lets others write.

    >>> list(batched("abcde", 2))
    ['ab', 'cd', 'e']
    """
    return (values[start : start + size] for start in range(0, len(values), size))


def upsert(conn: Connection, table: Table) -> Any:
    """An INSERT that can say what to do on a conflict, for the connection's database."""
    return (postgresql.insert if conn.dialect.name == "postgresql" else sqlite.insert)(table)


def know(conn: Connection, table: Table, paths: Iterable[str]) -> None:
    """Give an id to each path that has none."""
    known = set(conn.execute(select(table.c.path)).scalars())
    for path in sorted(set(paths) - known):
        conn.execute(upsert(conn, table).on_conflict_do_nothing(), {"path": path})


def rename(conn: Connection, table: Table, old: str, new: str) -> None:
    """Let what bears a path keep its id under a new one, unless the new one is known."""
    taken = select(table.c.id).where(table.c.path == new)
    if conn.execute(taken).first() is None:
        conn.execute(update(table).where(table.c.path == old).values(path=new))


def make_fencing_tokens(conn: Connection, lanes: Iterable[int]) -> None:
    """Make sure that each lane of each destination event has its fencing token."""
    known = set(conn.execute(select(fencing_tokens.c.destination, fencing_tokens.c.lane)).tuples())
    for destination in conn.execute(select(destination_events.c.id)).scalars():
        for lane in lanes:
            if (destination, lane) not in known:
                values = {"destination": destination, "lane": lane, "token": 0, "holder": ""}
                conn.execute(upsert(conn, fencing_tokens).on_conflict_do_nothing(), values)


def highest(conn: Connection) -> int:
    """The highest sequence number that anything in the store bears."""
    bearers = (
        func.max(events.c.seq),
        func.max(loads.c.seq_to),
        func.max(counter.c.upto),
        func.max(epochs.c.first_seq - 1),
        func.max(event_types.c.purged_upto),
    )
    return max(conn.execute(select(bearer)).scalar() or 0 for bearer in bearers)


def add_to_time_index(conn: Connection, now: datetime, low: int, high: int) -> None:
    """Add a row to the time index, unless one was added within the last minute."""
    last = conn.execute(select(func.max(time_index.c.at))).scalar()
    if last is None or now - last > TIME_INDEX_GAP:
        values = {"at": now, "low": low, "high": high}
        conn.execute(upsert(conn, time_index).on_conflict_do_nothing(), values)


def begin_import(conn: Connection, at: datetime, low: int) -> None:
    """Add the time of imported history to the time index; refuse it if newer is there already."""
    newest = conn.execute(select(func.max(time_index.c.at))).scalar()
    if newest is not None and at < newest:
        raise UsageError(
            f"history of {at:%Y-%m-%d %H:%M} cannot be imported: the store has received events at "
            f"{newest:%Y-%m-%d %H:%M}; import in the order of time, before the gateway is started"
        )
    values = {"at": at, "low": low, "high": low}
    conn.execute(upsert(conn, time_index).on_conflict_do_nothing(), values)


def end_import(conn: Connection, at: datetime, high: int) -> None:
    """Let the row of the time index cover what was imported."""
    conn.execute(update(time_index).where(time_index.c.at == at).values(high=high))


def forget_keys(conn: Connection, now: datetime) -> None:
    """Delete keys that are older than they are kept."""
    conn.execute(delete(keys).where(keys.c.received_at < now - KEYS_KEPT))


def count(conn: Connection, high_watermark: int) -> bool:
    """Add a part of the log to the totals; `False` if there was none, or another does it now."""
    row = conn.execute(select(counter.c.upto).with_for_update(skip_locked=True)).first()
    if row is None or row.upto >= high_watermark:
        return False
    after, upto = row.upto, min(high_watermark, row.upto + _COUNTED_AT_ONCE)
    day = _day(conn)
    of_events = (
        select(events.c.event_type, day, func.count())
        .where(events.c.seq > after, events.c.seq <= upto)
        .group_by(events.c.event_type, day)
    )
    for event_type, on, number in conn.execute(of_events).all():
        _add(conn, event_totals, {"event_type": event_type, "day": on}, "events", number)
    of_jobs = (
        select(jobs.c.destination, func.count())
        .where(jobs.c.seq > after, jobs.c.seq <= upto)
        .group_by(jobs.c.destination)
    )
    for destination, number in conn.execute(of_jobs).all():
        _add(conn, job_totals, {"destination": destination}, "jobs", number)
    conn.execute(update(counter).values(upto=upto))
    return bool(upto < high_watermark)


def _day(conn: Connection) -> Any:
    if conn.dialect.name == "sqlite":
        seconds = type_coerce(events.c.received_at, BigInteger) // 1_000_000
        return func.date(seconds, "unixepoch", type_=Date)
    return cast(func.timezone("UTC", events.c.received_at), Date)


def _add(conn: Connection, table: Table, of: dict[str, Any], column: str, number: int) -> None:
    added = upsert(conn, table).values({**of, column: number})
    total = table.c[column] + added.excluded[column]
    conn.execute(added.on_conflict_do_update(index_elements=list(of), set_={column: total}))
