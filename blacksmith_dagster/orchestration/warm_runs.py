"""Warm runs: they stay, to load or to listen, until another goes on; when they end, and why."""

# Dagster reads the annotation of `context` as it stands: no `from __future__ import annotations`.

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from dagster import (
    DagsterRunStatus,
    JobDefinition,
    OpExecutionContext,
    RunsFilter,
    in_process_executor,
    job,
    op,
)

from blacksmith_dagster.errors import DeclarationError, Unavailable
from blacksmith_dagster.orchestration.resource import BlacksmithResource
from blacksmith_dagster.pipeline.validation import duration
from blacksmith_dagster.redaction import describe
from blacksmith_dagster.supervisor import Supervisor

# A run that has it will end soon, and another is to be launched.
ENDING_TAG = "blacksmith/ending"

_LOOK_SECONDS = 1.0
# How much longer than an announced end a run waits for locks.
_PATIENCE_SECONDS = 30.0
# Ending takes its time: what is left is recorded, reported and checked.
_END_SECONDS = 60.0
# So long after its start a run waits for locks, ready to go on.
_READY_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class WarmRuns:
    """How long a warm run lives. Durations are written as in `"90s"` or `"1h30m"`.

    - `idle`: one that loads ends when nothing was loaded for so long; the next event is loaded when
      another has started. One that listens is never idle.
    - `age`: it ends when it is so old, and another goes on: with new code, if there is some.
    - `notice`: so long before that it announces its end, for the next to start meanwhile. If the
      next is late it is waited for, for `age` once more at most.

    >>> WarmRuns(age="1h").idle
    '10m'
    """

    idle: str = "10m"
    age: str = "15m"
    notice: str = "60s"

    def __post_init__(self) -> None:
        if self.idle_seconds <= 0 or self.age_seconds <= self.notice_seconds:
            raise DeclarationError(
                f"WarmRuns(age={self.age!r}, notice={self.notice!r}): a run announces its end "
                "before it comes; write a longer age="
            )

    @property
    def idle_seconds(self) -> float:
        """`idle` in seconds."""
        return duration("WarmRuns(idle=)", self.idle).total_seconds()

    @property
    def age_seconds(self) -> float:
        """`age` in seconds."""
        return duration("WarmRuns(age=)", self.age).total_seconds()

    @property
    def notice_seconds(self) -> float:
        """`notice` in seconds."""
        return duration("WarmRuns(notice=)", self.notice).total_seconds()


class WarmRunState(NamedTuple):
    """A warm run as it stands. Times are in seconds.

    - `idle`: since its last load, `lockless`: since it last held a lock of its events.
    - `stopped`: whether it was asked to end; `failure`: why it is done with one of its events,
      `over`: whether it is with all.
    """

    age: float
    idle: float = 0.0
    lockless: float = 0.0
    stopped: bool = False
    failure: str | None = None
    over: bool = False


class Ending(NamedTuple):
    """Why a run ends.

    At once, or, if it is to be `followed`, when another has started, and not before `notice` seconds
    have passed.
    """

    why: str
    followed: bool = False
    notice: float = 0.0


def ending(state: WarmRunState, warm: WarmRuns) -> Ending | None:
    """Why a warm run must end, or `None` if it may stay.

    >>> ending(WarmRunState(age=100, idle=601), WarmRuns())
    Ending(why='idle for 10m', followed=False, notice=0.0)
    >>> ending(WarmRunState(age=850), WarmRuns())
    Ending(why='15m old, and another goes on', followed=True, notice=50.0)
    """
    if state.stopped:
        return Ending("asked to stop")
    if state.failure:
        return Ending(state.failure, not state.over, 0.0 if state.over else warm.notice_seconds)
    patience = warm.notice_seconds + _PATIENCE_SECONDS
    if state.lockless >= patience:
        return Ending(f"it has held none of its locks for {patience:g} s")
    if not state.lockless and state.idle >= warm.idle_seconds:
        return Ending(f"idle for {warm.idle}")
    left = warm.age_seconds - state.age
    if left <= warm.notice_seconds:
        return Ending(f"{warm.age} old, and another goes on", True, max(left, 0.0))
    return None


