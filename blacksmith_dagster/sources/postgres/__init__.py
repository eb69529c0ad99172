"""PostgreSQL as a source: changes by logical replication, notifications by LISTEN."""

from blacksmith_dagster.sources.postgres.change import Change, Notification
from blacksmith_dagster.sources.postgres.source import PostgresSource

__all__ = ["Change", "Notification", "PostgresSource"]
