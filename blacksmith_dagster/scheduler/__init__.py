"""From the store to a destination: claim, load, record, retry."""

from blacksmith_dagster.scheduler.interface import LoadReport, Scheduler, Summary, Tally

__all__ = ["LoadReport", "Scheduler", "Summary", "Tally"]
