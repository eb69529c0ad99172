"""A source whose events are polled from an origin that the test fills."""

from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any

from dagster import DagsterInstance, Definitions, ExecuteInProcessResult

from blacksmith_dagster import Batch, Blacksmith, Cron, Destination, Event, Poll, Schedule, Source
from blacksmith_dagster.orchestration import BlacksmithResource, build_definitions
from blacksmith_dagster.orchestration.polls import DUE_TAG
from blacksmith_dagster.store import Store, open_store
from tests.support.pipelines.orchestration import TODAY

PollFunction = Callable[[Poll], Any]


class Polling:
    """Source `tower` with `seen`; destination `lake` with `sightings` and, at once,
    `alerts`.

    `origin` is read from the cursor on, a number, unless `function` does something else.
    """

    def __init__(
        self, store_url: str, cron: Cron | None = None, *, function: PollFunction | None = None
    ) -> None:
        self.store_url = store_url
        self.resource = BlacksmithResource(store_url=store_url)
        self.origin: list[int] = []
        self.polls: list[Poll] = []
        self.tower = Source("tower", cron=Cron(max_retries=1))
        self.lake = Destination("lake")

        @self.tower.event(cron or Cron())
        def seen(poll: Poll) -> Iterator[Event[int]]:
            """What the tower has seen."""
            self.polls.append(Poll(poll.cursor, poll.at))
            return (function or self.news)(poll)

        @self.lake.event(receives=seen)
        def sightings(batch: Batch[Any]) -> None: ...

        @self.lake.event(receives=seen, schedule=Schedule(realtime=True))
        def alerts(batch: Batch[Any]) -> None: ...

        self.seen = seen
        self.app = Blacksmith(sources=[self.tower], destinations=[self.lake])

    def news(self, poll: Poll) -> Iterator[Event[int]]:
        """What the origin has beyond the cursor."""
        for number in self.origin[poll.cursor or 0 :]:
            yield Event(number)
        poll.cursor = len(self.origin)

    @property
    def definitions(self) -> Definitions:
        return build_definitions(
            self.app, start_date=TODAY - timedelta(days=30), resource=self.resource
        )

    def open(self) -> Store:
        store = open_store(self.store_url, upgrade=True)
        store.register(self.app)
        return store

    def run(self, instance: DagsterInstance, at: datetime | None = None) -> ExecuteInProcessResult:
        """Execute the poll job in this process."""
        return self.definitions.resolve_job_def("poll_tower__seen").execute_in_process(
            instance=instance,
            raise_on_error=False,
            tags={} if at is None else {DUE_TAG: at.isoformat()},
        )


def payloads(store: Store) -> list[str]:
    """The data of the events that were stored, oldest first."""
    return [event.payload for event in reversed(store.log.newest("tower/seen", limit=10_000))]
