"""Ingests files of events that appear in a folder, as if they had come by HTTP."""

import time
from pathlib import Path

from dagster import DefaultSensorStatus, SkipReason, sensor

from assets.application import blacksmith as application
from assets.flights import departed
from blacksmith_dagster import Request
from blacksmith_dagster.ingest import ingest
from blacksmith_dagster.orchestration import BlacksmithResource
from blacksmith_dagster.settings import find_home
from blacksmith_dagster.store import Store
from blacksmith_dagster.store.records import Cursor

CHUNK_BYTES = 1024 * 1024
TICK_SECONDS = 30  # Dagster gives a sensor 60


@sensor(minimum_interval_seconds=10, default_status=DefaultSensorStatus.RUNNING)
def landing(blacksmith: BlacksmithResource) -> SkipReason:
    """Ingests the departures in `landing/*.ndjson` under BLACKSMITH_HOME, without launching a run."""
    folder, store = find_home() / "landing", blacksmith.store
    ends = time.monotonic() + TICK_SECONDS
    ingested = {
        path.name: ingest_file(store, path, ends) for path in sorted(folder.glob("*.ndjson"))
    }
    new = [f"{events} from {name}" for name, events in ingested.items() if events]
    return SkipReason(f"events ingested: {', '.join(new)}" if new else f"nothing new in {folder}")


def ingest_file(store: Store, path: Path, ends: float) -> int:
    """Ingest the lines that were added to a file; returns how many events they made.

    The cursor is committed with the events, so each line is ingested once, even after a crash. A
    file may grow; a line is ingested when it is complete.
    """
    reader, events = f"landing/{path.name}", 0
    with path.open("rb") as file:
        while time.monotonic() < ends:
            before = store.log.cursor(reader)
            file.seek(int(before or 0))
            lines = file.readlines(CHUNK_BYTES)
            if lines and not lines[-1].endswith(b"\n"):
                lines.pop()
            if not lines:
                break
            after = int(before or 0) + sum(map(len, lines))
            requests = [
                Request(line.strip(), {"content-type": "application/json"})
                for line in lines
                if line.strip()
            ]
            cursor = Cursor(reader, before, str(after))
            ids = ingest(application, store, departed, requests, cursor)
            events += sum(map(len, ids))
    return events
