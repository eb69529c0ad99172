"""Dagster: assets, jobs, schedules, sensors and checks. Only this package imports it."""

from importlib.metadata import version

from dagster_shared.libraries import DagsterLibraryRegistry

from blacksmith_dagster.orchestration.assets import (
    BlacksmithTranslator,
    EventTranslatorData,
    asset_key,
)
from blacksmith_dagster.orchestration.definitions import BlacksmithComponent, build_definitions
from blacksmith_dagster.orchestration.replays import ReplayConfig
from blacksmith_dagster.orchestration.resource import BlacksmithResource
from blacksmith_dagster.orchestration.warm_runs import WarmRuns

__all__ = [
    "BlacksmithComponent",
    "BlacksmithResource",
    "BlacksmithTranslator",
    "EventTranslatorData",
    "ReplayConfig",
    "WarmRuns",
    "asset_key",
    "build_definitions",
]

DagsterLibraryRegistry.register(
    "blacksmith-dagster", version("blacksmith-dagster"), is_dagster_package=False
)
