"""The sensor that keeps one warm run alive per destination, and two while one takes over."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

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

from blacksmith_dagster.orchestration.realtime import ENDING_TAG, WarmRuns, job_name
from blacksmith_dagster.orchestration.resource import BlacksmithResource
from blacksmith_dagster.orchestration.schedules import ACTIVE, FINAL, UNDER_WAY, fail_gone, why_not
from blacksmith_dagster.pipeline.application import Blacksmith
from blacksmith_dagster.pipeline.destination import Destination
from blacksmith_dagster.scheduler import realtime_events
from blacksmith_dagster.supervisor import Supervisor

_LOOK_SECONDS = 5  # Dagster can't more often
# A run under way that holds no lock takes one within moments; one that is not under way takes as
# long to start as Dagster grants by default.
_GONE_SECONDS = 15.0
_START_SECONDS = 180.0
_PAUSE = timedelta(seconds=30)


class Run(NamedTuple):
    """An active warm run. `age`: seconds since its status changed; `ending`: it has announced its
    end; `lockless`: for how many seconds it has done without locks that it could have."""

    id: str
    status: DagsterRunStatus
    age: float
    ending: bool = False
    lockless: float = 0.0


def could_lock(run: str, active: Sequence[str], owners: Collection[str | None]) -> bool:
    """Whether a run holds none of the locks, though nobody does or only younger runs do.

    `active` are the runs' ids, oldest first; `owners` who holds each of the locks, `None` if free.

    >>> could_lock("old", ["old", "new"], ["new"]), could_lock("new", ["old", "new"], ["old"])
    (True, False)
    """
    younger = active[active.index(run) + 1 :]
    return run not in owners and all(owner is None or owner in younger for owner in owners)


def is_gone(run: Run) -> bool:
    """Whether the process of an active run is gone.

    Dagster's default launcher does not notice when the machine goes down with its runs, nor when one
    is killed: they stay 'started' for ever. The locks are the truth.
    """
    if run.status is DagsterRunStatus.QUEUED:
        return False
    if run.status in UNDER_WAY:
        return run.lockless >= _GONE_SECONDS
    return run.age >= _START_SECONDS


def why_no_launch(runs: Sequence[Run]) -> str | None:
    """Why the active runs, oldest first, leave no room for another, or `None` if they do.

    >>> run = Run("a1b2", DagsterRunStatus.STARTED, age=60)
    >>> why_no_launch([]), why_no_launch([run]), why_no_launch([run._replace(ending=True)])
    (None, 'run a1b2 loads', None)
    """
    if not runs or (len(runs) == 1 and runs[0].ending):
        return None
    last = runs[-1]
    if last.status not in UNDER_WAY:
        return f"run {last.id} is {last.status.value.lower()}"
    if len(runs) > 1:
        return f"run {last.id} follows run {runs[0].id}"
    return f"run {last.id} loads"


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


def why_idle(
    due: Mapping[str, float | None],
    since_load: float | None,
    owners: Mapping[str, str | None],
    warm: WarmRuns,
) -> str | None:
    """Why no run is needed where none is active, or `None` if one is.

    - `due`: in how many seconds each destination event has something due, `None` if nothing waits.
    - `since_load`: seconds since one of them was loaded, `None` if never.
    - `owners`: who holds each one's lock, `None` if nobody does.
    """
    if all(owners.values()):
        return ", ".join(f"{path} is loaded by {owner}" for path, owner in owners.items())
    if since_load is not None and since_load < warm.idle_seconds:
        return None
    return why_not(due)


def build_realtime_sensor(
    app: Blacksmith, destination: Destination[Any], target: JobDefinition, warm: WarmRuns
) -> SensorDefinition:
    """The sensor `realtime_<destination>_sensor`."""
    paths = [event.path for event in realtime_events(destination)]
    name = job_name(destination)

    @sensor(
        name=f"{name}_sensor",
        job=target,
        description=f"Keeps a run of {name} alive while there is something to load, and for "
        f"{warm.idle} more. Needs BLACKSMITH_PUBSUB_URL; without it the schedules serve.",
        minimum_interval_seconds=_LOOK_SECONDS,
        default_status=DefaultSensorStatus.RUNNING,
    )
    def looked(
        context: SensorEvaluationContext, blacksmith: BlacksmithResource
    ) -> SensorResult | SkipReason:
        if blacksmith.pubsub is None:
            return SkipReason("the schedules serve; set BLACKSMITH_PUBSUB_URL to load at once")
        return _look(context, blacksmith, app, name, paths, warm)

    return looked


def _look(
    context: SensorEvaluationContext,
    blacksmith: BlacksmithResource,
    app: Blacksmith,
    name: str,
    paths: Sequence[str],
    warm: WarmRuns,
) -> SensorResult:
    store, now = blacksmith.store(app), datetime.now(UTC)
    # First: two daemons that decide the same at once name the same run here, and make one.
    newest = context.instance.get_run_records(RunsFilter(job_name=name), limit=2)
    owners = {path: _owner(blacksmith.supervisor, path) for path in paths}
    runs, cursor = _active(
        context.instance, name, owners.values(), _Cursor.read(context.cursor), now
    )
    reason = why_no_launch(runs) or why_pause(newest, now)
    if not runs and not reason:
        due = {path: store.next_due(path) for path in paths}
        alive = _without_ended(context.instance, owners)
        reason = why_idle(due, store.since_load(*paths), alive, warm)
    if reason:
        return SensorResult(skip_reason=reason, cursor=cursor.write())
    key = f"after-{newest[0].dagster_run.run_id if newest else 'none'}"
    return SensorResult(run_requests=[RunRequest(run_key=key)], cursor=cursor.write())


def _active(
    instance: DagsterInstance,
    name: str,
    owners: Collection[str | None],
    cursor: _Cursor,
    now: datetime,
) -> tuple[Sequence[Run], _Cursor]:
    """The active runs, oldest first; those whose process is gone are marked as failed."""
    records = instance.get_run_records(RunsFilter(job_name=name, statuses=ACTIVE), ascending=True)
    active = [record.dagster_run.run_id for record in records]
    lockless = [
        record.dagster_run.run_id
        for record in records
        if record.dagster_run.status in UNDER_WAY
        and could_lock(record.dagster_run.run_id, active, owners)
    ]
    cursor = _Cursor({each: cursor.lockless.get(each, now.timestamp()) for each in lockless})
    runs = []
    for record in records:
        run = Run(
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


class _Cursor(msgspec.Struct, frozen=True):
    """Since when (seconds since 1970) runs are seen without a lock that they could have."""

    lockless: Mapping[str, float] = {}

    @classmethod
    def read(cls, text: str | None) -> _Cursor:
        return msgspec.json.decode(text, type=cls) if text else cls()

    def write(self) -> str:
        return msgspec.json.encode(self).decode()


def _without_ended(
    instance: DagsterInstance, owners: Mapping[str, str | None]
) -> Mapping[str, str | None]:
    """The owners, `None` for runs that have ended: a killed one's locks are free within moments."""
    asked = {owner for owner in owners.values() if owner}
    if not asked:
        return owners
    found = instance.get_runs(RunsFilter(run_ids=list(asked), statuses=list(FINAL)))
    ended = {run.run_id for run in found}
    return {path: None if owner in ended else owner for path, owner in owners.items()}


def _owner(supervisor: Supervisor, path: str) -> str | None:
    status = supervisor.status(f"load/{path}")
    return (status.owner or "another process") if status.held else None
