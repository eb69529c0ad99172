"""Migrations of every source, destination and event: planned, guarded, tracked."""

from blacksmith_dagster.wanderer.interface import (
    Action,
    Done,
    Report,
    Request,
    State,
    Status,
    Wanderer,
)
from blacksmith_dagster.wanderer.run import StandardWanderer
from blacksmith_dagster.wanderer.tracking import open_tracking

__all__ = [
    "Action",
    "Done",
    "Report",
    "Request",
    "StandardWanderer",
    "State",
    "Status",
    "Wanderer",
    "open_tracking",
]
