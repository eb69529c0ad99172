"""What a `Cron` accepts, and what its event inherits."""

from datetime import UTC, datetime
from typing import Any

import pytest

from blacksmith_dagster import Cron, DeclarationError, Event, Poll, Source
from blacksmith_dagster.pipeline.triggers import DEFAULT_CRON


def trigger_of(source: Source, cron: Cron) -> Cron:
    @source.event(cron)
    def seen(poll: Poll) -> Event[int]:
        return Event(1)

    assert isinstance(seen.trigger, Cron)
    return seen.trigger


def test_every_hour_if_nothing_says_otherwise() -> None:
    assert trigger_of(Source("tower"), Cron()) == DEFAULT_CRON == Cron("@every 1h", "UTC", 3)


def test_an_event_takes_each_field_from_its_source() -> None:
    tower = Source("tower", cron=Cron("0 5 * * *", "Europe/Berlin"))
    assert trigger_of(tower, Cron()) == Cron("0 5 * * *", "Europe/Berlin", 3)
    tower = Source("tower", cron=Cron(timezone="Europe/Berlin", max_retries=0))
    assert trigger_of(tower, Cron("@daily")) == Cron("@daily", "Europe/Berlin", 0)
    tower = Source("tower", cron=Cron("@every 5m", max_retries=9))
    given = Cron("@every 5s", "UTC", 1)
    assert trigger_of(tower, given) == given


@pytest.mark.parametrize("interval", ["@every 5s", "*/5 * * * *", "@daily", "0 9 * * MON-FRI"])
def test_intervals(interval: str) -> None:
    assert Cron(interval).interval == interval


@pytest.mark.parametrize(
    ("interval", "why"),
    [
        ("@every 4s", "Dagster evaluates schedules every 5 seconds; write '@every 5s' or longer$"),
        ("@reboot", "write '@every <duration>', a nickname such as '@daily', or a cron"),
        ("*/5 * * * * *", "a cron expression of five fields"),
        ("0 0 31 4 *", "that matches some date"),
        (300, "a cron expression of five fields"),
    ],
)
def test_an_interval_that_never_comes_is_refused(interval: Any, why: str) -> None:
    with pytest.raises(DeclarationError, match=why) as refused:
        Cron(interval)
    assert str(refused.value).startswith(f"Cron({interval!r})")


@pytest.mark.parametrize(
    "timezone", ["Berlin", "", "Europe/", "../etc/passwd", "Europe/Berl\0n", 1]
)
def test_a_time_zone_that_is_none_is_refused(timezone: Any) -> None:
    with pytest.raises(DeclarationError, match="write an IANA name, such as 'Europe/Berlin'"):
        Cron("@daily", timezone)


@pytest.mark.parametrize("retries", [-1, 101, 1.5, "3"])
def test_a_number_of_retries_that_is_none_is_refused(retries: Any) -> None:
    with pytest.raises(DeclarationError, match="write a whole number from 0 to 100"):
        Cron(max_retries=retries)


def test_a_poll_can_be_made_to_call_the_function() -> None:
    tower = Source("tower")

    @tower.event(Cron())
    def seen(poll: Poll) -> list[Event[int]]:
        poll.cursor = (poll.cursor or 0) + 1
        return [Event(poll.cursor)]

    poll = Poll()
    assert (seen(poll), poll.cursor) == ([Event(1)], 1)
    assert seen(Poll(41, datetime(2026, 1, 1, tzinfo=UTC))) == [Event(42)]


def test_a_function_takes_the_poll_alone() -> None:
    with pytest.raises(DeclarationError, match="poll"):

        @Source("tower").event(Cron())  # type: ignore[arg-type]
        def seen(poll: Poll, other: int) -> Event[int]:
            return Event(other)
