"""Ready-made destinations: SQL tables and HTTP endpoints. They use only what a team's own can use."""

from blacksmith_dagster.destinations.http import HTTPDestination
from blacksmith_dagster.destinations.sql import SQLDestination

__all__ = ["HTTPDestination", "SQLDestination"]
