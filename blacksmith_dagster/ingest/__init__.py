"""Anything becomes committed events: requests, messages, polls and changes."""

from blacksmith_dagster.ingest.ingest import ingest

__all__ = ["ingest"]
