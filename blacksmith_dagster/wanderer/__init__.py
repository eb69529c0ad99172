"""Migrations of every source, destination and event: planned, guarded, tracked."""

from blacksmith_dagster.wanderer.interface import (
    Action,
    Done,
    MigrationReport,
    MigrationRequest,
    MigrationStatus,
    State,
    Wanderer,
)
from blacksmith_dagster.wanderer.run import StandardWanderer
from blacksmith_dagster.wanderer.tracking import open_tracking

__all__ = [
    "Action",
    "Done",
    "MigrationReport",
    "MigrationRequest",
    "MigrationStatus",
    "StandardWanderer",
    "State",
    "Wanderer",
    "open_tracking",
]
