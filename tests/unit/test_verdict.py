"""How a load ends."""

from datetime import date, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blacksmith_dagster import Batch, Destination, RetryPolicy
from blacksmith_dagster.errors import UsageError
from blacksmith_dagster.pipeline.event import JobResult, JobVerdict
from blacksmith_dagster.scheduler.decoding import Decoded, DecodeFailure
from blacksmith_dagster.scheduler.outcomes import Tally, decide, load_report
from blacksmith_dagster.store.records import Deviation, Load, LoadVerdict
from tests.support.loads import NOW, decode, departed, flights, load, row

LAST = flights.retry.max_attempts
GAP = 600.0
NO_JOBS = Decoded((), {})
ERROR = ConnectionError("refused")


def verdict(
    claimed: Load,
    job_verdicts: dict[int, JobVerdict] | None = None,
    raised: BaseException | None = None,
    failures: dict[int, DecodeFailure] | None = None,
) -> LoadVerdict:
    by_key = {f"evt_{seq}-2": job_verdict for seq, job_verdict in (job_verdicts or {}).items()}
    return decide(claimed, Decoded((), failures or {}), by_key, raised, flights, NOW).verdict


def test_a_function_that_returns_has_succeeded_with_every_job() -> None:
    assert verdict(load([row(1), row(2)])) == LoadVerdict()


def test_each_job_that_was_named_has_its_own_end() -> None:
    job_verdicts = {
        1: JobVerdict(JobResult.SUCCEEDED),
        2: JobVerdict(JobResult.FAILED, "later"),
        3: JobVerdict(JobResult.FAILED, "in a minute", timedelta(minutes=1)),
        4: JobVerdict(JobResult.DISCARDED, "never"),
    }
    assert verdict(load([row(seq) for seq in range(1, 6)]), job_verdicts) == LoadVerdict(
        [
            Deviation(2, JobResult.FAILED, "later", GAP),
            Deviation(3, JobResult.FAILED, "in a minute", 60.0),
            Deviation(4, JobResult.DISCARDED, "never"),
        ]
    )


@pytest.mark.parametrize(
    ("asked", "delay"),
    [
        (0.0, 0.0),
        (0.31, 0.4),
        (1.0, 1.0),
        (1.01, 2.0),
        (3650 * 86400.0, 366 * 86400.0),
    ],
)
def test_a_delay_is_rounded_up_and_a_year_at_most(asked: float, delay: float) -> None:
    later = JobVerdict(JobResult.FAILED, "later", timedelta(seconds=asked))
    load_verdict = verdict(load([row(1), row(2)]), {1: later})
    assert load_verdict.deviations[0].delay == delay


def test_a_delay_is_text_or_a_timedelta_and_else_refused() -> None:
    batch = Batch("warehouse/flights", decode(load([row(1)])).jobs)
    wrong: list[Any] = ["120", b"120", object(), 120, 120.0, "", timedelta(seconds=-1)]
    for retry_after in wrong:
        with pytest.raises(UsageError, match=r"warehouse/flights: retry_after: .*write"):
            batch.fail(batch[0], "busy", retry_after=retry_after)
    assert not batch.verdicts
    for good in (timedelta(minutes=2), "2m", "120s"):
        batch.fail(batch[0], "busy", retry_after=good)
        decision = decide(load([row(1)]), NO_JOBS, batch.verdicts, None, flights, NOW)
        assert decision.verdict.deviations[0].delay == 120.0


def test_an_exception_fails_those_undecided() -> None:
    job_verdicts = {1: JobVerdict(JobResult.SUCCEEDED), 2: JobVerdict(JobResult.DISCARDED, "never")}
    assert verdict(load([row(1), row(2), row(3)]), job_verdicts, ERROR) == LoadVerdict(
        [
            Deviation(2, JobResult.DISCARDED, "never"),
            Deviation(3, JobResult.FAILED, "ConnectionError: refused", GAP),
        ]
    )


def test_an_exception_alone_costs_no_row_per_job() -> None:
    assert verdict(load([row(1), row(2)]), raised=ERROR) == LoadVerdict(
        raised="ConnectionError: refused", delay=GAP
    )


def test_a_job_that_fails_at_its_last_attempt_is_discarded() -> None:
    job_verdicts = {1: JobVerdict(JobResult.FAILED, "again")}
    jobs = [row(1), row(2)]
    assert verdict(load(jobs, attempt=LAST), job_verdicts) == LoadVerdict(
        [Deviation(1, JobResult.DISCARDED, "again")]
    )
    assert verdict(load([row(1)], attempt=LAST), raised=ERROR) == LoadVerdict(
        [Deviation(1, JobResult.DISCARDED, "ConnectionError: refused")]
    )
    assert verdict(load([row(1)], attempt=LAST - 1), raised=ERROR).raised is not None


@pytest.mark.parametrize("attempt", [LAST - 1, LAST, LAST + 1])
def test_a_job_group_that_raises_to_the_end_is_isolated_before_it_is_discarded(
    attempt: int,
) -> None:
    load_verdict = verdict(load([row(1), row(2)], attempt=attempt), raised=ERROR)
    assert load_verdict == LoadVerdict(raised="ConnectionError: refused", delay=GAP, isolated=True)
    assert not verdict(load([row(1), row(2)], attempt=LAST - 2), raised=ERROR).isolated


def test_a_job_group_that_may_be_tried_once_is_isolated_after_it_raised() -> None:
    once = Destination("once", retry=RetryPolicy(max_retries=0)).event(receives=departed)(
        flights.function
    )
    load_verdict = decide(load([row(1), row(2)]), NO_JOBS, {}, ERROR, once, NOW).verdict
    assert load_verdict.isolated


