"""Loads jobs from the store to destinations, on a schedule or in realtime; replays and discards."""

from blacksmith_dagster.scheduler.loader import StandardScheduler, load
from blacksmith_dagster.scheduler.outcomes import LoadReport, Summary, Tally
from blacksmith_dagster.scheduler.realtime import Realtime, realtime_events

__all__ = [
    "LoadReport",
    "Realtime",
    "StandardScheduler",
    "Summary",
    "Tally",
    "load",
    "realtime_events",
]
