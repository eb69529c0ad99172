"""Schedules: what is accepted, and when a failed job is retried."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import dagster
import pytest
from dagster._utils.schedules import cron_string_iterator, is_valid_cron_string
from hypothesis import assume, example, given
from hypothesis import strategies as st

from blacksmith_dagster import DeclarationError, Schedule

NOW = datetime(2026, 3, 1, 12, 7, 30, tzinfo=UTC)
FIX = "write '@every <duration>', a nickname such as '@daily', or a cron expression of five fields"

TAKEN = [
    "* * * * *",
    "*/5 * * * *",
    "0 3 * * 1-5",
    "0 3 * * mon-fri",
    "0 3 * * MON,WED",
    "15,45 */2 1 jan,jul *",
    "0 0 29 2 *",
    "0 0 L * *",
    "0 0 * * 7",
    "0 0 30 4 *",
    "@hourly",
    "@daily",
    "@midnight",
    "@weekly",
    "@monthly",
    "@yearly",
    "@annually",
]

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


def with_dagster(cron: str) -> None:
    @dagster.op
    def nothing() -> None: ...

    job = dagster.GraphDefinition("nothing_at_all", node_defs=[nothing]).to_job()
    dagster.ScheduleDefinition(job=job, cron_schedule=cron, execution_timezone="UTC")


def next_tick(cron: str, now: datetime) -> datetime:
    """When Dagster would next start a schedule after `now`."""
    ticks = cron_string_iterator(now.timestamp(), cron, "UTC")
    return next(tick for tick in ticks if tick > now)


@pytest.mark.parametrize("cron", TAKEN)
def test_a_cron_that_is_accepted_is_dagsters_too(cron: str) -> None:
    assert Schedule(cron).interval == cron
    assert Schedule(cron).every is None
    with_dagster(cron)
    assert next_tick(cron, NOW) > NOW


@pytest.mark.parametrize("interval", REFUSED)
def test_another_interval_is_refused(interval: Any) -> None:
    with pytest.raises(DeclarationError) as raised:
        Schedule(interval)
    assert f"Schedule({interval!r}): {FIX}" in str(raised.value)


def _values(low: int, high: int, names: str = "") -> st.SearchStrategy[str]:
    one = st.integers(low, high).map(str)
    if names:
        one = one | st.sampled_from(names.split())
    step = st.integers(1, high + 1).map(str)
    ranges = st.tuples(one, one).map("-".join)
    part = st.one_of(
        st.just("*"), one, ranges, step.map("*/{}".format), st.tuples(ranges, step).map("/".join)
    )
    return st.lists(part, min_size=1, max_size=3).map(",".join)


CRONS = st.tuples(
    _values(0, 60),
    _values(0, 24),
    _values(0, 32, "L"),
    _values(0, 13, "jan FEB dec"),
    _values(0, 8, "mon SUN"),
).map(" ".join)
NOWS = st.timedeltas(timedelta(0), timedelta(days=3650)).map(NOW.__add__)


@given(CRONS, NOWS)
@example("0 0 30 2 1", NOW)
@example("0 0 29 2 *", NOW)
def test_a_failed_job_is_due_at_dagsters_next_tick(cron: str, now: datetime) -> None:
    try:
        schedule = Schedule(cron)
    except DeclarationError:
        assume(False)
    assert is_valid_cron_string(cron)
    due = now + schedule.retry_delay(1, now)
    assert due == max(next_tick(cron, now), now + timedelta(seconds=1))


def test_a_cron_is_in_utc_whatever_zone_the_failure_is_shown_in() -> None:
    elsewhere = NOW.astimezone(timezone(timedelta(hours=5, minutes=30)))
    for now in (NOW, elsewhere):
        assert Schedule("0 13 * * *").retry_delay(1, now) == timedelta(minutes=52, seconds=30)


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
    assert {schedule.retry_delay(attempt, NOW) for attempt in (1, 2, 72)} == {every}


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
def test_a_backoff_doubles_with_jitter_and_is_never_later_than_the_interval(
    backoff: str, interval: str, attempt: int, now: datetime
) -> None:
    try:
        schedule = Schedule(interval, backoff=backoff)
    except DeclarationError:
        assume(False)
    gap = Schedule(interval).retry_delay(attempt, now)
    longest = int(backoff[:-1]) * 2 ** (min(attempt, 40) - 1)
    delay = schedule.retry_delay(attempt, now).total_seconds()
    assert min(longest / 2, gap.total_seconds()) * 0.999999 <= delay
    assert delay <= min(longest, gap.total_seconds()) * 1.000001


def test_a_backoffs_jitter_spreads_the_retries() -> None:
    schedule = Schedule("@every 1h", backoff="10s")
    for attempt, longest in ((1, 10), (2, 20), (5, 160)):
        delays = [schedule.retry_delay(attempt, NOW).total_seconds() for _ in range(500)]
        assert len(set(delays)) > 100
        assert longest / 2 <= min(delays) < 0.6 * longest
        assert 0.9 * longest < max(delays) <= longest


def test_what_is_not_given_counts_as_the_default() -> None:
    assert Schedule(max_retries=3).retry_delay(1, NOW) == timedelta(hours=1)
    assert Schedule().max_attempts == 73


@pytest.mark.parametrize("retries", [0, 1, 72, 10_000])
def test_attempts_are_the_first_and_its_retries(retries: int) -> None:
    assert Schedule(max_retries=retries).max_attempts == 1 + retries
