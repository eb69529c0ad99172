"""Messages that cannot be ingested, beside messages that can: each commit of both is one transaction."""

from collections.abc import Iterator
from functools import partial
from typing import Any

from benchmarks.measure import Effort, Figure, alternate, figure, timed
from benchmarks.pipeline import application, payload
from benchmarks.stores import Databases, measured_on, opened, postgres, sqlite
from blacksmith_dagster import Event, Message, Source, Subscription
from blacksmith_dagster.ingest.ingest import ingest
from blacksmith_dagster.ingest.subscription import MESSAGES


@measured_on(postgres, sqlite)
def quarantine(databases: Databases, effort: Effort) -> Iterator[Figure]:
    """The rate at which messages enter quarantine, beside the rate at which they enter the log."""
    source = Source("feed")

    @source.event(Subscription("orders"))
    def ordered(message: Message) -> Event[Any]:
        return Event(message.json())

    app = application(source, [ordered])
    good = payload(0).encode()
    count = effort.of(50_000)

    def rate(body: bytes, numbered: bool) -> float:
        with databases.new() as url, opened(url) as store:
            store.register(app)
            messages = [
                Message(body, id=str(number) if numbered else None) for number in range(count)
            ]
            commits = [messages[at : at + MESSAGES] for at in range(0, count, MESSAGES)]
            databases.settle()
            seconds, stored = timed(
                lambda: sum(
                    sum(map(len, ingest(app, store, ordered, commit))) for commit in commits
                )
            )
            assert stored == (count if body is good else 0), stored
        return count / seconds

    for numbered in (False, True):
        bad, whole = alternate(
            effort.rounds, partial(rate, good[:-1], numbered), partial(rate, good, numbered)
        )
        ids = ", each with an id" if numbered else ""
        what = f"messages into quarantine{ids}, beside such into the log; {databases.name}"
        yield figure(what, bad, "messages/s", limits=whole, at_least=0.5)
