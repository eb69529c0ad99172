"""From the store to a destination: claim, load, record, retry."""

from blacksmith_dagster.scheduler.interface import LoadReport, Scheduler, Summary, Tally
from blacksmith_dagster.scheduler.standard import StandardScheduler

__all__ = ["LoadReport", "Scheduler", "StandardScheduler", "Summary", "Tally"]
