"""The warm run: it stays, and loads a destination's realtime events as soon as they are there."""

# Dagster reads the annotation of `context` as it stands: no `from __future__ import annotations`.

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

from dagster import (
    AssetKey,
    DagsterRunStatus,
    JobDefinition,
    OpExecutionContext,
    RunsFilter,
    in_process_executor,
    job,
    op,
)

from blacksmith_dagster.errors import DeclarationError, SettingsError, Unavailable, describe
from blacksmith_dagster.orchestration.checks import of_destination
from blacksmith_dagster.orchestration.loads import (
    Progress,
    conclude,
    evaluate,
    links_of,
    told_of,
)
from blacksmith_dagster.orchestration.resource import BlacksmithResource
from blacksmith_dagster.pipeline.application import Blacksmith
from blacksmith_dagster.pipeline.destination import Destination, DestinationEvent
from blacksmith_dagster.pipeline.rules import duration
from blacksmith_dagster.scheduler import LoadReport, Realtime, Summary, Tally, realtime_events
from blacksmith_dagster.signals import on_stop
from blacksmith_dagster.store import Store
from blacksmith_dagster.supervisor import SCHEDULER, Supervisor, registered, this_process

# `dagster.yaml` may limit the runs of each value to two: one that loads, one that follows it.
REALTIME_TAG = "blacksmith/realtime"
# A run that has it will end soon, and another is to be launched.
ENDING_TAG = "blacksmith/ending"

_LOOK_SECONDS = 1.0
_FLUSH_SECONDS = 60.0
# How much longer than an announced end a run waits for locks.
_PATIENCE_SECONDS = 30.0
# Ending takes its time: what is left is recorded, told and checked.
_END_SECONDS = 60.0
# So long after its start a run waits for locks, ready to go on.
_READY_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class WarmRuns:
    """How long a warm run lives. Durations are written as in `"90s"` or `"1h30m"`.

    - `idle`: it ends when nothing was loaded for so long; the next event is loaded when another
      has started.
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


class Seen(NamedTuple):
    """A warm run as it stands. Times are in seconds.

    - `idle`: since its last load, `lockless`: since it last held a lock of its events.
    - `stopped`: whether it was asked to end; `failure`: why an event is loaded no more, `over`:
      whether none is.
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


def ending(seen: Seen, warm: WarmRuns) -> Ending | None:
    """Why a warm run must end, or `None` if it may stay.

    >>> ending(Seen(age=100, idle=601), WarmRuns())
    Ending(why='idle for 10m', followed=False, notice=0.0)
    >>> ending(Seen(age=850), WarmRuns())
    Ending(why='15m old, and another goes on', followed=True, notice=50.0)
    """
    if seen.stopped:
        return Ending("asked to stop")
    if seen.failure:
        return Ending(seen.failure, not seen.over, 0.0 if seen.over else warm.notice_seconds)
    patience = warm.notice_seconds + _PATIENCE_SECONDS
    if seen.lockless >= patience:
        return Ending(f"it has held none of its locks for {patience:g} s")
    if not seen.lockless and seen.idle >= warm.idle_seconds:
        return Ending(f"idle for {warm.idle}")
    left = warm.age_seconds - seen.age
    if left <= warm.notice_seconds:
        return Ending(f"{warm.age} old, and another goes on", True, max(left, 0.0))
    return None


def job_name(destination: Destination[Any]) -> str:
    """The name of the job whose runs are the destination's warm runs."""
    return f"realtime_{destination.name}"


def build_realtime_job(
    app: Blacksmith,
    destination: Destination[Any],
    keys: Mapping[str, AssetKey],
    warm: WarmRuns,
) -> JobDefinition:
    """The Dagster job of a destination's warm runs; `keys` are the assets' by the events' paths."""
    events = realtime_events(destination)
    paths = ", ".join(event.path for event in events)

    # A plain function: in a generator Dagster takes the signal handlers back at every `next()`.
    @op(
        name=f"realtime__{destination.name}",
        description=f"Loads {paths} as soon as there is something to load.",
    )
    def stay(context: OpExecutionContext, blacksmith: BlacksmithResource) -> None:
        _stay(context, blacksmith, app, destination, keys, warm)

    longest = max(event.timeout.total_seconds() for event in events)
    backstop = 2 * warm.age_seconds + warm.notice_seconds + longest + _END_SECONDS

    @job(
        name=job_name(destination),
        description=f"Stays, and loads {paths} at once; {job_name(destination)}_sensor launches it.",
        executor_def=in_process_executor,
        tags={REALTIME_TAG: destination.name, "dagster/max_runtime": f"{backstop:.0f}"},
    )
    def realtime() -> None:
        stay()

    return realtime


