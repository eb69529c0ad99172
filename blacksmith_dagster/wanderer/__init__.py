"""Plans, runs and tracks the migrations of sources, destinations and their events."""

from blacksmith_dagster.wanderer.records import (
    CompletedAction,
    MigrationAction,
    MigrationReport,
    MigrationRequest,
    MigrationState,
    MigrationStatus,
)
from blacksmith_dagster.wanderer.run import Wanderer

__all__ = [
    "CompletedAction",
    "MigrationAction",
    "MigrationReport",
    "MigrationRequest",
    "MigrationState",
    "MigrationStatus",
    "Wanderer",
]
