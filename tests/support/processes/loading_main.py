"""A process that loads destination events again and again until SIGTERM.

It imports little, because tests start it often. BLACKSMITH_SUPERVISOR_URL names its supervisor;
without it, the store keeps the locks, for TTL seconds. BLACKSMITH_TEST_RECORD_FOR: for how many
seconds it tries to record a load.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

from blacksmith_dagster.errors import FencedOut, Timeout, Unavailable
from blacksmith_dagster.scheduler import StandardScheduler, load, loader
from blacksmith_dagster.store import open_store
from blacksmith_dagster.supervisor import (
    SCHEDULER,
    StoreSupervisor,
    Supervisor,
    open_supervisor,
    this_process,
)
from tests.support.pipelines.loading import blacksmith

if "FAKETIME" in os.environ:  # under libfaketime 0.9.10 the real one fails with EINVAL

    def _sleep(seconds: Any) -> None:
        threading.Event().wait(seconds)

    time.sleep = _sleep

TTL = 2.0
TIMED_OUT = 75
UNAVAILABLE = 69


def main(paths: Sequence[str]) -> int:
    """Load until SIGTERM, and print a line about each load or error."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        store = open_store(os.environ["BLACKSMITH_STORE_URL"])
        supervisor: Supervisor = StoreSupervisor(store.database, ttl=TTL)
        if url := os.environ.get("BLACKSMITH_SUPERVISOR_URL"):
            supervisor = open_supervisor(url, store.database)
        supervisor.register(this_process(SCHEDULER, paths))
    except Unavailable as error:
        print("unavailable at the start:", error)
        return UNAVAILABLE
    loader.RECORD_FOR = float(os.environ.get("BLACKSMITH_TEST_RECORD_FOR", loader.RECORD_FOR))
    scheduler = StandardScheduler()
    run = f"process {os.getpid()}"
    print("ready")
    while not stop.is_set():
        for path in paths:
            event = blacksmith.destination_events[path]
            try:
                summary = load(
                    blacksmith,
                    event,
                    scheduler,
                    store=store,
                    supervisor=supervisor,
                    run=run,
                    stop=stop,
                )
            except FencedOut as error:
                print("fenced:", error)
            except Timeout as error:
                print("timed out:", error)
                return TIMED_OUT
            except Unavailable as error:
                print("unavailable:", error)
                time.sleep(0.2)
            else:
                if summary.loads:
                    print(summary)
        stop.wait(0.02)
    scheduler.close()
    supervisor.close()
    store.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
