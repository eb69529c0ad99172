"""The code of a test's process that listens until SIGTERM."""

import os
import signal
import threading
from collections.abc import Callable
from contextlib import closing

from blacksmith_dagster import Blacksmith, Source
from blacksmith_dagster.ingest.listeners import Listeners
from blacksmith_dagster.store import Store, open_store
from blacksmith_dagster.supervisor import StoreSupervisor

TTL = 2.0  # seconds until another process may listen after this one was killed


def listen(
    app: Blacksmith, source: Source, prepare: Callable[[Store], None] = lambda _: None
) -> int:
    """Listen for the events of a source; the store's schema must exist. `changed` is called with the
    store first. Returns the exit code."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    with closing(open_store(os.environ["BLACKSMITH_STORE_URL"])) as store:
        prepare(store)
        with closing(StoreSupervisor(store.database, ttl=TTL)) as supervisor:
            listeners = Listeners(
                app,
                source,
                store=store,
                supervisor=supervisor,
                pubsub=None,
                holder=f"process {os.getpid()}",
            )
            listeners.start()
            print("ready")
            stop.wait()
            listeners.stop()
            return 0 if listeners.failure is None else 1
