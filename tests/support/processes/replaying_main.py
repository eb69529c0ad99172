"""A process that replays a window once, as a Dagster run does: retried when the store is away."""

import os
import signal
import sys
import threading
import time
from datetime import datetime

from blacksmith_dagster.errors import FencedOut, Unavailable
from blacksmith_dagster.scheduler import StandardScheduler
from blacksmith_dagster.scheduler.replay import replay
from blacksmith_dagster.store import open_store
from blacksmith_dagster.store.records import ReplayMode, ReplayRequest
from blacksmith_dagster.supervisor import StoreSupervisor
from tests.support.pipelines.loading import blacksmith
from tests.support.processes.loading_main import TTL


def main(path: str, start: str, end: str, *modes: str) -> int:
    """Replay until all jobs have run once, or until SIGTERM."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    request = ReplayRequest(
        datetime.fromisoformat(start),
        datetime.fromisoformat(end),
        tuple(ReplayMode(mode) for mode in modes),
    )
    store = open_store(os.environ["BLACKSMITH_STORE_URL"])
    supervisor = StoreSupervisor(store.database, ttl=TTL)
    print("ready")
    while True:
        try:
            summary = replay(
                blacksmith,
                blacksmith.destination_events[path],
                request,
                StandardScheduler(),
                store=store,
                supervisor=supervisor,
                run=f"process {os.getpid()}",
                stop=stop,
            )
        except (Unavailable, FencedOut) as error:
            print(type(error).__name__, error)
            time.sleep(0.2)
        else:
            break
    print(summary)
    supervisor.close()
    store.close()
    return 1 if summary.stopped else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