def test_those_undecided_are_not_discarded_with_the_one_that_raised() -> None:
    job_verdicts = {1: JobVerdict(JobResult.SUCCEEDED)}
    load_verdict = verdict(load([row(1), row(2), row(3)], attempt=LAST), job_verdicts, ERROR)
    assert [deviation.result for deviation in load_verdict.deviations] == [
        JobResult.FAILED,
        JobResult.FAILED,
    ]


def test_a_job_that_was_not_handed_over_fails_alone() -> None:
    failures = {
        2: DecodeFailure(JobResult.FAILED, "KeyError"),
        3: DecodeFailure(JobResult.DISCARDED, "not wanted"),
    }
    jobs = [row(1), row(2), row(3)]
    assert verdict(load(jobs), failures=failures) == LoadVerdict(
        [
            Deviation(2, JobResult.FAILED, "KeyError", GAP),
            Deviation(3, JobResult.DISCARDED, "not wanted"),
        ]
    )
    assert verdict(load(jobs, attempt=LAST), failures=failures).deviations[0] == Deviation(
        2, JobResult.DISCARDED, "KeyError"
    )


def test_a_load_claimed_for_discard_is_discarded_whole() -> None:
    claimed = load([row(1), row(2)], discard_reason="lost 3 times")
    assert verdict(claimed) == LoadVerdict(
        [Deviation(seq, JobResult.DISCARDED, "lost 3 times") for seq in (1, 2)]
    )


def test_what_a_destination_says_is_kept_in_a_form_that_every_database_accepts() -> None:
    load_verdict = verdict(load([row(1)]), {1: JobVerdict(JobResult.FAILED, "nul \0 \ud800")})
    assert load_verdict.deviations[0].error == "nul \\0 \\ud800"


def test_a_report_counts_per_utc_day_of_receipt() -> None:
    west = timezone(timedelta(hours=-5))
    late = datetime(2026, 2, 28, 23, tzinfo=west)  # 04:00 on March 1 in UTC
    jobs = [
        row(1, received_at=late),
        row(2),
        row(3, received_at=NOW - timedelta(days=1)),
        row(4, received_at=NOW - timedelta(days=1)),
    ]
    job_verdicts = {
        1: JobVerdict(JobResult.DISCARDED, "never"),
        3: JobVerdict(JobResult.FAILED, "later"),
    }
    claimed = load(jobs)
    reported = load_report(claimed, verdict(claimed, job_verdicts), 1.5)
    assert reported.days == {
        date(2026, 3, 1): Tally(succeeded=1, discarded=1),
        date(2026, 2, 28): Tally(succeeded=1, failed=1),
    }
    assert (reported.load_id, reported.attempt, reported.seconds, reported.error) == (
        9,
        1,
        1.5,
        "never",
    )

    outage = load_report(claimed, verdict(claimed, raised=ERROR), 1.5)
    assert sum(outage.days.values(), start=Tally()) == Tally(failed=4)
    assert load_report(claimed, LoadVerdict(), 0.0).days[date(2026, 3, 1)] == Tally(succeeded=2)


_JOB_VERDICTS = st.one_of(
    st.none(),
    st.just(JobVerdict(JobResult.SUCCEEDED)),
    st.just(JobVerdict(JobResult.DISCARDED, "never")),
    st.builds(
        JobVerdict,
        st.just(JobResult.FAILED),
        st.just("later"),
        st.none() | st.timedeltas(timedelta(0), timedelta(3650)),
    ),
)


@given(st.lists(_JOB_VERDICTS, min_size=1, max_size=6), st.integers(1, LAST), st.booleans())
def test_every_job_ends_in_one_way_or_is_due_again(
    job_verdicts: list[JobVerdict | None], attempt: int, raises: bool
) -> None:
    jobs = [row(seq) for seq in range(len(job_verdicts))]
    claimed = load(jobs, attempt=attempt)
    batch = Batch("warehouse/flights", decode(claimed).jobs)
    for job, job_verdict in zip(batch, job_verdicts, strict=True):
        if job_verdict is not None and job_verdict.result is JobResult.SUCCEEDED:
            batch.succeed(job)
        elif job_verdict is not None and job_verdict.result is JobResult.FAILED:
            batch.fail(job, job_verdict.reason, retry_after=job_verdict.retry_after)
        elif job_verdict is not None:
            batch.discard(job, job_verdict.reason)
    raised = ERROR if raises else None
    decision = decide(claimed, decode(claimed), batch.verdicts, raised, flights, NOW)
    ended = decision.verdict

    deviating = {deviation.seq: deviation for deviation in ended.deviations}
    assert len(deviating) == len(ended.deviations)
    assert decision.exhausted <= deviating.keys()
    assert not (ended.raised and deviating)
    if ended.raised:
        assert raises
        assert not any(job_verdicts)
        assert ended.delay > 0
    for seq, job_verdict in enumerate(job_verdicts):
        deviation = deviating.get(seq)
        if job_verdict is None:
            assert (deviation is not None or bool(ended.raised)) == raises
        elif job_verdict.result is JobResult.SUCCEEDED:
            assert deviation is None
        else:
            assert deviation is not None
        if deviation is not None and deviation.result is JobResult.FAILED:
            assert deviation.delay is not None
            assert 0 <= deviation.delay <= 366 * 86400
        elif deviation is not None:
            assert deviation.result is JobResult.DISCARDED
            discards = job_verdict is not None and job_verdict.result is JobResult.DISCARDED
            assert discards or attempt == LAST
    tally = sum(load_report(claimed, ended, 0.0).days.values(), start=Tally())
    assert tally.succeeded + tally.failed + tally.discarded == len(jobs)
