"""Keeps the transitions of every migration in a store's database, guarded by fencing tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection, func, insert, select

from blacksmith_dagster.pipeline.migration import Migration
from blacksmith_dagster.store import migration_barrier
from blacksmith_dagster.store.database import Database
from blacksmith_dagster.store.migration_barrier import MigrationToken
from blacksmith_dagster.store.records import Confirm
from blacksmith_dagster.store.statements import upsert
from blacksmith_dagster.store.tables import migration_transitions, migrations
from blacksmith_dagster.wanderer.files import target_of
from blacksmith_dagster.wanderer.plan import TrackedMigration
from blacksmith_dagster.wanderer.records import MigrationState

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


class Tracking:
    """The tracked migrations of all targets. Each transition is recorded with `by` and `run`."""

    def __init__(self, database: Database, by: str, run: str | None) -> None:
        self.database = database
        self._by = by
        self._run = run

    def tracked(self, targets: Iterable[str]) -> list[TrackedMigration]:
        """The migrations of these targets, with the last transition of each."""
        chosen, column, last = set(targets), migrations.c, migration_transitions.c
        newest = (
            select(func.max(last.id)).where(last.migration == column.id).correlate(migrations)
        ).scalar_subquery()
        query = (
            select(column.scope, column.version, column.name, column.checksum, column.state)
            .add_columns(last.at, last.by, last.run, last.error)
            .join(migration_transitions, last.id == newest)
            .order_by(column.version, column.scope)
        )
        with self.database.reading() as conn:
            rows = conn.execute(query).tuples().all()
        return [
            TrackedMigration(scope, version, name, checksum, MigrationState(state), *rest)
            for scope, version, name, checksum, state, *rest in rows
            if target_of(scope) in chosen
        ]

    def history(self, scope: str, version: int) -> Sequence[MigrationTransition]:
        """Every transition of a migration, oldest first."""
        column = migration_transitions.c
        query = (
            select(column.state, column.at, column.by, column.run, column.error)
            .join(migrations, migrations.c.id == column.migration)
            .where(migrations.c.scope == scope, migrations.c.version == version)
            .order_by(column.id)
        )
        with self.database.reading() as conn:
            return [
                MigrationTransition(MigrationState(state), *rest)
                for state, *rest in conn.execute(query)
            ]

    def take_over(self, target: str, holder: str, confirm: Confirm) -> MigrationToken:
        """Take over the migrations of a target; returns the fencing token.

        A migration that is executing was left behind by a run that has ended. It has failed if it ran
        in one transaction with its record; otherwise its result is unknown, and it is interrupted.

        Raises `FencedOut`.
        """
        token = migration_barrier.take_over(self.database, target, holder, confirm)
        with self.database.writing() as conn:
            executing = select(
                migrations.c.id, migrations.c.scope, migrations.c.state, migrations.c.atomic
            ).where(migrations.c.state.in_([state.value for state in _ENDED]))
            for number, scope, state, atomic in conn.execute(executing).all():
                if target_of(scope) == target:
                    ended = _ENDED[MigrationState(state)] if atomic else MigrationState.INTERRUPTED
                    migration_barrier.lock_target(conn, token)
                    change = migrations.update().where(migrations.c.id == number)
                    conn.execute(change.values(state=ended.value))
                    self._add(conn, token, number, ended, _KILLED)
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
        """Record a transition. Raises `FencedOut` if another run has taken over."""
        with self.database.writing() as conn:
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
        """Like `record`, in the caller's transaction, which may belong to another engine."""
        migration_barrier.lock_target(conn, token)
        values = {
            "name": migration.name,
            "checksum": migration.checksum,
            "state": state.value,
            "atomic": atomic,
        }
        insertion: Any = upsert(conn, migrations).values(
            scope=scope, version=migration.version, **values
        )
        insertion = insertion.on_conflict_do_update(
            index_elements=["scope", "version"], set_=values
        )
        number = conn.execute(insertion.returning(migrations.c.id)).scalar_one()
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
            "at": self.database.now(conn),
            "by": self._by,
            "run": self._run,
            "error": error,
        }
        conn.execute(insert(migration_transitions), values)
