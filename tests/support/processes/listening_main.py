"""A process that listens to a broker's topic until SIGTERM, or until a commit that the test names.

It dies by SIGKILL, once, when the file at BLACKSMITH_TEST_DIES says 'read' (after reading, before
the commit) or 'commit' (after the commit, before it acknowledges to the broker).
"""

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from blacksmith_dagster import Blacksmith, Event, Message, Secret, Source, Subscription
from blacksmith_dagster.store import Store
from tests.support.processes.listening import listen

URL = "BLACKSMITH_TEST_ORDERS_URL"
TOPIC = "BLACKSMITH_TEST_TOPIC"
SUBSCRIPTION = "BLACKSMITH_TEST_SUBSCRIPTION"
DIES = "BLACKSMITH_TEST_DIES"
DIES_AT = b"150"
KEY = "order-key"
FIXED = "BLACKSMITH_TEST_FIXED"

orders = Source("orders")


@orders.event(
    Subscription(os.environ.get(TOPIC, "orders"), os.environ.get(SUBSCRIPTION), url=Secret(URL))
)
def placed(message: Message) -> Event[str]:
    """An event with the body in hex; fails for poison until FIXED is set."""
    if message.body == DIES_AT:
        die_at("read")
    if message.body.startswith(b"poison") and FIXED not in os.environ:
        raise ValueError("this is poison")
    return Event(message.body.hex(), key=message.headers.get(KEY))


blacksmith = Blacksmith(sources=[orders], destinations=[])


def die_at(place: str) -> None:
    file = Path(os.environ.get(DIES, "/nowhere"))
    with suppress(FileNotFoundError):
        if file.read_text() == place:
            file.unlink()
            os.kill(os.getpid(), signal.SIGKILL)


def dying(store: Store) -> None:
    """Make the process kill itself after a commit, if the test wants it."""
    ingest = store.log.append

    def ingest_and_die(*requests: Any, **options: Any) -> Any:
        result = ingest(*requests, **options)
        die_at("commit")
        return result

    store.log.append = ingest_and_die  # type: ignore[method-assign]


if __name__ == "__main__":
    sys.exit(listen(blacksmith, orders, dying))
