"""The barrier between loads and migrations: which version a destination is of, and who migrates it.

A claim holds its lane's fencing token when it reads the barrier. Raising the barrier keeps all claims
out for that moment: each is either seen by it, as an open load, or sees the barrier.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec
from sqlalchemy import Connection, bindparam, select, update

from blacksmith_dagster.errors import CodeOutdated, FencedOut, MigrationPending
from blacksmith_dagster.store import maintenance
from blacksmith_dagster.store.claims import LANES
from blacksmith_dagster.store.interface import Confirm, Lane
from blacksmith_dagster.store.tables import EXECUTING, destination_events, fencing_tokens, loads
from blacksmith_dagster.store.tables import migration_barriers as barriers

if TYPE_CHECKING:
    from blacksmith_dagster.store.sql import SQLStore

_LANE_OF = {number: lane for lane, number in LANES.items()}


class MigrationToken(msgspec.Struct, frozen=True):
    """The right to migrate a target, `destination/warehouse`, until another takes over."""

    target: str
    number: int
    holder: str


def check(conn: Connection, destination_event: str, version: int | None) -> None:
    """Return if a destination event may be loaded by code that declares its destination's `version`.

    With `None` only a migration under way keeps it out. The lane must be held already.

    Raises `MigrationPending`, `CodeOutdated`.
    """
    destination = destination_event.partition("/")[0]
    row = conn.execute(_BARRIER, {"of": f"destination/{destination}"}).first()
    found, migrating_by, waits_for = row or (0, None, None)
    if version is not None and found > version:
        raise CodeOutdated(
            f"destination {destination!r} was migrated to {found}, and this code knows it up to "
            f"{version or 'no version'}; start the newer code in its place. The jobs wait"
        )
    if migrating_by:
        raise MigrationPending(
            f"destination {destination!r} is being migrated by {migrating_by}, and its jobs wait; if "
            "that has died, run `blacksmith migrations run`"
        )
    if version is None:
        return
    if waits_for:
        raise MigrationPending(f"the jobs of destination {destination!r} wait: {waits_for}")
    if found < version:
        raise MigrationPending(
            f"the jobs of destination {destination!r} wait: its migration {version} has not run; run "
            "`blacksmith migrations run`"
        )


_BARRIER = select(barriers.c.version, barriers.c.migrating_by, barriers.c.waits_for).where(
    barriers.c.target == bindparam("of")
)


def take_over(store: SQLStore, target: str, holder: str, confirm: Confirm) -> MigrationToken:
    """Become the one whose migrations of a target count.

    As `Store.take_over`: the token is raised only if nobody else has raised it meanwhile.

    Raises `FencedOut` if `confirm()` says no.
    """
    new = {"target": target, "token": 0, "holder": ""}
    mine = barriers.c.target == target
    while True:
        with store.writing() as conn:
            conn.execute(maintenance.upsert(conn, barriers).on_conflict_do_nothing(), new)
            latest = conn.execute(select(barriers.c.token).where(mine)).scalar_one()
        if not confirm():
            raise FencedOut(f"{target}: the lock was lost before it could be used")
        with store.writing() as conn:
            raised = update(barriers).where(mine, barriers.c.token == latest)
            if conn.execute(raised.values(token=latest + 1, holder=holder)).rowcount == 1:
                return MigrationToken(target, latest + 1, holder)


def hold(conn: Connection, token: MigrationToken) -> None:
    """Lock a target's row, if the token is still its latest. Raises `FencedOut`."""
    found = select(barriers.c.token, barriers.c.holder).where(barriers.c.target == token.target)
    row = conn.execute(found.with_for_update()).first()
    if row is None or tuple(row) != (token.number, token.holder):
        raise FencedOut(
            f"{token.target}: another run has taken over its migrations; stop, and look at "
            "`blacksmith migrations status`"
        )


def stop_claims(store: SQLStore, token: MigrationToken, by: str) -> None:
    """Stop further claims for a destination. Raises `FencedOut`."""
    with store.writing() as conn:
        if conn.dialect.name == "postgresql":
            # It waits for the claims under way, and others wait for it: also those of a destination
            # event that was made known a moment ago.
            conn.exec_driver_sql("LOCK TABLE fencing_tokens IN EXCLUSIVE MODE")
        hold(conn, token)
        conn.execute(
            update(barriers).where(barriers.c.target == token.target).values(migrating_by=by)
        )


def lift(store: SQLStore, token: MigrationToken, version: int, waits_for: str | None) -> None:
    """Lift the barrier: the target is at `version`, and `waits_for` names what must run first.

    Raises `FencedOut`.
    """
    with store.writing() as conn:
        hold(conn, token)
        lifted = update(barriers).where(barriers.c.target == token.target)
        conn.execute(lifted.values(version=version, migrating_by=None, waits_for=waits_for))


def open_loads(store: SQLStore, destination: str) -> Sequence[tuple[str, Lane]]:
    """The lanes of a destination's events that have an open load."""
    state = (
        select(loads.c.state)
        .where(
            loads.c.destination == fencing_tokens.c.destination,
            loads.c.lane == fencing_tokens.c.lane,
        )
        .order_by(loads.c.id.desc())
        .limit(1)
        .scalar_subquery()
    )
    found = (
        select(destination_events.c.path, fencing_tokens.c.lane)
        .join(fencing_tokens, fencing_tokens.c.destination == destination_events.c.id)
        .where(
            destination_events.c.path.startswith(f"{destination}/", autoescape=True),
            state == EXECUTING,
        )
    )
    with store.reading() as conn:
        return [(path, _LANE_OF[lane]) for path, lane in conn.execute(found)]
