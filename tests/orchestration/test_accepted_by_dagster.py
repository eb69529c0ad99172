"""What the package accepts without Dagster at hand, Dagster accepts too, and understands alike."""

import re
from datetime import datetime, timedelta

import dagster
import pytest
from dagster import AssetSpec
from dagster._utils.schedules import cron_string_iterator, is_valid_cron_string
from hypothesis import assume, example, given
from hypothesis import strategies as st

from blacksmith_dagster import DeclarationError, RetryPolicy, Schedule, Source
from tests.support.crons import ACCEPTED, CRONS, NOW, NOWS


def with_dagster(cron: str) -> None:
    @dagster.op
    def nothing() -> None: ...

    job = dagster.GraphDefinition("nothing_at_all", node_defs=[nothing]).to_job()
    dagster.ScheduleDefinition(job=job, cron_schedule=cron, execution_timezone="UTC")


def next_tick(cron: str, now: datetime) -> datetime:
    """When Dagster would next start a schedule after `now`."""
    ticks = cron_string_iterator(now.timestamp(), cron, "UTC")
    return next(tick for tick in ticks if tick > now)


@pytest.mark.parametrize("cron", ACCEPTED)
def test_a_cron_that_is_accepted_is_dagsters_too(cron: str) -> None:
    assert Schedule(cron).interval == cron
    assert Schedule(cron).every is None
    with_dagster(cron)
    assert next_tick(cron, NOW) > NOW


@given(CRONS, NOWS)
@example("0 0 30 2 1", NOW)
@example("0 0 29 2 *", NOW)
def test_a_failed_job_is_due_at_dagsters_next_tick(cron: str, now: datetime) -> None:
    try:
        schedule = Schedule(cron)
    except DeclarationError:
        assume(False)
    assert is_valid_cron_string(cron)
    due = now + RetryPolicy().delay_after(1, schedule.gap(now))
    assert due == max(next_tick(cron, now), now + timedelta(seconds=1))


@given(
    st.one_of(
        st.from_regex(re.compile(r"team:\w{1,9}", re.ASCII), fullmatch=True),
        st.emails(),
        st.text(max_size=12),
    )
)
def test_dagster_accepts_the_owners_that_are_accepted(owner: str) -> None:
    try:
        owners = Source("airport", owners=[owner]).owners
    except DeclarationError:
        return
    assert AssetSpec("airport", owners=owners).owners == (owner,)


_words = st.text("aZ0_.-/ é", max_size=9)


@given(_words, _words)
def test_dagster_accepts_the_tags_that_are_accepted(key: str, value: str) -> None:
    try:
        tags = Source("airport", tags={key: value}).tags
    except DeclarationError:
        return
    assert AssetSpec("airport", tags=tags).tags == {key: value}
