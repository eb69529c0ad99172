"""Stops the loads of a destination while it is migrated, or until a migration has run.

A claim reads the barrier after it has locked its lane. Raising the barrier locks out all claims for a
moment. So each claim either has an open load, which the migration sees and waits for, or sees the
barrier.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from sqlalchemy import Connection, bindparam, select, update

from blacksmith_dagster.errors import CodeOutdated, FencedOut, MigrationPending
from blacksmith_dagster.store.database import Database
from blacksmith_dagster.store.records import Confirm, Lane
from blacksmith_dagster.store.statements import upsert
from blacksmith_dagster.store.tables import LoadState, destination_events, fencing_tokens, loads
from blacksmith_dagster.store.tables import migration_barriers as barriers


class MigrationToken(msgspec.Struct, frozen=True):
    """The right to migrate a target, `destination/warehouse`, until another takes over."""

    target: str
    number: int
    holder: str


def check(conn: Connection, destination_event: str, version: int | None) -> None:
    """Check that code that declares this `version` of the destination's schema may load the event.

    If `version` is `None`, only a running migration forbids it. The lane must be locked already.

    Raises `MigrationPending`, `CodeOutdated`.
    """
    destination = destination_event.partition("/")[0]
    row = conn.execute(_BARRIER, {"target": f"destination/{destination}"}).first()
    migrated_to, migrating_by, waits_for = row or (0, None, None)
    if version is not None and migrated_to > version:
        raise CodeOutdated(
            f"destination {destination!r} was migrated to {migrated_to}, and this code knows it up to "
            f"{version or 'no version'}; start the newer code in its place. The jobs wait"
        )
    if migrating_by:
        raise MigrationPending(
            f"destination {destination!r} is being migrated by {migrating_by}; its jobs wait. If that "
            "process is gone, run `blacksmith migrations run`"
        )
    if version is None:
        return
    if waits_for:
        raise MigrationPending(f"the jobs of destination {destination!r} wait: {waits_for}")
    if migrated_to < version:
        raise MigrationPending(
            f"the jobs of destination {destination!r} wait: its migration {version} has not run; run "
            "`blacksmith migrations run`"
        )


_BARRIER = select(barriers.c.version, barriers.c.migrating_by, barriers.c.waits_for).where(
    barriers.c.target == bindparam("target")
)


def take_over(database: Database, target: str, holder: str, confirm: Confirm) -> MigrationToken:
    """Take over the migrations of a target: from now on only this token's records are accepted.

    As `Loads.take_over` does, it raises the token only if no other has raised it meanwhile.

    Raises `FencedOut` if `confirm()` returns `False`.
    """
    new = {"target": target, "token": 0, "holder": ""}
    of_target = barriers.c.target == target
    while True:
        with database.writing() as conn:
            conn.execute(upsert(conn, barriers).on_conflict_do_nothing(), new)
            latest = conn.execute(select(barriers.c.token).where(of_target)).scalar_one()
        if not confirm():
            raise FencedOut(f"{target}: the lock was lost before it could be used")
        with database.writing() as conn:
            raised = update(barriers).where(of_target, barriers.c.token == latest)
            if conn.execute(raised.values(token=latest + 1, holder=holder)).rowcount == 1:
                return MigrationToken(target, latest + 1, holder)


def lock_target(conn: Connection, token: MigrationToken) -> None:
    """Lock a target's row, if the token is still its latest. Raises `FencedOut`."""
    latest = select(barriers.c.token, barriers.c.holder).where(barriers.c.target == token.target)
    row = conn.execute(latest.with_for_update()).first()
    if row is None or tuple(row) != (token.number, token.holder):
        raise FencedOut(
            f"{token.target}: another run has taken over its migrations; stop, and look at "
            "`blacksmith migrations status`"
        )


def stop_claims(database: Database, token: MigrationToken, by: str) -> None:
    """Stop further claims for a destination. Raises `FencedOut`."""
    with database.writing() as conn:
        if conn.dialect.name == "postgresql":
            # Waits for the claims that are running; later ones wait for it, also those of a destination
            # event registered a moment ago, whose row this transaction may not see.
            conn.exec_driver_sql("LOCK TABLE fencing_tokens IN EXCLUSIVE MODE")
        lock_target(conn, token)
        conn.execute(
            update(barriers).where(barriers.c.target == token.target).values(migrating_by=by)
        )


def lift(database: Database, token: MigrationToken, version: int, waits_for: str | None) -> None:
    """Lift the barrier: the target is at `version`, and `waits_for` names what must run first.

    Raises `FencedOut`.
    """
    with database.writing() as conn:
        lock_target(conn, token)
        lifted = update(barriers).where(barriers.c.target == token.target)
        conn.execute(lifted.values(version=version, migrating_by=None, waits_for=waits_for))


def open_loads(database: Database, destination: str) -> Sequence[tuple[str, Lane]]:
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
    open_lanes = (
        select(destination_events.c.path, fencing_tokens.c.lane)
        .join(fencing_tokens, fencing_tokens.c.destination == destination_events.c.id)
        .where(
            destination_events.c.path.startswith(f"{destination}/", autoescape=True),
            state == LoadState.EXECUTING,
        )
    )
    with database.reading() as conn:
        return [(path, Lane(lane)) for path, lane in conn.execute(open_lanes)]
