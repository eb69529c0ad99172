"""How a load ended, from what the destination event's function did. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from typing import NamedTuple

from blacksmith_dagster.pipeline.event import JobResult, JobVerdict
from blacksmith_dagster.pipeline.schedule import Schedule
from blacksmith_dagster.redaction import clean, describe
from blacksmith_dagster.scheduler.decoding import Decoded
from blacksmith_dagster.scheduler.interface import LoadReport, Tally
from blacksmith_dagster.store.interface import Deviation, Load, LoadVerdict

_LONGEST_DELAY = 366 * 86400.0


class Decision(NamedTuple):
    """A load's verdict. `exhausted`: the jobs (by seq) discarded because their last attempt failed,
    not by their function's verdict."""

    verdict: LoadVerdict
    exhausted: frozenset[int] = frozenset()


def decide(
    load: Load,
    decoded: Decoded,
    job_verdicts: Mapping[str, JobVerdict],
    raised: BaseException | None,
    schedule: Schedule,
    now: datetime,
) -> Decision:
    """The verdict of a load.

    `job_verdicts` is what the function decided, by the job's key; `raised` what it raised. It has
    succeeded with every job that it did not name, or failed with them if it raised. A job that
    fails at its last attempt is discarded, except that a load of several jobs which raises discards
    none of those undecided: it may have raised for the sake of one. They run once by themselves
    before that.
    """
    if load.discard_reason is not None:
        return Decision(
            LoadVerdict(
                [Deviation(row.seq, JobResult.DISCARDED, load.discard_reason) for row in load.rows]
            )
        )
    if raised is None and not job_verdicts and not decoded.failures:
        return Decision(LoadVerdict())
    several = len(load.rows) > 1
    last = load.attempt >= schedule.max_attempts
    gap = schedule.retry_delay(load.attempt, now).total_seconds()
    error_text = "" if raised is None else describe(raised)
    if raised is not None and not job_verdicts and not decoded.failures and (several or not last):
        isolated = several and load.attempt >= schedule.max_attempts - 1
        return Decision(LoadVerdict(raised=error_text, delay=gap, isolated=isolated))

    deviations: list[Deviation] = []
    exhausted: set[int] = set()
    for row in load.rows:
        undecided = False
        delay: float | None = None
        if (failure := decoded.failures.get(row.seq)) is not None:
            result, error = failure
        elif (job_verdict := job_verdicts.get(load.key_of(row.id))) is not None:
            result, error, delay = (
                job_verdict.result,
                clean(job_verdict.reason),
                job_verdict.retry_after,
            )
        else:
            undecided = True
            result, error = (
                (JobResult.SUCCEEDED, "") if raised is None else (JobResult.FAILED, error_text)
            )
        if result is JobResult.FAILED and last and not (undecided and several):
            result = JobResult.DISCARDED
            exhausted.add(row.seq)
        if result is JobResult.FAILED:
            isolated = undecided and several and load.attempt >= schedule.max_attempts - 1
            deviations.append(Deviation(row.seq, result, error, _delay(delay, gap), isolated))
        elif result is JobResult.DISCARDED:
            deviations.append(Deviation(row.seq, result, error))
    return Decision(LoadVerdict(deviations), frozenset(exhausted))


def _delay(asked: float | None, gap: float) -> float:
    """Seconds until a failed job is due: what was asked for, if it makes sense, else the gap.

    Rounded up to tenths, and to whole seconds from one on: what is due together runs together.
    """
    if asked is None or math.isnan(asked) or asked < 0:
        return gap
    asked = min(asked, _LONGEST_DELAY)
    return float(math.ceil(asked)) if asked >= 1 else math.ceil(asked * 10) / 10


def load_report(load: Load, verdict: LoadVerdict, seconds: float) -> LoadReport:
    """The report of a recorded load. `seconds`: how long its function took."""
    made = _per_day([row.received_at for row in load.rows])
    if verdict.raised is not None:
        days = {day: Tally(failed=jobs) for day, jobs in made.items()}
        return LoadReport(load.id, days, seconds, load.attempt, verdict.raised)
    if not verdict.deviations:
        days = {day: Tally(succeeded=jobs) for day, jobs in made.items()}
        return LoadReport(load.id, days, seconds, load.attempt)
    received = {row.seq: row.received_at for row in load.rows}
    failed, discarded = (
        _per_day([received[each.seq] for each in verdict.deviations if each.result is result])
        for result in (JobResult.FAILED, JobResult.DISCARDED)
    )
    days = {
        day: Tally(jobs - failed[day] - discarded[day], failed[day], discarded[day])
        for day, jobs in made.items()
    }
    return LoadReport(load.id, days, seconds, load.attempt, verdict.deviations[0].error)


def _per_day(times: Sequence[datetime]) -> Counter[date]:
    if times and (day := _day(min(times))) == _day(max(times)):
        return Counter({day: len(times)})  # one day, as most loads are: no need to look at each
    return Counter(map(_day, times))


def _day(at: datetime) -> date:
    return at.astimezone(UTC).date()
