"""Turns requests, messages, the results of polls, and changes into committed events."""

from blacksmith_dagster.ingest.ingest import ingest

__all__ = ["ingest"]
