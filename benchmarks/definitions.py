"""What Dagster is shown of the application that is measured."""

from benchmarks.pipeline import app
from blacksmith_dagster.orchestration import build_definitions

defs = build_definitions(app)