def build_warm_job(
    kind: str,
    of: str,
    does: str,
    stay: Callable[[OpExecutionContext, BlacksmithResource], None],
    warm: WarmRuns,
    longest: float = 0.0,
) -> JobDefinition:
    """The job `<kind>_<of>`, whose runs `stay`, with the tag `blacksmith/<kind>: <of>`.

    `dagster.yaml` may limit the runs of each such tag to two: one that stays, one that follows it.
    `does` says what they do; `longest` is how many seconds they may take to come to an end.
    """

    # A plain function: in a generator Dagster takes the signal handlers back at every `next()`.
    @op(name=f"{kind}__{of}", description=does)
    def staying(context: OpExecutionContext, blacksmith: BlacksmithResource) -> None:
        stay(context, blacksmith)

    backstop = 2 * warm.age_seconds + warm.notice_seconds + longest + _END_SECONDS

    @job(
        name=f"{kind}_{of}",
        description=f"Stays. {does} The sensor {kind}_{of}_sensor launches it.",
        executor_def=in_process_executor,
        tags={f"blacksmith/{kind}": of, "dagster/max_runtime": f"{backstop:.0f}"},
    )
    def warm_job() -> None:
        staying()

    return warm_job


class Loop(Protocol):
    """What goes on in a warm run, in threads of its own."""

    @property
    def failure(self) -> BaseException | None:
        """Why it is done with one of its events, if it is."""
        ...

    @property
    def is_over(self) -> bool:
        """Whether it is done with all of them."""
        ...

    @property
    def holds_locks(self) -> bool:
        """Whether it holds the lock of any of them."""
        ...


def watch(
    op: OpExecutionContext,
    loop: Loop,
    warm: WarmRuns,
    stop: threading.Event,
    report: Callable[[], None],
    idle: Callable[[], float] = lambda: 0.0,
) -> str:
    """Wait until the run is to end, and call `report` meanwhile, every second; returns why it does."""
    began = held = time.monotonic()
    chosen: Ending | None = None
    ends = float("inf")
    while True:
        stop.wait(_LOOK_SECONDS)
        report()
        now = time.monotonic()
        if loop.holds_locks:
            held = now
        failure = loop.failure
        state = WarmRunState(
            now - began,
            idle(),
            now - held,
            stop.is_set(),
            None if failure is None else describe(failure),
            loop.is_over,
        )
        found = ending(state, warm)
        if found and not found.followed:
            return found.why
        if found and chosen is None:
            chosen, ends = found, now + found.notice
            _announce(op, found)
        if chosen and now >= ends and (_is_followed(op) or now >= ends + warm.age_seconds):
            return chosen.why


def elsewhere(supervisor: Supervisor, locks: Sequence[str], run_id: str) -> str:
    """Who else holds one of these locks, in brackets; nothing if nobody does."""
    try:
        held = [supervisor.status(key) for key in locks]
    except Unavailable:
        return ""
    others = [
        f"{status.key} is held by {status.holder}"
        for status in held
        if status.held and status.holder != run_id
    ]
    return f" ({', '.join(others)})" if others else ""


def _announce(op: OpExecutionContext, found: Ending) -> None:
    try:
        op.instance.add_run_tags(op.run_id, {ENDING_TAG: "true"})
    except Exception as error:  # noqa: BLE001 - Dagster's database; the next run starts after the end
        op.log.warning(f"the end of this run is not announced: {error}")
    op.log.info(f"this run ends in {found.notice:.0f} s: {found.why}")


def _is_followed(op: OpExecutionContext) -> bool:
    """Whether a later warm run waits for the locks; it may have announced its own end already."""
    under_way = RunsFilter(job_name=op.job_name, statuses=[DagsterRunStatus.STARTED])
    own = op.instance.get_run_record_by_id(op.run_id)
    return any(
        own is not None
        and each.create_timestamp > own.create_timestamp
        and each.start_time is not None
        and time.time() - each.start_time >= _READY_SECONDS
        for each in op.instance.get_run_records(under_way)
    )
