"""A lane of a destination event: its fencing token, and its loads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection, bindparam, insert, select, update

from blacksmith_dagster.errors import FencedOut
from blacksmith_dagster.store.database import Database, LaneState
from blacksmith_dagster.store.records import FencingToken, Lane
from blacksmith_dagster.store.statements import query
from blacksmith_dagster.store.tables import LoadState, loads

MAX_ID = 2**63 - 1
"""No id or sequence number is higher."""


def lock_lane(
    database: Database, conn: Connection, token: FencingToken, wanted: int = 0
) -> tuple[int, LaneState]:
    """Lock the token's lane; returns the destination event's number, and the lane's state.

    Raises `FencedOut` unless the token is still the lane's latest.
    """
    destination = database.destination(token.destination)
    state = database.enter_lane(conn, destination, token.lane, wanted)
    if (state.token, state.holder) != (token.number, token.holder):
        raise fenced_out(token, state.holder)
    return destination, state


def fenced_out(token: FencingToken, holder: str) -> FencedOut:
    """The error of a holder whose lane another has taken over."""
    return FencedOut(
        f"{token.destination}: {holder} has taken over; stop, and acquire the lock again"
    )


def last_load_sql(columns: str, destination: str, lane: Lane) -> str:
    """The SQL of these columns of a lane's last load; `destination` is the SQL of the event's id.

    The WHERE compares rows, as a range of the index `loads_lane`: with plain equalities, PostgreSQL's
    generic plan walks back through all loads by id.
    """
    return f"""
SELECT {columns}
  FROM loads
 WHERE (destination, lane, id) >= ({destination}, '{lane}', 0)
   AND (destination, lane, id) <= ({destination}, '{lane}', {MAX_ID})
 ORDER BY destination DESC, lane DESC, id DESC LIMIT 1"""


class LastLoads(NamedTuple):
    """The last loads of a destination event's lanes: only they can be open.

    - `ids`: their ids. `open`: those of the loads that are executing.
    - `position`: the sequence number up to which the load lane has claimed new jobs.
    - `replayed_at`: when the last load of a replay began, if there has been one.
    """

    ids: Sequence[int]
    open: Sequence[int]
    position: int
    replayed_at: datetime | None


def last_loads(conn: Connection, destination: int) -> LastLoads:
    """The last load of each lane that has had one."""
    values = {"destination": destination}
    by_lane = {lane: conn.execute(last_load, values).first() for lane, last_load in _LAST.items()}
    last = [load for load in by_lane.values() if load]
    of_load_lane, of_replays = by_lane[Lane.LOAD], by_lane[Lane.REPLAY]
    return LastLoads(
        [load.id for load in last],
        [load.id for load in last if load.state == LoadState.EXECUTING],
        of_load_lane.position if of_load_lane else 0,
        of_replays.started_at if of_replays else None,
    )


_LAST = {
    lane: query(
        last_load_sql("id, state, position, started_at", ":destination", lane),
        loads.c.id,
        loads.c.state,
        loads.c.position,
        loads.c.started_at,
    )
    for lane in Lane
}


def succeeded_since(conn: Connection, destination: int, load_id: int) -> bool:
    """Whether a later load of the destination event ended without raising."""
    later = select(loads.c.id).where(
        loads.c.destination == destination,
        loads.c.id > load_id,
        loads.c.state == LoadState.SUCCEEDED,
    )
    return conn.execute(later.limit(1)).first() is not None


def open_load(conn: Connection, values: Mapping[str, Any]) -> int:
    """Insert a load that is executing; returns its id."""
    return int(conn.execute(_OPEN, values).scalar_one())


_OPEN = insert(loads).values(state=LoadState.EXECUTING).returning(loads.c.id)


def close_load(
    conn: Connection,
    load_id: int,
    state: LoadState,
    now: datetime,
    error: str | None = None,
    discarded: int = 0,
) -> bool:
    """Close an executing load; `False` if it is no longer executing."""
    values = {
        "load": load_id,
        "to_state": state,
        "now": now,
        "load_error": error,
        "discarded_jobs": discarded,
    }
    return conn.execute(_CLOSE, values).rowcount == 1


_CLOSE = (
    update(loads)
    .where(loads.c.id == bindparam("load"), loads.c.state == LoadState.EXECUTING)
    .values(
        state=bindparam("to_state"),
        finished_at=bindparam("now", type_=loads.c.finished_at.type),
        error=bindparam("load_error"),
        discarded=bindparam("discarded_jobs"),
    )
)
