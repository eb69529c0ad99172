"""Plans, runs and tracks the migrations of sources, destinations and their events."""

from blacksmith_dagster.wanderer.interface import (
    CompletedAction,
    MigrationAction,
    MigrationReport,
    MigrationRequest,
    MigrationState,
    MigrationStatus,
    Wanderer,
)
from blacksmith_dagster.wanderer.run import StandardWanderer
from blacksmith_dagster.wanderer.tracking import open_tracking

__all__ = [
    "CompletedAction",
    "MigrationAction",
    "MigrationReport",
    "MigrationRequest",
    "MigrationState",
    "MigrationStatus",
    "StandardWanderer",
    "Wanderer",
    "open_tracking",
]
