"""The pipeline of the wanderer's acceptance tests: a warehouse with SQL files, and a lake whose
migrations wait until the test creates a file.

Environment variables name the folder and the warehouse.
"""

import os
from pathlib import Path
from typing import Any

from blacksmith_dagster import Batch, Blacksmith, Destination, Migration, Secret, Source
from blacksmith_dagster.destinations import SQLDestination
from blacksmith_dagster.orchestration import build_definitions
from tests.support.waiting import until

FOLDER = "BLACKSMITH_TEST_FOLDER"
WAREHOUSE = "WAREHOUSE_URL"
SLOW = (20260101120000, 20260102120000)

folder = Path(os.environ.get(FOLDER, "nowhere"))


def wait(began: str, go: str) -> None:
    """Record in the file `lake` that a migration has begun, and wait for the file `go`."""
    with (folder / "lake").open("a") as lake:
        lake.write(f"{began}\n")
    until((folder / go).exists, 60)


airport = Source("airport")
departed = airport.accept("departed")
warehouse = SQLDestination(
    "warehouse", url=Secret(WAREHOUSE), migrations=folder / "migrations" / "warehouse"
)
flights = warehouse.table("flights", receives=departed, key=["id"])
lake = Destination(
    "lake",
    migrations=[
        Migration(version, "slow", up=lambda version=version: wait(str(version), "go"))
        for version in SLOW
    ],
)


@lake.event(receives=departed)
def movements(batch: Batch[Any]) -> None: ...


blacksmith = Blacksmith(sources=[airport], destinations=[warehouse, lake])
defs = build_definitions(blacksmith, start_date="2026-01-01")
