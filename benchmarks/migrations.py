"""Ten thousand migrations: to plan a run, to show their status, to find nothing to do."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta

from sqlalchemy import insert

from benchmarks.measure import Effort, Figure, alternate, figure, temporary_folder, timed
from benchmarks.stores import Databases, measured_on, opened, postgres, sqlite
from blacksmith_dagster import Blacksmith, Destination, Migration
from blacksmith_dagster.store import Store, tables
from blacksmith_dagster.supervisor import StoreSupervisor
from blacksmith_dagster.wanderer import MigrationRequest, MigrationState, Wanderer
from blacksmith_dagster.wanderer.files import declared
from blacksmith_dagster.wanderer.plan import TrackedMigration, plan_run

MIGRATIONS = 10_000
SCOPE = "destination:lake"
EVERY = MigrationRequest()
BEGAN = datetime(2020, 1, 1, tzinfo=UTC)
STATES = (MigrationState.ACKNOWLEDGED, MigrationState.EXECUTING_UP, MigrationState.SUCCEEDED_UP)


def migrations(effort: Effort) -> Iterator[Figure]:
    """Seconds to plan a run and to show the status; milliseconds of a run with nothing to do."""
    count = effort.of(MIGRATIONS)
    with _application(count) as app:
        by_scope = declared(app)
        ran = [
            TrackedMigration(SCOPE, one.version, one.name, one.checksum, STATES[-1])
            for one in by_scope[SCOPE][: count // 2]
        ]
        (plan,) = alternate(effort.rounds, lambda: timed(lambda: plan_run(by_scope, ran, EVERY))[0])
    yield figure(f"plan a run of {count // 2:,} of {count:,} migrations", plan, "s", at_most=0.5)
    yield from _runs(effort)


@measured_on(postgres, sqlite)
def _runs(databases: Databases, effort: Effort) -> Iterator[Figure]:
    count = effort.of(MIGRATIONS)
    with _application(count) as app, _wanderer(databases, app) as (wanderer, store):
        _track(store, declared(app)[SCOPE])
        assert len(wanderer.status()) == count
        (status,) = alternate(effort.rounds, lambda: timed(wanderer.status)[0])
    with _application(20) as app, _wanderer(databases, app) as (wanderer, _):
        wanderer.run(EVERY)
        assert wanderer.run(EVERY).planned == []
        (empty,) = alternate(effort.rounds, lambda: 1000 * timed(lambda: wanderer.run(EVERY))[0])
    yield figure(f"status of {count:,} migrations; {databases.name}", status, "s", at_most=1)
    yield figure(f"a run that finds nothing to do; {databases.name}", empty, "ms", at_most=100)


class _Nowhere(Destination[None]):
    """A destination that accepts SQL and runs nothing."""

    def migrate(self, migration: object, direction: object) -> None: ...


@contextmanager
def _application(count: int) -> Iterator[Blacksmith]:
    with temporary_folder() as folder:
        for number in range(count):
            version = f"{BEGAN + timedelta(minutes=number):%Y%m%d%H%M%S}"
            (folder / f"{version}.step.up.sql").write_text(f"CREATE TABLE t{number} (n INTEGER);")
            (folder / f"{version}.step.down.sql").write_text(f"DROP TABLE t{number};")
        lake = _Nowhere("lake", migrations=folder)
        yield Blacksmith(sources=[], destinations=[lake])


@contextmanager
def _wanderer(databases: Databases, app: Blacksmith) -> Iterator[tuple[Wanderer, Store]]:
    with (
        databases.new() as url,
        opened(url) as store,
        closing(StoreSupervisor(store.database)) as supervisor,
    ):
        yield (
            Wanderer(app, database=store.database, supervisor=supervisor, holder="benchmark"),
            store,
        )


def _track(store: Store, migrations: list[Migration]) -> None:
    """Record all as run, with three transitions each, bypassing the wanderer."""
    rows = [
        {
            "id": number,
            "scope": SCOPE,
            "version": migration.version,
            "name": migration.name,
            "checksum": migration.checksum,
            "state": STATES[-1].value,
            "atomic": False,
        }
        for number, migration in enumerate(migrations, 1)
    ]
    shared = {"token": 1, "at": BEGAN, "by": "benchmark"}
    transitions = [
        {"migration": row["id"], "state": state.value, **shared} for row in rows for state in STATES
    ]
    with store.database.writing() as conn:
        conn.execute(insert(tables.migrations), rows)
        conn.execute(insert(tables.migration_transitions), transitions)
