"""From the store to a destination: claim, load, record, retry; by schedule or at once."""

from blacksmith_dagster.scheduler.interface import LoadReport, Scheduler, Summary, Tally
from blacksmith_dagster.scheduler.loader import StandardScheduler
from blacksmith_dagster.scheduler.realtime import Realtime, realtime_events

__all__ = [
    "LoadReport",
    "Realtime",
    "Scheduler",
    "StandardScheduler",
    "Summary",
    "Tally",
    "realtime_events",
]
