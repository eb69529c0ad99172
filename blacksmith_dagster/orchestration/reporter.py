"""Loads that happen outside of runs, reported to Dagster all the same."""

from __future__ import annotations

import logging
from typing import Any

from dagster import DagsterInstance

from blacksmith_dagster.orchestration.assets import asset_key
from blacksmith_dagster.orchestration.loads import UnreportedLoads, day_event
from blacksmith_dagster.pipeline.application import Blacksmith
from blacksmith_dagster.pipeline.destination import DestinationEvent
from blacksmith_dagster.scheduler import LoadReport

_log = logging.getLogger(__name__)


class RunlessReporter:
    """Materializes the assets of destination events in the instance of `DAGSTER_HOME`.

    A materialization per destination event, UTC day and minute, with counts, under the event's
    `asset_key`. What Dagster does not accept is logged and not reported again: the store has it.

    Raises what Dagster raises when it cannot open the instance.
    """

    def __init__(self, app: Blacksmith) -> None:
        self._instance = DagsterInstance.get()
        self._events = app.destination_events
        self._progress = {path: UnreportedLoads(60.0) for path in self._events}

    def add(self, event: DestinationEvent[Any], done: LoadReport) -> None:
        """Count a load. May be called from any thread."""
        self._progress[event.path].add(done)

    def report_if_due(self) -> None:
        """Report what was counted for a minute."""
        self._report([path for path, progress in self._progress.items() if progress.is_due])

    def close(self) -> None:
        """Report the rest, and close the instance."""
        self._report(list(self._progress))
        self._instance.dispose()

    def _report(self, paths: list[str]) -> None:
        for path in paths:
            for day, counted in self._progress[path].flush().items():
                event = day_event(asset_key(self._events[path]), day, counted, {})
                try:
                    self._instance.report_runless_asset_event(event)
                except Exception:  # noqa: BLE001 - Dagster's database; loading goes on without it
                    _log.exception("%s: %d loads are not reported to Dagster", path, counted.loads)
