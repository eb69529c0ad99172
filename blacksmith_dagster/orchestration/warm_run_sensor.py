"""What keeps one warm run alive, and two while one takes over."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import msgspec
from dagster import (
    DagsterInstance,
    DagsterRunStatus,
    RunRecord,
    RunRequest,
    RunsFilter,
    SensorEvaluationContext,
    SensorResult,
)

from blacksmith_dagster.orchestration.schedules import ACTIVE, FINAL, UNDER_WAY, fail_gone
from blacksmith_dagster.orchestration.warm_runs import ENDING_TAG
from blacksmith_dagster.supervisor import Supervisor

LOOK_SECONDS = 5  # Dagster can't more often

# A run under way that holds no lock takes one within moments; one that is not under way takes as
# long to start as Dagster grants by default.
_GONE_SECONDS = 15.0
_START_SECONDS = 180.0
_PAUSE = timedelta(seconds=30)

Holders = Mapping[str, str | None]
"""Who holds the lock of each event, by its path; `None` if nobody does."""


class WarmRun(NamedTuple):
    """An active warm run. `age`: seconds since its status changed; `ending`: it has announced its
    end; `lockless`: for how many seconds it has done without locks that it could have."""

    id: str
    status: DagsterRunStatus
    age: float
    ending: bool = False
    lockless: float = 0.0


def could_lock(run: str, active: Sequence[str], holders: Collection[str | None]) -> bool:
    """Whether a run holds none of the locks, though nobody does or only younger runs do.

    `active` are the runs' ids, oldest first; `holders` who holds each of the locks, `None` if free.

    >>> could_lock("old", ["old", "new"], ["new"]), could_lock("new", ["old", "new"], ["old"])
    (True, False)
    """
    younger = active[active.index(run) + 1 :]
    return run not in holders and all(holder is None or holder in younger for holder in holders)


def is_gone(run: WarmRun) -> bool:
    """Whether the process of an active run is gone.

    Dagster's default launcher does not notice when the machine goes down with its runs, nor when one
    is killed: they stay 'started' for ever. The locks are the truth.
    """
    if run.status is DagsterRunStatus.QUEUED:
        return False
    if run.status in UNDER_WAY:
        return run.lockless >= _GONE_SECONDS
    return run.age >= _START_SECONDS


def why_no_launch(runs: Sequence[WarmRun]) -> str | None:
    """Why the active runs, oldest first, leave no room for another, or `None` if they do.

    >>> run = WarmRun("a1b2", DagsterRunStatus.STARTED, age=60)
    >>> why_no_launch([]), why_no_launch([run]), why_no_launch([run._replace(ending=True)])
    (None, 'run a1b2 is under way', None)
    """
    if not runs or (len(runs) == 1 and runs[0].ending):
        return None
    last = runs[-1]
    if last.status not in UNDER_WAY:
        return f"run {last.id} is {last.status.value.lower()}"
    if len(runs) > 1:
        return f"run {last.id} follows run {runs[0].id}"
    return f"run {last.id} is under way"


def why_pause(newest: Sequence[RunRecord], now: datetime) -> str | None:
    """Why to wait with another run after the `newest` two, or `None`: what fails at its start is not
    tried in a circle."""
    short = [
        run.dagster_run.status is DagsterRunStatus.FAILURE
        and run.update_timestamp - run.create_timestamp < _PAUSE
        for run in newest
    ]
    if short != [True, True]:
        return None
    left = (newest[0].update_timestamp + _PAUSE - now).total_seconds()
    if left <= 0:
        return None
    return (
        f"run {newest[0].dagster_run.run_id} has failed soon after its start, as the one before; "
        f"another is launched in {left:.0f} s"
    )


def look(
    context: SensorEvaluationContext,
    supervisor: Supervisor,
    name: str,
    locks: Mapping[str, str],
    why_not: Callable[[Holders], str | None],
) -> SensorResult:
    """Launch a run of the job `name` unless there is one, or one is about to start.

    `locks` are the keys of its events' locks, by their paths; `why_not` says why no run is needed,
    asked when none is active.
    """
    now = datetime.now(UTC)
    # First: two daemons that decide the same at once name the same run here, and make one.
    newest = context.instance.get_run_records(RunsFilter(job_name=name), limit=2)
    holders = {path: _holder(supervisor, key) for path, key in locks.items()}
    runs, cursor = _active(
        context.instance, name, holders.values(), _WarmSensorCursor.read(context.cursor), now
    )
    reason = why_no_launch(runs) or why_pause(newest, now)
    if not runs and not reason:
        reason = why_not(_without_ended(context.instance, holders))
    if reason:
        return SensorResult(skip_reason=reason, cursor=cursor.write())
    key = f"after-{newest[0].dagster_run.run_id if newest else 'none'}"
    return SensorResult(run_requests=[RunRequest(run_key=key)], cursor=cursor.write())


def _active(
    instance: DagsterInstance,
    name: str,
    holders: Collection[str | None],
    cursor: _WarmSensorCursor,
    now: datetime,
) -> tuple[Sequence[WarmRun], _WarmSensorCursor]:
    """The active runs, oldest first; those whose process is gone are marked as failed."""
    records = instance.get_run_records(RunsFilter(job_name=name, statuses=ACTIVE), ascending=True)
    active = [record.dagster_run.run_id for record in records]
    lockless = [
        record.dagster_run.run_id
        for record in records
        if record.dagster_run.status in UNDER_WAY
        and could_lock(record.dagster_run.run_id, active, holders)
    ]
    cursor = _WarmSensorCursor(
        {each: cursor.lockless.get(each, now.timestamp()) for each in lockless}
    )
    runs = []
    for record in records:
        run = WarmRun(
            record.dagster_run.run_id,
            record.dagster_run.status,
            (now - record.update_timestamp).total_seconds(),
            ENDING_TAG in record.dagster_run.tags,
            now.timestamp() - cursor.lockless.get(record.dagster_run.run_id, now.timestamp()),
        )
        if is_gone(run):
            fail_gone(instance, run.id)
        else:
            runs.append(run)
    return runs, cursor


class _WarmSensorCursor(msgspec.Struct, frozen=True):
    """Since when (seconds since 1970) runs are seen without a lock that they could have."""

    lockless: Mapping[str, float] = {}

    @classmethod
    def read(cls, text: str | None) -> _WarmSensorCursor:
        return msgspec.json.decode(text, type=cls) if text else cls()

    def write(self) -> str:
        return msgspec.json.encode(self).decode()


def _without_ended(instance: DagsterInstance, holders: Holders) -> Holders:
    """The holders, `None` for runs that have ended: a killed one's locks are free within moments."""
    asked = {holder for holder in holders.values() if holder}
    if not asked:
        return holders
    found = instance.get_runs(RunsFilter(run_ids=list(asked), statuses=list(FINAL)))
    ended = {run.run_id for run in found}
    return {path: None if holder in ended else holder for path, holder in holders.items()}


def _holder(supervisor: Supervisor, key: str) -> str | None:
    status = supervisor.status(key)
    return (status.holder or "another process") if status.held else None
