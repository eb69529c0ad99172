"""Warm runs: jobs whose runs stay alive to load or to listen, and when such a run ends.

`warm_run_sensor.py` has the sensor that keeps a warm run alive.
"""

# Dagster reads the annotation of `context` as it stands: no `from __future__ import annotations`.

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from dagster import (
    DagsterRunStatus,
    JobDefinition,
    OpExecutionContext,
    RunsFilter,
    op,
)

from blacksmith_dagster.composition import Loop, running
from blacksmith_dagster.errors import DeclarationError, Unavailable
from blacksmith_dagster.orchestration.jobs import in_process_job
from blacksmith_dagster.orchestration.resource import BlacksmithResource
from blacksmith_dagster.pipeline.validation import Duration, duration, seconds
from blacksmith_dagster.redaction import describe
from blacksmith_dagster.signals import on_stop
from blacksmith_dagster.supervisor import Supervisor

# A run with this tag ends soon, and the sensor launches its successor.
ENDING_TAG = "blacksmith/ending"

_LOOK_SECONDS = 1.0
_REPORT_SECONDS = 60.0
# A run waits for locks this much longer than a predecessor takes to end after its announcement.
_PATIENCE_SECONDS = 30.0
# Time to end: to record, report and check what is left.
_END_SECONDS = 60.0
# This long after its start a run waits for locks, ready to take over.
_READY_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class WarmRuns:
    """How long a warm run lives. A duration is a `timedelta`, or text: `"90s"`, `"1h30m"`.

    - `idle`: a run that loads ends when nothing was loaded for this long; the next event is loaded
      when another run has started. A run that listens is never idle.
    - `age`: a run ends at this age and another takes over, with new code if there is some.
    - `notice`: this long before that a run announces its end, so that the next can start. If the next
      is late, the run waits for it, at most for `age` once more.

    >>> WarmRuns(age="1h").idle
    '10m'
    """

    idle: Duration = "10m"
    age: Duration = "15m"
    notice: Duration = "60s"

    def __post_init__(self) -> None:
        for name in ("idle", "age", "notice"):
            duration(f"WarmRuns: {name}", getattr(self, name))
        if seconds(self.age) <= seconds(self.notice):
            raise DeclarationError(
                f"WarmRuns(age={self.age!r}, notice={self.notice!r}): a run announces its end "
                "before it comes; write a longer age="
            )


class WarmRunState(NamedTuple):
    """What decides whether a warm run ends. Times are in seconds.

    - `idle`: since its last load.
    - `lockless`: since it last held a lock of its events.
    - `stopped`: whether a signal or a user stopped it.
    - `failure`: why it no longer serves one of its events; `over`: whether it serves none of them.
    """

    age: float
    idle: float = 0.0
    lockless: float = 0.0
    stopped: bool = False
    failure: str | None = None
    over: bool = False


class Ending(NamedTuple):
    """Why a run ends.

    The run ends at once or, if it is to be `followed`, once its successor has started and `notice`
    seconds have passed.
    """

    reason: str
    followed: bool = False
    notice: float = 0.0


def ending(state: WarmRunState, warm: WarmRuns) -> Ending | None:
    """Why a warm run must end, or `None` if it may stay.

    >>> ending(WarmRunState(age=100, idle=601), WarmRuns())
    Ending(reason='idle for 10m', followed=False, notice=0.0)
    >>> ending(WarmRunState(age=850), WarmRuns())
    Ending(reason='15m old, and another takes over', followed=True, notice=50.0)
    """
    if state.stopped:
        return Ending("asked to stop")
    if state.failure:
        return Ending(state.failure, not state.over, 0.0 if state.over else seconds(warm.notice))
    patience = seconds(warm.notice) + _PATIENCE_SECONDS
    if state.lockless >= patience:
        return Ending(f"it has held none of its locks for {patience:g} s")
    if not state.lockless and state.idle >= seconds(warm.idle):
        return Ending(f"idle for {warm.idle}")
    left = seconds(warm.age) - state.age
    if left <= seconds(warm.notice):
        return Ending(f"{warm.age} old, and another takes over", True, max(left, 0.0))
    return None


class Serving(NamedTuple):
    """What a warm run does.

    - `loop`: loads or listens.
    - `report`: reports what was done since the last report; called in the run's own thread.
    - `conclude`: called at the end with the reason, and whether a signal stopped the run.
    - `idle`: seconds since the last load.
    """

    loop: Loop
    report: Callable[[], None]
    conclude: Callable[[str, bool], None]
    idle: Callable[[], float] = lambda: 0.0


