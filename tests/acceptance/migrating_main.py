"""A process that runs migrations, and stays where a test wants to kill it.

It touches the file PAUSED there and waits: before the effect, within the migration, or after the
effect and before its record.
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
from tests.contract.migrating import ONE, airport, departed, runs

POINT, PAUSED = "POINT", "PAUSED"
ALONE = """-- blacksmith: no transaction
CREATE TABLE t1 (n INT);
SELECT 'pause';
CREATE TABLE t2 (n INT)"""


def pause(here: str) -> None:
    """Stay here, if this is the point at which a test wants it."""
    if here == os.environ.get(POINT):
        Path(os.environ[PAUSED]).touch()
        time.sleep(600)


def up(connection: sa.Connection) -> None:
    """Makes a table, stays, and makes another."""
    connection.exec_driver_sql("CREATE TABLE t1 (n INT)")
    pause("within")
    connection.exec_driver_sql("CREATE TABLE t2 (n INT)")


def application(target_url: str, *, alone: bool) -> Blacksmith:
    """A warehouse with one migration, in a transaction or outside of any."""
    step = Migration(ONE, "step", up=ALONE if alone else up)
    warehouse = SQLDestination("warehouse", url=target_url, migrations=[step])

    @warehouse.event(receives=departed, name="flights")
    def load(batch: Batch[Any], engine: sa.Engine) -> None:
        """Takes all."""

    return Blacksmith(sources=[airport], destinations=[warehouse], since="2026-01-01")


def stay_between() -> None:
    """Let the process stay between two statements, and before and after the effect."""
    sql.split_sqlite, sql.split_postgresql = (
        _pausing(sql.split_sqlite),
        _pausing(sql.split_postgresql),
    )
    record = Tracking.record

    def stay(
        tracking: Tracking, token: Any, scope: str, step: Migration, to: MigrationState, **rest: Any
    ) -> None:
        pause(
            {MigrationState.EXECUTING_UP: "before", MigrationState.SUCCEEDED_UP: "after"}.get(
                to, ""
            )
        )
        record(tracking, token, scope, step, to, **rest)

    Tracking.record = stay  # type: ignore[method-assign]


def _pausing(split: Callable[[str], Iterator[str]]) -> Callable[[str], Iterator[str]]:
    def pausing(script: str) -> Iterator[str]:
        for statement in split(script):
            if "pause" in statement:
                pause("alone")
            yield statement

    return pausing


def main(store_url: str, target_url: str) -> MigrationReport:
    """Run all that has not run."""
    stay_between()
    app = application(target_url, alone=os.environ[POINT] == "alone")
    with runs(store_url, os.environ.get("BLACKSMITH_SUPERVISOR_URL")) as made:
        return made.wanderer(app).run(MigrationRequest())


if __name__ == "__main__":
    print(main(*sys.argv[1:]))
