"""Schedules and retry policies: what is accepted, and when a failed job is retried."""

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from blacksmith_dagster import DeclarationError, RetryPolicy, Schedule
from tests.support.crons import CRONS, NOW, NOWS

HOUR = timedelta(hours=1)
FIX = "write '@every <duration>', a nickname such as '@daily', or a cron expression of five fields"

REFUSED = [
    "",
    "daily",
    "* * * *",
    "* * * * * *",
    "0 0 3 * * *",
    "* * * * * * 2026",
    "@reboot",
    "@Daily",
    "@every",
    "@every5m",
    "H * * * *",
    "h(0-30) * * * *",
    "r * * * *",
    "R(0-30) * * * *",
    "0 0 * * 5#2",
    "60 * * * *",
    "* 24 * * *",
    "* * 0 * *",
    "* * * 13 *",
    "* * * * 8",
    "-5 * * * *",
    "*/0 * * * *",
    "0 0 ? * *",
    "0 0 15W * *",
    "0 0 30 2 *",
    "0 0 31 feb *",
    "0 0 30 2 1",
    "0 0 31 4,6 *",
    "0 0 * * someday",
    "0\t0 * * *",
    "0 0 * * *\n",
    "TZ=UTC 0 0 * * *",
    3600,
    timedelta(hours=1),
]


@pytest.mark.parametrize("interval", REFUSED)
def test_another_interval_is_refused(interval: Any) -> None:
    with pytest.raises(DeclarationError) as raised:
        Schedule(interval)
    assert f"Schedule({interval!r}): {FIX}" in str(raised.value)


def test_a_cron_is_in_utc_whatever_zone_the_failure_is_shown_in() -> None:
    elsewhere = NOW.astimezone(timezone(timedelta(hours=5, minutes=30)))
    for now in (NOW, elsewhere):
        assert Schedule("0 13 * * *").gap(now) == timedelta(minutes=52, seconds=30)


@pytest.mark.parametrize(
    ("interval", "every"),
    [
        ("@every 5s", timedelta(seconds=5)),
        ("@every 1h30m", timedelta(minutes=90)),
        ("@every 7d", timedelta(days=7)),
    ],
)
def test_an_interval_is_the_gap_between_attempts(interval: str, every: timedelta) -> None:
    schedule = Schedule(interval)
    assert schedule.every == every
    delays = {RetryPolicy().delay_after(attempt, schedule.gap(NOW)) for attempt in (1, 2, 72)}
    assert delays == {every}


@pytest.mark.parametrize("interval", ["@every 4s", "@every 4999ms", "@every 1ms"])
def test_an_interval_under_dagsters_pace_is_refused(interval: str) -> None:
    with pytest.raises(DeclarationError, match=r"write '@every 5s' or longer, or .*realtime=True"):
        Schedule(interval)


DURATIONS = st.integers(1, 315_360_000).map("{}s".format)


@given(
    DURATIONS,
    st.one_of(CRONS, st.integers(5, 315_360_000).map("@every {}s".format)),
    st.integers(1, 10_001),
    NOWS,
)
@example("1d", "@every 30d", 72, NOW)
def test_a_delay_doubles_with_jitter_and_is_never_longer_than_the_interval(
    first: str, interval: str, attempt: int, now: datetime
) -> None:
    """Unless the first delay is: then that is the longest."""
    try:
        gap = Schedule(interval).gap(now)
    except DeclarationError:
        assume(False)
    cap = max(gap.total_seconds(), int(first[:-1]))
    longest = int(first[:-1]) * 2 ** (min(attempt, 40) - 1)
    delay = RetryPolicy(delay=first).delay_after(attempt, gap).total_seconds()
    assert min(longest, cap) / 2 * 0.999999 <= delay
    assert delay <= min(longest, cap) * 1.000001


def test_jitter_spreads_the_retries() -> None:
    policy = RetryPolicy(delay="10s")
    for attempt, longest in ((1, 10), (2, 20), (5, 160)):
        delays = [policy.delay_after(attempt, HOUR).total_seconds() for _ in range(500)]
        assert len(set(delays)) > 100
        assert longest / 2 <= min(delays) < 0.6 * longest
        assert 0.9 * longest < max(delays) <= longest


@pytest.mark.parametrize(
    ("policy", "seconds"),
    [
        (RetryPolicy(), [3600, 3600, 3600]),
        (RetryPolicy(delay="10s", backoff=1), [10, 10, 10]),
        (RetryPolicy(delay="10s", backoff=3, jitter=0), [10, 30, 90]),
        (RetryPolicy(delay="10s", backoff=1.5, jitter=0, max_delay="20s"), [10, 15, 20]),
        (RetryPolicy(delay=timedelta(hours=2), jitter=0), [7200, 7200, 7200]),
        (RetryPolicy(delay="50m", jitter=0), [3000, 3600, 3600]),
        (RetryPolicy(backoff=2, max_delay="3h", jitter=0), [3600, 7200, 10_800]),
        (RetryPolicy(max_delay="5m"), [300, 300, 300]),
    ],
)
def test_a_retry_policy_spaces_the_attempts(policy: RetryPolicy, seconds: list[float]) -> None:
    delays = [policy.delay_after(attempt, HOUR).total_seconds() for attempt in (1, 2, 3)]
    assert delays == seconds


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"max_retries": -1}, "max_retries=-1: write a whole number from 0 to 10000"),
        ({"max_retries": True}, "max_retries=True: write a whole number"),
        ({"backoff": "10s"}, "backoff='10s': write a number from 1 to 100"),
        ({"backoff": 0.5}, "backoff=0.5: write a number from 1 to 100"),
        ({"backoff": float("nan")}, "backoff=nan: write a number from 1 to 100"),
        ({"jitter": 1.1}, "jitter=1.1: write a number from 0 to 1"),
        ({"jitter": True}, "jitter=True: write a number from 0 to 1"),
        ({"delay": "1m", "max_delay": "30s"}, "write a longer max_delay"),
    ],
)
def test_a_wrong_retry_policy_is_refused(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(DeclarationError, match=f"RetryPolicy.*{says}"):
        RetryPolicy(**fields)


def test_what_is_not_given_counts_as_the_default() -> None:
    assert Schedule(realtime=True).gap(NOW) == HOUR
    assert RetryPolicy(delay="1s").max_attempts == 73


@pytest.mark.parametrize("retries", [0, 1, 72, 10_000])
def test_attempts_are_the_first_and_its_retries(retries: int) -> None:
    assert RetryPolicy(max_retries=retries).max_attempts == 1 + retries
