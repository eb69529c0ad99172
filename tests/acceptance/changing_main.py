"""A process that listens to the changes of a database's table `counted` until SIGTERM."""

import os
import signal
import sys
import threading
from contextlib import closing

from blacksmith_dagster import Blacksmith, Secret
from blacksmith_dagster.gateway.listening import Listeners
from blacksmith_dagster.sources import PostgresSource
from blacksmith_dagster.store import open_store
from blacksmith_dagster.store.sql import SQLStore
from blacksmith_dagster.supervisor import StoreSupervisor

URL = "BLACKSMITH_TEST_CRM_URL"
TTL = 2.0  # seconds until another may listen after this one was killed

crm = PostgresSource("crm", url=Secret(URL))
counted = crm.changes("counted", tables=["counted"], snapshot=True)
blacksmith = Blacksmith(sources=[crm], destinations=[], since="2026-01-01")


def main() -> int:
    """Listen; the store's schema must be there."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    with closing(open_store(os.environ["BLACKSMITH_STORE_URL"])) as store:
        assert isinstance(store, SQLStore)
        with closing(StoreSupervisor(store, ttl=TTL)) as supervisor:
            listeners = Listeners(
                blacksmith,
                crm,
                store=store,
                supervisor=supervisor,
                pubsub=None,
                owner=f"process {os.getpid()}",
            )
            listeners.start()
            print("ready")
            stop.wait()
            listeners.stop()
            return 0 if listeners.failure is None else 1


if __name__ == "__main__":
    sys.exit(main())
