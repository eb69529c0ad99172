"""Ten thousand migrations: to plan a run, to show their status, to find nothing to do."""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sqlalchemy import insert

from benchmarks.measure import Effort, Figure, alternate, at_most
from benchmarks.stores import BOTH, opened
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


def migrations(effort: Effort) -> Iterator[Figure]:
    """Seconds to plan a run and to show the status; milliseconds of a run with nothing to do."""
    count = effort.of(MIGRATIONS)
    with tempfile.TemporaryDirectory(prefix="blacksmith-bench-") as folder:
        app = _application(Path(folder), count)
        by_scope = declared(app)
        tracked = [_tracked(migration) for migration in by_scope[SCOPE][: count // 2]]
        plan = alternate(effort.rounds, _timed(lambda: plan_run(by_scope, tracked, EVERY)))[0]
        yield at_most(f"plan a run of {count // 2:,} of {count:,} migrations", plan, 0.5, "s")
        for backend in BOTH:
            with backend() as databases:
                url = databases.create()
                with (
                    closing(opened(url)) as store,
                    closing(StoreSupervisor(store.database)) as supervisor,
                ):
                    _track(store, by_scope[SCOPE])
                    wanderer = Wanderer(
                        app, database=store.database, supervisor=supervisor, holder="a benchmark"
                    )
                    assert len(wanderer.status()) == count
                    shown = alternate(effort.rounds, _timed(wanderer.status))[0]
                small = _application(Path(tempfile.mkdtemp(dir=folder)), 20)
                url = databases.create()
                with (
                    closing(opened(url)) as store,
                    closing(StoreSupervisor(store.database)) as supervisor,
                ):
                    wanderer = Wanderer(
                        small, database=store.database, supervisor=supervisor, holder="a benchmark"
                    )
                    wanderer.run(EVERY)
                    assert wanderer.run(EVERY).planned == []
                    empty = alternate(effort.rounds, _timed(lambda w=wanderer: w.run(EVERY)))[0]
                yield at_most(f"status of {count:,} migrations; {databases.name}", shown, 1, "s")
                yield at_most(
                    f"a run that finds nothing to do; {databases.name}",
                    [1000 * seconds for seconds in empty],
                    100,
                    "ms",
                )


class _Nowhere(Destination[None]):
    """A destination that accepts SQL and runs nothing."""

    def migrate(self, migration: object, direction: object) -> None: ...


def _application(folder: Path, count: int) -> Blacksmith:
    for number in range(count):
        version = f"{BEGAN + timedelta(minutes=number):%Y%m%d%H%M%S}"
        (folder / f"{version}.step.up.sql").write_text(f"CREATE TABLE t{number} (n INTEGER);")
        (folder / f"{version}.step.down.sql").write_text(f"DROP TABLE t{number};")
    return Blacksmith(sources=[], destinations=[_Nowhere("lake", migrations=folder)])


def _tracked(migration: Migration) -> TrackedMigration:
    return TrackedMigration(
        SCOPE,
        migration.version,
        migration.name,
        migration.checksum,
        MigrationState.SUCCEEDED_UP,
    )


def _track(store: Store, migrations: list[Migration]) -> None:
    """Record all as run, with three transitions each, bypassing the wanderer."""
    states = (MigrationState.ACKNOWLEDGED, MigrationState.EXECUTING_UP, MigrationState.SUCCEEDED_UP)
    rows = [
        {
            "id": number,
            "scope": SCOPE,
            "version": migration.version,
            "name": migration.name,
            "checksum": migration.checksum,
            "state": MigrationState.SUCCEEDED_UP.value,
            "atomic": False,
        }
        for number, migration in enumerate(migrations, 1)
    ]
    transitions = [
        {
            "migration": row["id"],
            "state": state.value,
            "token": 1,
            "at": BEGAN,
            "by": "a benchmark",
        }
        for row in rows
        for state in states
    ]
    with store.database.writing() as conn:
        conn.execute(insert(tables.migrations), rows)
        conn.execute(insert(tables.migration_transitions), transitions)


def _timed(call: Callable[[], object]) -> Callable[[], float]:
    def seconds() -> float:
        began = time.perf_counter()
        call()
        return time.perf_counter() - began

    return seconds
