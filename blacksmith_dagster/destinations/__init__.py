"""Ready-made destinations: SQL tables and HTTP endpoints. They use nothing that yours could not."""

from blacksmith_dagster.destinations.http import HTTPDestination
from blacksmith_dagster.destinations.sql import SQLDestination

__all__ = ["HTTPDestination", "SQLDestination"]
