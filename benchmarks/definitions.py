"""The Dagster definitions of the measured application."""

from benchmarks.pipeline import app
from blacksmith_dagster.orchestration import build_definitions

defs = build_definitions(app, start_date="2026-01-01")
