"""Polls by cron expressions: each event says when its poll was due."""

from collections.abc import Iterator

from blacksmith_dagster import Blacksmith, Cron, Event, Poll, Source
from blacksmith_dagster.orchestration import build_definitions

STARTED = "2026-01-01T00:00:00+00:00"

berlin = Source("berlin", cron=Cron(timezone="Europe/Berlin"))
tower = Source("tower")


@berlin.event(Cron("30 2 * * *"))
def nightly(poll: Poll) -> Event[str]:
    return Event(poll.at.isoformat())


@tower.event(Cron("*/5 * * * *"))
def often(poll: Poll) -> Iterator[Event[list[str]]]:
    yield Event([poll.cursor or STARTED, poll.at.isoformat()])
    poll.cursor = poll.at.isoformat()


by_night = Blacksmith(sources=[berlin], destinations=[])
by_day = Blacksmith(sources=[tower], destinations=[])

nightly_definitions = build_definitions(by_night, start_date="2026-01-01")
often_definitions = build_definitions(by_day, start_date="2026-01-01")
