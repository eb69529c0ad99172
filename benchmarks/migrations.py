"""Ten thousand migrations: planned, shown, and found to have run."""

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
from blacksmith_dagster.store import tables
from blacksmith_dagster.store.sql import SQLStore
from blacksmith_dagster.supervisor import StoreSupervisor
from blacksmith_dagster.wanderer import MigrationRequest, MigrationState, StandardWanderer
from blacksmith_dagster.wanderer.files import declared
from blacksmith_dagster.wanderer.plan import TrackedMigration, plan_run

MIGRATIONS = 10_000
SCOPE = "destination:lake"
EVERY = MigrationRequest()
BEGAN = datetime(2020, 1, 1, tzinfo=UTC)


def migrations(effort: Effort) -> Iterator[Figure]:
    """Seconds to plan them, to show them, and of a run that has nothing to do."""
    count = effort.of(MIGRATIONS)
    with tempfile.TemporaryDirectory(prefix="blacksmith-bench-") as folder:
        app = _application(Path(folder), count)
        found = declared(app)
        known = [_tracked(each) for each in found[SCOPE][: count // 2]]
        plan = alternate(effort.rounds, _timed(lambda: plan_run(found, known, EVERY)))[0]
        yield at_most(f"plan a run of {count // 2:,} of {count:,} migrations", plan, 0.5, "s")
        for databases in BOTH:
            with databases() as made:
                url = made.create()
                with (
                    closing(opened(url)) as store,
                    closing(StoreSupervisor(store)) as supervisor,
                ):
                    _track(store, found[SCOPE])
                    wanderer = StandardWanderer(
                        app, store=store, supervisor=supervisor, holder="a benchmark"
                    )
                    assert len(wanderer.status()) == count
                    shown = alternate(effort.rounds, _timed(wanderer.status))[0]
                few = _application(Path(tempfile.mkdtemp(dir=folder)), 20)
                url = made.create()
                with (
                    closing(opened(url)) as store,
                    closing(StoreSupervisor(store)) as supervisor,
                ):
                    wanderer = StandardWanderer(
                        few, store=store, supervisor=supervisor, holder="a benchmark"
                    )
                    wanderer.run(EVERY)
                    assert wanderer.run(EVERY).planned == []
                    empty = alternate(effort.rounds, _timed(lambda w=wanderer: w.run(EVERY)))[0]
                yield at_most(f"status of {count:,} migrations; {made.name}", shown, 1, "s")
                yield at_most(
                    f"a run that finds nothing to do; {made.name}",
                    [1000 * seconds for seconds in empty],
                    100,
                    "ms",
                )


class _Nowhere(Destination[None]):
    """It accepts SQL, and runs none."""

    def migrate(self, migration: object, direction: object) -> None: ...


def _application(folder: Path, count: int) -> Blacksmith:
    for number in range(count):
        version = f"{BEGAN + timedelta(minutes=number):%Y%m%d%H%M%S}"
        (folder / f"{version}.step.up.sql").write_text(f"CREATE TABLE t{number} (n INTEGER);")
        (folder / f"{version}.step.down.sql").write_text(f"DROP TABLE t{number};")
    return Blacksmith(
        sources=[], destinations=[_Nowhere("lake", migrations=folder)], since="2026-01-01"
    )


def _tracked(each: Migration) -> TrackedMigration:
    return TrackedMigration(
        SCOPE, each.version, each.name, each.checksum, MigrationState.SUCCEEDED_UP
    )


def _track(store: SQLStore, found: list[Migration]) -> None:
    """Note that all have run, three transitions each, past the wanderer."""
    states = (MigrationState.ACKNOWLEDGED, MigrationState.EXECUTING_UP, MigrationState.SUCCEEDED_UP)
    rows = [
        {
            "id": number,
            "scope": SCOPE,
            "version": each.version,
            "name": each.name,
            "checksum": each.checksum,
            "state": MigrationState.SUCCEEDED_UP.value,
            "atomic": False,
        }
        for number, each in enumerate(found, 1)
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
    with store.writing() as conn:
        conn.execute(insert(tables.migrations), rows)
        conn.execute(insert(tables.migration_transitions), transitions)


def _timed(call: Callable[[], object]) -> Callable[[], float]:
    def seconds() -> float:
        began = time.perf_counter()
        call()
        return time.perf_counter() - began

    return seconds
