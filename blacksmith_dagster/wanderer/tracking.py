"""What became of each migration, kept in a store's database under the target's fencing token."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection, func, insert, select

from blacksmith_dagster.errors import SettingsError
from blacksmith_dagster.pipeline.migration import Migration
from blacksmith_dagster.store import Store, migration_barrier, open_store
from blacksmith_dagster.store.interface import Confirm
from blacksmith_dagster.store.migration_barrier import MigrationToken
from blacksmith_dagster.store.sql import SQLStore
from blacksmith_dagster.store.statements import upsert
from blacksmith_dagster.store.tables import Instant, migration_transitions, migrations
from blacksmith_dagster.wanderer.files import target_of
from blacksmith_dagster.wanderer.interface import MigrationState
from blacksmith_dagster.wanderer.plan import TrackedMigration

_ENDED = {
    MigrationState.EXECUTING_UP: MigrationState.FAILED_UP,
    MigrationState.EXECUTING_DOWN: MigrationState.FAILED_DOWN,
}
_KILLED = "its run ended before it had finished"


class MigrationTransition(NamedTuple):
    """A change of a migration's state."""

    state: MigrationState
    at: datetime
    by: str
    run: str | None
    error: str | None


@contextmanager
def open_tracking(url: str | None, store: Store) -> Iterator[Store]:
    """Where migrations are tracked: in the database at `url`, in the store if it is `None` or empty.

    Its tables are made if they are missing. Raises what `open_store` raises.
    """
    if not url:
        yield store
        return
    tracking = open_store(url, upgrade=True)
    try:
        yield tracking
    finally:
        tracking.close()


def sql_store(store: Store) -> SQLStore:
    """`store`, if migrations can be tracked in it. Raises `SettingsError`."""
    if not isinstance(store, SQLStore):
        raise SettingsError(
            f"{type(store).__name__} tracks no migrations; migrate a pipeline whose store is "
            "PostgreSQL or SQLite"
        )
    return store


class Tracking:
    """The migrations of all targets, as a database has them.

    `by` and `run` are kept with each transition.
    """

    def __init__(self, store: SQLStore, by: str, run: str | None) -> None:
        self.store = store
        self._by = by
        self._run = run

    def tracked(self, targets: Iterable[str]) -> list[TrackedMigration]:
        """The migrations of these targets, with the last transition of each."""
        wanted, last = set(targets), migration_transitions
        of = migrations.c
        newest = (
            select(func.max(last.c.id)).where(last.c.migration == of.id).correlate(migrations)
        ).scalar_subquery()
        found = (
            select(of.scope, of.version, of.name, of.checksum, of.state)
            .add_columns(last.c.at, last.c.by, last.c.run, last.c.error)
            .join(last, last.c.id == newest)
            .order_by(of.version, of.scope)
        )
        with self.store.reading() as conn:
            rows = conn.execute(found).tuples().all()
        return [
            TrackedMigration(scope, version, name, checksum, MigrationState(state), *rest)
            for scope, version, name, checksum, state, *rest in rows
            if target_of(scope) in wanted
        ]

    def history(self, scope: str, version: int) -> Sequence[MigrationTransition]:
        """Every transition of a migration, the oldest first."""
        of = migration_transitions.c
        found = (
            select(of.state, of.at, of.by, of.run, of.error)
            .join(migrations, migrations.c.id == of.migration)
            .where(migrations.c.scope == scope, migrations.c.version == version)
            .order_by(of.id)
        )
        with self.store.reading() as conn:
            return [
                MigrationTransition(MigrationState(state), *rest)
                for state, *rest in conn.execute(found)
            ]

    def take_over(self, target: str, holder: str, confirm: Confirm) -> MigrationToken:
        """Become the one whose migrations of a target count.

        What is executing was left behind by a run that is no more: it has failed if it ran in one
        transaction with its record, else nobody knows, and it is interrupted.

        Raises `FencedOut`.
        """
        token = migration_barrier.take_over(self.store, target, holder, confirm)
        with self.store.writing() as conn:
            executing = select(
                migrations.c.id, migrations.c.scope, migrations.c.state, migrations.c.atomic
            ).where(migrations.c.state.in_([each.value for each in _ENDED]))
            for number, scope, state, atomic in conn.execute(executing).all():
                if target_of(scope) == target:
                    left = _ENDED[MigrationState(state)] if atomic else MigrationState.INTERRUPTED
                    migration_barrier.lock_target(conn, token)
                    changed = migrations.update().where(migrations.c.id == number)
                    conn.execute(changed.values(state=left.value))
                    self._add(conn, token, number, left, _KILLED)
        return token

    def record(
        self,
        token: MigrationToken,
        scope: str,
        migration: Migration,
        state: MigrationState,
        *,
        error: str | None = None,
        atomic: bool = False,
    ) -> None:
        """Keep a transition. Raises `FencedOut`: another run has taken over."""
        with self.store.writing() as conn:
            self.write(conn, token, scope, migration, state, error=error, atomic=atomic)

    def write(
        self,
        conn: Connection,
        token: MigrationToken,
        scope: str,
        migration: Migration,
        state: MigrationState,
        *,
        error: str | None = None,
        atomic: bool = False,
    ) -> None:
        """As `record`, in a transaction of the caller's, which may be of another engine."""
        migration_barrier.lock_target(conn, token)
        values = {
            "name": migration.name,
            "checksum": migration.checksum,
            "state": state.value,
            "atomic": atomic,
        }
        known: Any = upsert(conn, migrations).values(
            scope=scope, version=migration.version, **values
        )
        known = known.on_conflict_do_update(index_elements=["scope", "version"], set_=values)
        number = conn.execute(known.returning(migrations.c.id)).scalar_one()
        self._add(conn, token, number, state, error)

    def _add(
        self,
        conn: Connection,
        token: MigrationToken,
        number: int,
        state: MigrationState,
        error: str | None,
    ) -> None:
        values = {
            "migration": number,
            "state": state.value,
            "token": token.number,
            "at": _now(conn),
            "by": self._by,
            "run": self._run,
            "error": error,
        }
        conn.execute(insert(migration_transitions), values)


def _now(conn: Connection) -> datetime:
    if conn.dialect.name == "sqlite":  # it has no clock
        return datetime.now(UTC)
    now: datetime = conn.execute(select(func.clock_timestamp(type_=Instant()))).scalar_one()
    return now
