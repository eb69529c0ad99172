"""How a load ended: its verdict, the outcomes that are received, and what is reported. No I/O."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any, NamedTuple

import msgspec

from blacksmith_dagster.pipeline.application import Blacksmith
from blacksmith_dagster.pipeline.destination import AnyDestinationEvent
from blacksmith_dagster.pipeline.event import Cause, Event, Job, JobResult, JobVerdict
from blacksmith_dagster.pipeline.flow import Flow, Outcome
from blacksmith_dagster.redaction import clean, describe
from blacksmith_dagster.scheduler.decoding import Decoded
from blacksmith_dagster.store.records import Deviation, JobRow, Load, LoadVerdict, NewEvent, NewJob

_LONGEST_DELAY = 366 * 86400.0


class Tally(msgspec.Struct, frozen=True):
    """Numbers of jobs, by how their attempt ended. `failed` attempts will be repeated."""

    succeeded: int = 0
    failed: int = 0
    discarded: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.succeeded + other.succeeded,
            self.failed + other.failed,
            self.discarded + other.discarded,
        )


class LoadReport(msgspec.Struct, frozen=True):
    """One recorded load, with a tally for each UTC day of its events' `received_at`.

    - `seconds`: how long the destination event's function took.
    - `error`: the first error, if any.
    - `receivers`: the destination events that have new jobs by the load's outcomes.
    """

    load_id: int
    days: Mapping[date, Tally]
    seconds: float
    attempt: int
    error: str | None = None
    receivers: Collection[str] = ()

    @property
    def tally(self) -> Tally:
        """The tally of all days."""
        return sum(self.days.values(), start=Tally())


class Summary(msgspec.Struct, frozen=True):
    """What a scheduler did until nothing was due.

    `skipped` says why it loaded nothing (more): another holder has the lock, or the destination waits
    for a migration. It is `None` if everything due was loaded. `stopped` is true if it was stopped
    before everything due was loaded.
    """

    loads: int = 0
    tally: Tally = Tally()
    skipped: str | None = None
    stopped: bool = False


def judge(
    app: Blacksmith,
    event: AnyDestinationEvent,
    load: Load,
    decoded: Decoded,
    job_verdicts: Mapping[str, JobVerdict],
    raised: BaseException | None,
) -> LoadVerdict:
    """The verdict of a load that ended now, with the outcomes that are received; see `decide`."""
    now = datetime.now(UTC)
    decision = decide(load, decoded, job_verdicts, raised, event, now)
    events = outcomes(app, event, load, decoded, decision, now)
    return msgspec.structs.replace(decision.verdict, outcomes=tuple(events))


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
    event: AnyDestinationEvent,
    now: datetime,
) -> Decision:
    """The verdict of a load.

    `job_verdicts` is what the function decided, by the job's key; `raised` is what it raised. The
    load has succeeded with every job that the function did not name, or failed with them if it
    raised. A job that fails at its last attempt is discarded, with one exception: when a load of
    several jobs raises, its undecided jobs are not discarded, because one of them may be the cause
    of the error. Each runs once by itself first.
    """
    if load.discard_reason is not None:
        return Decision(all_discarded(load))
    if raised is None and not job_verdicts and not decoded.failures:
        return Decision(LoadVerdict())
    several = len(load.rows) > 1
    last = load.attempt >= event.retry.max_attempts
    delay = event.retry_delay(load.attempt, now).total_seconds()
    error_text = "" if raised is None else describe(raised)
    if raised is not None and not job_verdicts and not decoded.failures and (several or not last):
        isolated = several and load.attempt >= event.retry.max_attempts - 1
        return Decision(LoadVerdict(raised=error_text, delay=delay, isolated=isolated))

    deviations: list[Deviation] = []
    exhausted: set[int] = set()
    for row in load.rows:
        undecided = False
        retry_after: timedelta | None = None
        if (failure := decoded.failures.get(row.seq)) is not None:
            result, error = failure
        elif (job_verdict := job_verdicts.get(load.key_of(row.id))) is not None:
            result, error = job_verdict.result, clean(job_verdict.reason)
            retry_after = job_verdict.retry_after
        elif raised is None:
            continue
        else:
            undecided, result, error = True, JobResult.FAILED, error_text
        if result is JobResult.FAILED and last and not (undecided and several):
            result = JobResult.DISCARDED
            exhausted.add(row.seq)
        if result is JobResult.FAILED:
            isolated = undecided and several and load.attempt >= event.retry.max_attempts - 1
            job_delay = _job_delay(retry_after, delay)
            deviations.append(Deviation(row.seq, result, error, job_delay, isolated))
        elif result is JobResult.DISCARDED:
            deviations.append(Deviation(row.seq, result, error))
    return Decision(LoadVerdict(deviations), frozenset(exhausted))


def all_discarded(load: Load) -> LoadVerdict:
    """The verdict of a load that was claimed for discard."""
    reason = load.discard_reason or ""
    return LoadVerdict([Deviation(row.seq, JobResult.DISCARDED, reason) for row in load.rows])


def _job_delay(retry_after: timedelta | None, delay: float) -> float:
    """Seconds until a failed job is due: its verdict's `retry_after`, else `delay`.

    Rounded up to tenths, and from one second on to whole seconds: jobs that are due together run
    together.
    """
    if retry_after is None:
        return delay
    seconds = min(retry_after.total_seconds(), _LONGEST_DELAY)
    return float(math.ceil(seconds)) if seconds >= 1 else math.ceil(seconds * 10) / 10


# ------------------------------------------------------------------------------------- outcomes


def outcomes(
    app: Blacksmith,
    event: AnyDestinationEvent,
    load: Load,
    decoded: Decoded,
    decision: Decision,
    now: datetime,
) -> list[NewEvent]:
    """The outcomes of a load's jobs, as events, where a destination event receives them.

    Each failed attempt is a `.failed`, also the last one, which a `.discarded` follows. A flow's
    `when` is called with the data that the original job had. If there is no such data (the transform
    raised, or users' code must not run, as it may have killed an earlier load), or if `when` raises,
    the job is created and fails once with that error: a bug drops nothing.
    """
    receivers = {outcome: app.receivers.get(outcome.path, ()) for outcome in event.outcomes}
    if not any(receivers.values()):
        return []
    originals = {job.key: job for job in decoded.jobs}
    # A lost attempt has no number of its own, but the job was tried. A job to be discarded that had
    # lost loads is claimed as one attempt more; a job discarded by hand without them, as the last.
    discarded_as_lost = load.discard_reason is not None and load.lost_loads > 0
    attempts = load.attempt + load.lost_loads - discarded_as_lost
    events: list[NewEvent] = []
    for row, outcome, error in _job_outcomes(event, load, decision):
        original = originals.get(load.key_of(row.id))
        if jobs := _outcome_jobs(receivers[outcome], row, original, error):
            cause = Cause(outcome.name, error, attempts, load.id, now)
            payload = msgspec.json.encode(cause).decode()
            events.append(NewEvent(outcome.path, payload, jobs, parent=row.id))
    return events


def _job_outcomes(
    event: AnyDestinationEvent, load: Load, decision: Decision
) -> Iterator[tuple[JobRow, Outcome[Any], str | None]]:
    verdict = decision.verdict
    deviations = {deviation.seq: deviation for deviation in verdict.deviations}
    for row in load.rows:
        if verdict.raised is not None:
            yield row, event.failed, verdict.raised
        elif (deviation := deviations.get(row.seq)) is None:
            yield row, event.succeeded, None
        elif deviation.delay is not None:
            yield row, event.failed, deviation.error
        else:
            if row.seq in decision.exhausted:
                yield row, event.failed, deviation.error
            yield row, event.discarded, deviation.error


def _outcome_jobs(
    receivers: Sequence[tuple[AnyDestinationEvent, Flow[Any]]],
    row: JobRow,
    original: Job[Any] | None,
    error: str | None,
) -> list[NewJob]:
    """The jobs of one outcome, one for each receiver that wants it."""
    jobs: list[NewJob] = []
    outcome: Event[Any] | None = None
    for receiver, flow in receivers:
        if flow.when is None:
            jobs.append(NewJob(receiver.path))
            continue
        if original is None:
            skipped = f"`when` was skipped, as the job's data is not available: {error}"
            jobs.append(NewJob(receiver.path, skipped))
            continue
        if outcome is None:
            outcome = msgspec.structs.replace(
                original.event, data=original.data, id=None, received_at=None, parent=row.id
            )
        try:
            wanted = flow.when(outcome)
        except Exception as raised:  # noqa: BLE001 - users' code
            jobs.append(NewJob(receiver.path, describe(raised)))
        else:
            if wanted:
                jobs.append(NewJob(receiver.path))
    return jobs


# ------------------------------------------------------------------------------------- the report


def load_report(load: Load, verdict: LoadVerdict, seconds: float) -> LoadReport:
    """The report of a recorded load. `seconds`: how long its function took."""
    received = {row.seq: row.received_at for row in load.rows} if verdict.deviations else {}
    failed, discarded = (
        _per_day([received[job.seq] for job in verdict.deviations if job.result is result])
        for result in (JobResult.FAILED, JobResult.DISCARDED)
    )
    jobs_by_day = _per_day([row.received_at for row in load.rows])
    error = verdict.deviations[0].error if verdict.deviations else None
    if verdict.raised is not None:
        failed, error = jobs_by_day, verdict.raised
    days = {
        day: Tally(jobs - failed[day] - discarded[day], failed[day], discarded[day])
        for day, jobs in jobs_by_day.items()
    }
    receivers = {job.destination for outcome in verdict.outcomes for job in outcome.jobs}
    return LoadReport(load.id, days, seconds, load.attempt, error, receivers)


def _per_day(times: Sequence[datetime]) -> Counter[date]:
    if times and (day := _day(min(times))) == _day(max(times)):
        return Counter({day: len(times)})  # most loads have one day: no need to look at each time
    return Counter(map(_day, times))


def _day(time: datetime) -> date:
    return time.astimezone(UTC).date()