def build_warm_job(
    prefix: str,
    served: str,
    description: str,
    locks: Sequence[str],
    serve: Callable[[OpExecutionContext, BlacksmithResource], Serving],
    warm: WarmRuns,
    longest_load: float = 0.0,
) -> JobDefinition:
    """The job `<prefix>_<served>`, whose runs have the tag `blacksmith/<prefix>`.

    `dagster.yaml` may limit the runs of each value of that tag to two: one run and its successor.

    - `served`: the name of the source or the destination, and the value of the tag.
    - `locks`: the keys of its events' locks.
    - `serve`: called when a run starts.
    - `longest_load`: seconds that a run may need to finish what it is loading.
    """

    # A plain function: at every `next()` of a generator Dagster installs its own signal handlers.
    @op(name=f"{prefix}__{served}", description=description)
    def stay(context: OpExecutionContext, blacksmith: BlacksmithResource) -> None:
        serving, stop = serve(context, blacksmith), threading.Event()
        with on_stop(stop.set), running([serving.loop], blacksmith.backends, [served]):
            try:
                reason = _watch(context, serving, warm, stop)
                reason += _other_holders(blacksmith.supervisor, locks, context.run_id)
            finally:
                serving.loop.stop()
                serving.report()
            context.log.info(f"this run ends: {reason}")
            serving.conclude(reason, stop.is_set())
        if serving.loop.failure is not None:
            raise serving.loop.failure

    max_runtime = 2 * seconds(warm.age) + seconds(warm.notice) + longest_load + _END_SECONDS
    return in_process_job(
        f"{prefix}_{served}",
        f"{description} Its run stays alive; {prefix}_{served}_sensor launches it.",
        stay,
        tags={f"blacksmith/{prefix}": served, "dagster/max_runtime": f"{max_runtime:.0f}"},
    )


def _watch(op: OpExecutionContext, serving: Serving, warm: WarmRuns, stop: threading.Event) -> str:
    """Report until the run must end; returns the reason."""
    started_at = locked_at = reported_at = time.monotonic()
    announced: Ending | None = None
    ends_at = float("inf")
    loop = serving.loop
    while True:
        stop.wait(_LOOK_SECONDS)
        if time.monotonic() - reported_at >= _REPORT_SECONDS:
            reported_at = time.monotonic()
            serving.report()
        now = time.monotonic()
        if loop.holds_locks:
            locked_at = now
        failure = loop.failure
        state = WarmRunState(
            now - started_at,
            serving.idle(),
            now - locked_at,
            stop.is_set(),
            None if failure is None else describe(failure),
            loop.is_over,
        )
        end = ending(state, warm)
        if end and not end.followed:
            return end.reason
        if end and announced is None:
            announced, ends_at = end, now + end.notice
            _announce(op, end)
        if (
            announced
            and now >= ends_at
            and (_is_followed(op) or now >= ends_at + seconds(warm.age))
        ):
            return announced.reason


def _other_holders(supervisor: Supervisor, locks: Sequence[str], run_id: str) -> str:
    """The other holders of these locks, in parentheses; empty if there are none."""
    try:
        statuses = [supervisor.status(key) for key in locks]
    except Unavailable:
        return ""
    others = [
        f"{status.key} is held by {status.holder}"
        for status in statuses
        if status.held and status.holder != run_id
    ]
    return f" ({', '.join(others)})" if others else ""


def _announce(op: OpExecutionContext, end: Ending) -> None:
    try:
        op.instance.add_run_tags(op.run_id, {ENDING_TAG: "true"})
    except Exception as error:  # noqa: BLE001 - Dagster's database; the next run starts after the end
        op.log.warning(f"the end of this run is not announced: {error}")
    op.log.info(f"this run ends in {end.notice:.0f} s: {end.reason}")


def _is_followed(op: OpExecutionContext) -> bool:
    """Whether a later warm run waits for the locks; it may have announced its own end already."""
    under_way = RunsFilter(job_name=op.job_name, statuses=[DagsterRunStatus.STARTED])
    own = op.instance.get_run_record_by_id(op.run_id)
    return any(
        own is not None
        and record.create_timestamp > own.create_timestamp
        and record.start_time is not None
        and time.time() - record.start_time >= _READY_SECONDS
        for record in op.instance.get_run_records(under_way)
    )
