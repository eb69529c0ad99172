"""A process that runs migrations, and pauses at the point at which a test kills it.

At the point POINT it touches the file PAUSED and waits: before the migration, within it, between its
statements, or after it and before its record.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from blacksmith_dagster import Batch, Blacksmith, Migration
from blacksmith_dagster.destinations import SQLDestination, sql
from blacksmith_dagster.wanderer import MigrationReport, MigrationRequest, MigrationState
from blacksmith_dagster.wanderer.tracking import Tracking
from tests.support.migrating import ONE, airport, departed, runs

POINT, PAUSED = "POINT", "PAUSED"
WITHOUT_TRANSACTION = """-- blacksmith: no transaction
CREATE TABLE t1 (n INT);
SELECT 'pause';
CREATE TABLE t2 (n INT)"""


def pause(point: str) -> None:
    """Pause if this is the point that the test has chosen."""
    if point == os.environ.get(POINT):
        Path(os.environ[PAUSED]).touch()
        time.sleep(600)


def up(connection: sa.Connection) -> None:
    """Create a table, pause, and create another one."""
    connection.exec_driver_sql("CREATE TABLE t1 (n INT)")
    pause("within")
    connection.exec_driver_sql("CREATE TABLE t2 (n INT)")


def application(target_url: str, *, in_transaction: bool) -> Blacksmith:
    """A warehouse with one migration, with or without a transaction."""
    step = Migration(ONE, "step", up=up if in_transaction else WITHOUT_TRANSACTION)
    warehouse = SQLDestination("warehouse", url=target_url, migrations=[step])

    @warehouse.event(receives=departed, name="flights")
    def load(batch: Batch[Any], engine: sa.Engine) -> None:
        """Accept all jobs."""

    return Blacksmith(sources=[airport], destinations=[warehouse])


def add_pauses() -> None:
    """Add the points to pause at: between two statements, and before and after the migration."""
    for split in ("split_sqlite", "split_postgresql"):
        setattr(sql, split, _pausing(getattr(sql, split)))
    record = Tracking.record

    def record_or_pause(
        tracking: Tracking, token: Any, scope: str, step: Migration, to: MigrationState, **rest: Any
    ) -> None:
        pause(
            {MigrationState.EXECUTING_UP: "before", MigrationState.SUCCEEDED_UP: "after"}.get(
                to, ""
            )
        )
        record(tracking, token, scope, step, to, **rest)

    Tracking.record = record_or_pause  # type: ignore[method-assign, assignment]


def _pausing(split: Callable[[str], Iterator[str]]) -> Callable[[str], Iterator[str]]:
    def pausing(script: str) -> Iterator[str]:
        for statement in split(script):
            if "pause" in statement:
                pause("between statements")
            yield statement

    return pausing


def main(store_url: str, target_url: str) -> MigrationReport:
    """Run the migration."""
    add_pauses()
    app = application(target_url, in_transaction=os.environ[POINT] != "between statements")
    with runs(store_url, os.environ.get("BLACKSMITH_SUPERVISOR_URL")) as wandering:
        return wandering.wanderer(app).run(MigrationRequest())


if __name__ == "__main__":
    print(main(*sys.argv[1:]))
