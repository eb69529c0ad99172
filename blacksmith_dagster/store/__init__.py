"""The log of events and jobs, on PostgreSQL and SQLite."""

from blacksmith_dagster.store.interface import Store

__all__ = ["Store"]