def _stay(
    op: OpExecutionContext,
    blacksmith: BlacksmithResource,
    app: Blacksmith,
    destination: Destination[Any],
    keys: Mapping[str, AssetKey],
    warm: WarmRuns,
) -> None:
    pubsub, announcer = blacksmith.pubsub, blacksmith.announcer(app)
    if pubsub is None or announcer is None:
        raise SettingsError(
            "a warm run is woken through a broker, and BLACKSMITH_PUBSUB_URL is not set where it "
            "runs: set it to kafka://host:9092, nats://host:4222, amqp://host:5672 or postgres; "
            "without one the schedules serve realtime events too"
        )
    store, stop = blacksmith.store(app), threading.Event()
    events = realtime_events(destination)
    teller = _Teller(op, events, keys)
    loop = Realtime(
        app,
        destination,
        store=store,
        supervisor=blacksmith.supervisor,
        subscriber=pubsub.subscriber(destination.name),
        owner=op.run_id,
        run=op.run_id,
        report=teller.add,
        announce=announcer.announce,
    )
    service = this_process(SCHEDULER, [destination.name])
    with on_stop(stop.set), registered(blacksmith.supervisor, service):
        loop.start()
        try:
            why = _watch(op, loop, teller, warm, stop)
            why += _elsewhere(events, blacksmith.supervisor, op.run_id)
        finally:
            loop.stop()
            teller.tell()
        op.log.info(f"this run ends: {why}")
        _check(op, store, events, keys)
        summary = Summary(teller.loads, teller.tally, stopped=stop.is_set())
        conclude(op, summary, why)
    if loop.failure is not None:
        raise loop.failure


class _Teller:
    """Counts loads, in whatever thread, and tells the run of them in its own: Dagster asks for it."""

    def __init__(
        self,
        op: OpExecutionContext,
        events: Sequence[DestinationEvent[Any]],
        keys: Mapping[str, AssetKey],
    ) -> None:
        self._op = op
        self._keys = keys
        self._links = links_of(op)
        self._progress = {event.path: Progress(_FLUSH_SECONDS) for event in events}
        self.loads = 0
        self.tally = Tally()

    def add(self, event: DestinationEvent[Any], done: LoadReport) -> None:
        """Count a load."""
        self._progress[event.path].add(done)

    def tell(self, *, if_due: bool = False) -> None:
        """Materialize each destination event's days; with `if_due`, of those not told for a minute."""
        for path, progress in self._progress.items():
            if if_due and not progress.is_due:
                continue
            for day, told in progress.flush().items():
                self.loads += told.loads
                self.tally += told.tally
                self._op.log_event(told_of(self._keys[path], day, told, self._links))


def _watch(
    op: OpExecutionContext,
    loop: Realtime,
    teller: _Teller,
    warm: WarmRuns,
    stop: threading.Event,
) -> str:
    """Wait until the run is to end; returns why it does."""
    began = held = time.monotonic()
    chosen: Ending | None = None
    ends = float("inf")
    while True:
        stop.wait(_LOOK_SECONDS)
        teller.tell(if_due=True)
        now = time.monotonic()
        if loop.holds_locks:
            held = now
        failure = loop.failure
        seen = Seen(
            now - began,
            loop.idle,
            now - held,
            stop.is_set(),
            None if failure is None else describe(failure),
            loop.is_over,
        )
        found = ending(seen, warm)
        if found and not found.followed:
            return found.why
        if found and chosen is None:
            chosen, ends = found, now + found.notice
            _announce(op, found)
        if chosen and now >= ends and (_is_followed(op) or now >= ends + warm.age_seconds):
            return chosen.why


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


def _elsewhere(events: Sequence[DestinationEvent[Any]], supervisor: Supervisor, run_id: str) -> str:
    """Who else holds a lock of these events, in brackets; nothing if nobody does."""
    try:
        held = {event.path: supervisor.status(f"load/{event.path}") for event in events}
    except Unavailable:
        return ""
    others = [
        f"{path} is loaded by {status.owner}"
        for path, status in held.items()
        if status.held and status.owner != run_id
    ]
    return f" ({', '.join(others)})" if others else ""


def _check(
    op: OpExecutionContext,
    store: Store,
    events: Sequence[DestinationEvent[Any]],
    keys: Mapping[str, AssetKey],
) -> None:
    now = datetime.now(UTC)
    try:
        for event in events:
            counts = store.counts(event.path)
            evaluate(op, of_destination(keys[event.path], event.schedule, counts, now, woken=True))
    except Unavailable as error:  # what was loaded is recorded; `blacksmith_report` checks it too
        op.log.warning(f"the checks are not evaluated: {error}")
