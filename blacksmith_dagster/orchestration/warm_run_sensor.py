"""The sensor that keeps a warm run alive, and two while one takes over from the other."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import msgspec
from dagster import (
    DagsterInstance,
    DagsterRunStatus,
    DefaultSensorStatus,
    JobDefinition,
    RunRecord,
    RunRequest,
    RunsFilter,
    SensorDefinition,
    SensorEvaluationContext,
    SensorResult,
    SkipReason,
    sensor,
)

from blacksmith_dagster.orchestration.resource import BlacksmithResource
from blacksmith_dagster.orchestration.schedules import ACTIVE, FINAL, UNDER_WAY, fail_gone
from blacksmith_dagster.orchestration.warm_runs import ENDING_TAG
from blacksmith_dagster.supervisor import Supervisor

_LOOK_SECONDS = 5  # Dagster can't look more often
# A run under way that holds no lock acquires one within seconds. A run that is not yet under way may
# take as long to start as Dagster allows by default.
_GONE_SECONDS = 15.0
_START_SECONDS = 180.0
_PAUSE = timedelta(seconds=30)

Holders = Mapping[str, str | None]
"""The holder of each event's lock, by the event's path; `None` if the lock is free."""


class WarmRun(NamedTuple):
    """An active warm run.

    - `age`: seconds since its status changed.
    - `ending`: whether it has announced its end.
    - `lockless`: for how many seconds it has held no lock although it could have.
    """

    id: str
    status: DagsterRunStatus
    age: float
    ending: bool = False
    lockless: float = 0.0


def could_lock(run: str, active: Sequence[str], holders: Collection[str | None]) -> bool:
    """Whether a run holds none of the locks although each is free or held by a younger run.

    `active`: the runs' ids, oldest first. `holders`: the holder of each lock, `None` if it is free.

    >>> could_lock("old", ["old", "new"], ["new"]), could_lock("new", ["old", "new"], ["old"])
    (True, False)
    """
    younger = active[active.index(run) + 1 :]
    return run not in holders and all(holder is None or holder in younger for holder in holders)


def is_gone(run: WarmRun) -> bool:
    """Whether the process of an active run is gone.

    Dagster's default launcher does not notice when the machine goes down with its runs, nor when a
    run is killed: they stay 'started' forever. Only the locks are reliable.
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
    """Why to wait before the next launch: both of the `newest` runs failed soon after their start."""
    failed_early = [
        run.dagster_run.status is DagsterRunStatus.FAILURE
        and run.update_timestamp - run.create_timestamp < _PAUSE
        for run in newest
    ]
    if failed_early != [True, True]:
        return None
    left = (newest[0].update_timestamp + _PAUSE - now).total_seconds()
    if left <= 0:
        return None
    return (
        f"run {newest[0].dagster_run.run_id} failed soon after its start, as did the one before; "
        f"another is launched in {left:.0f} s"
    )


def build_warm_run_sensor(
    target: JobDefinition,
    description: str,
    locks: Mapping[str, str],
    why_not_configured: Callable[[BlacksmithResource], str | None],
    why_no_run: Callable[[BlacksmithResource, Holders], str | None],
) -> SensorDefinition:
    """The sensor that launches a run of a warm job unless one is active or about to start.

    - `locks`: the keys of the events' locks, by the events' paths.
    - `why_not_configured`: what is missing to run at all.
    - `why_no_run`: why no run is needed; asked when none is active.
    """

    @sensor(
        name=f"{target.name}_sensor",
        job=target,
        description=description,
        minimum_interval_seconds=_LOOK_SECONDS,
        default_status=DefaultSensorStatus.RUNNING,
    )
    def launch(
        context: SensorEvaluationContext, blacksmith: BlacksmithResource
    ) -> SensorResult | SkipReason:
        reason = why_not_configured(blacksmith)
        if reason:
            return SkipReason(reason)
        instance, now = context.instance, datetime.now(UTC)
        # Read this first: two daemons that decide at the same time then build the same run key, and
        # launch only one run.
        newest = instance.get_run_records(RunsFilter(job_name=target.name), limit=2)
        holders = {path: _holder(blacksmith.supervisor, key) for path, key in locks.items()}
        cursor = _WarmSensorCursor.read(context.cursor)
        runs, cursor = _active_runs(instance, target.name, holders.values(), cursor, now)
        reason = why_no_launch(runs) or why_pause(newest, now)
        if not runs and not reason:
            reason = why_no_run(blacksmith, _without_ended(instance, holders))
        if reason:
            return SensorResult(skip_reason=reason, cursor=cursor.write())
        run_key = f"after-{newest[0].dagster_run.run_id if newest else 'none'}"
        return SensorResult(run_requests=[RunRequest(run_key=run_key)], cursor=cursor.write())

    return launch


class _WarmSensorCursor(msgspec.Struct, frozen=True):
    """Since when (seconds since 1970) each run has held no lock although it could have."""

    lockless: Mapping[str, float] = {}

    @classmethod
    def read(cls, text: str | None) -> _WarmSensorCursor:
        return msgspec.json.decode(text, type=cls) if text else cls()

    def write(self) -> str:
        return msgspec.json.encode(self).decode()


def _active_runs(
    instance: DagsterInstance,
    job: str,
    holders: Collection[str | None],
    cursor: _WarmSensorCursor,
    now: datetime,
) -> tuple[Sequence[WarmRun], _WarmSensorCursor]:
    """The active runs, oldest first. Runs whose process is gone are marked as failed."""
    records = instance.get_run_records(RunsFilter(job_name=job, statuses=ACTIVE), ascending=True)
    active = [record.dagster_run.run_id for record in records]
    lockless = {
        run.run_id: cursor.lockless.get(run.run_id, now.timestamp())
        for run in (record.dagster_run for record in records)
        if run.status in UNDER_WAY and could_lock(run.run_id, active, holders)
    }
    runs = []
    for record in records:
        run_id = record.dagster_run.run_id
        run = WarmRun(
            run_id,
            record.dagster_run.status,
            (now - record.update_timestamp).total_seconds(),
            ENDING_TAG in record.dagster_run.tags,
            now.timestamp() - lockless.get(run_id, now.timestamp()),
        )
        if is_gone(run):
            fail_gone(instance, run_id)
        else:
            runs.append(run)
    return runs, _WarmSensorCursor(lockless)


def _without_ended(instance: DagsterInstance, holders: Holders) -> Holders:
    """The holders, `None` for runs that have ended: the locks of a killed run are free soon."""
    run_ids = list({holder for holder in holders.values() if holder})
    if not run_ids:
        return holders
    runs = instance.get_runs(RunsFilter(run_ids=run_ids, statuses=list(FINAL)))
    ended = {run.run_id for run in runs}
    return {path: None if holder in ended else holder for path, holder in holders.items()}


def _holder(supervisor: Supervisor, key: str) -> str | None:
    status = supervisor.status(key)
    return (status.holder or "another process") if status.held else None
