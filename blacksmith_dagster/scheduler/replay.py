"""Loading a window of the log again: planned page by page, loaded by the same `Loader`."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from datetime import UTC, date
from typing import TYPE_CHECKING, Any

import msgspec

from blacksmith_dagster.errors import MigrationPending, UsageError
from blacksmith_dagster.pipeline.application import Blacksmith
from blacksmith_dagster.pipeline.destination import DestinationEvent
from blacksmith_dagster.pubsub.notifier import Notify
from blacksmith_dagster.scheduler.executor import Executor
from blacksmith_dagster.scheduler.interface import LoadReport, Tally
from blacksmith_dagster.scheduler.loader import Loader
from blacksmith_dagster.scheduler.selection import ReplaySelector
from blacksmith_dagster.store.interface import (
    Lane,
    Replay,
    ReplayCandidate,
    ReplayMode,
    ReplayRequest,
    Store,
    Window,
)
from blacksmith_dagster.supervisor import here

if TYPE_CHECKING:
    from blacksmith_dagster.supervisor.interface import Lease, Supervisor

WAIT = 20.0
"""Seconds for which an overlapping replay is waited for: one that was killed holds its lock for 15."""

_LOOK = 0.05  # seconds between two looks at what the load lane has to do
_LIVE_FIRST = 5.0  # seconds that a replay waits for it at most
_SAMPLE = 5


class ReplayProgress(msgspec.Struct, frozen=True):
    """How far a replay has come: jobs that were run, and that are left as far as is known.

    `rate` is in jobs a second, `seconds_left` `None` until that is known.
    """

    done: int
    left: int
    rate: float
    seconds_left: float | None


class ReplaySummary(msgspec.Struct, frozen=True):
    """What a call of `replay` did. `stopped`: it was asked to; the next call goes on."""

    replay: int
    loads: int = 0
    tally: Tally = Tally()
    stopped: bool = False


class Sample(msgspec.Struct, frozen=True):
    """One event that a replay would load."""

    event_id: str
    event_type: str
    state: str
    error: str | None


class Forecast(msgspec.Struct, frozen=True):
    """What a replay would do.

    - `days`: how many events per UTC day have a job in each state ('missing', 'discarded',
      'succeeded', 'pending').
    - `jobs`: how many it would run; `seconds`: about how long that takes, by the last loads.
    """

    days: Mapping[date, Mapping[str, int]]
    jobs: int
    seconds: float | None
    sample: Sequence[Sample]


def replay(
    app: Blacksmith,
    event: DestinationEvent[Any],
    request: ReplayRequest,
    *,
    store: Store,
    supervisor: Supervisor,
    run: str | None = None,
    stop: threading.Event | None = None,
    rate: float | None = None,
    report: Callable[[LoadReport, ReplayProgress], None] | None = None,
    notify: Notify = lambda _: None,
    wait: float = WAIT,
) -> ReplaySummary:
    """Load what the request asks for, until all of it was run once or `stop` is set.

    It goes on with a replay that was asked for with the same words and has not ended. What fails is
    tried again by the scheduled loads. `rate` limits it, in jobs a second; whenever a load of new
    jobs is under way and has something to claim, that goes first. `run` names the caller's run;
    `report` is called after each recorded load, in this thread, and `notify` is called with the
    destination events that have new jobs by its outcomes. Another replay of this destination
    event is waited for; `wait` seconds at most if it overlaps with this one.

    Raises `UsageError` if that still runs, or if a function of the request raises; `Gone` if events
    of the window have been purged; `MigrationPending` if the destination waits for a migration; what
    `Scheduler.load` raises.

    >>> replay(app, flights, ReplayRequest(start, end), store=store, supervisor=locks)  # doctest: +SKIP
    ReplaySummary(replay=1, loads=3, tally=Tally(succeeded=2641, failed=0, discarded=0), stopped=False)
    """
    stop = stop or threading.Event()
    selector = ReplaySelector(app, event, request)
    holder = run or here()
    lease = _acquire(event.path, request, holder, store, supervisor, stop, wait)
    if lease is None:
        return ReplaySummary(0, stopped=True)
    with lease, closing(Executor()) as executor:
        token = store.take_over(event.path, Lane.REPLAY, lease.id, lease.confirm)
        begun = store.begin_replay(token, request, selector.event_types, holder)
        loader = Loader(app, event, store=store, executor=executor, run=run, notify=notify)
        tracker = _ProgressTracker(begun, rate, stop, report or (lambda *_: None))
        live = _LiveFirst(event.path, store, supervisor, stop)
        loads, tally = 0, Tally()

        def report_load(done: LoadReport) -> None:
            tracker.report(done)
            live.give_way()

        while True:
            drained = loader.drain(token, lease, stop, report_load)
            loads, tally = loads + drained.loads, tally + drained.tally
            if drained.skipped:
                raise MigrationPending(drained.skipped)
            if drained.stopped or stop.is_set():
                return ReplaySummary(begun.id, loads, tally, stopped=True)
            at = tracker.replay
            if at.planned_upto < at.upto:
                window = Window(at.planned_upto, at.upto)
                page = store.replay_page(event.path, request, selector.event_types, window)
                selected = selector.select(page.candidates, store)
                tracker.replay = store.plan(token, at, page.upto, selected, event.batch)
            elif store.end_replay(token, at):
                return ReplaySummary(begun.id, loads, tally)
            else:
                stop.wait(_LOOK)  # an operator is taking jobs out of what is left


def forecast(
    app: Blacksmith, event: DestinationEvent[Any], request: ReplayRequest, *, store: Store
) -> Forecast:
    """What a replay would do: it goes through the window, and changes nothing.

    Raises `UsageError`, `Gone`, `Unavailable`.
    """
    selector = ReplaySelector(app, event, request)
    store.check_not_purged(selector.event_types, request.start)
    every = msgspec.structs.replace(request, modes=(ReplayMode.ALL,), error=None)
    missing = ReplaySelector(
        app, event, ReplayRequest(request.start, request.end, event_types=request.event_types)
    )
    window = store.window(request.start, request.end)
    days: dict[date, Counter[str]] = {}
    jobs, sample = 0, list[Sample]()
    while window.after < window.upto:
        page = store.replay_page(event.path, every, selector.event_types, window)
        window = Window(page.upto, window.upto)
        wanted = {each.seq for each in missing.select(page.candidates, store)}
        for each in page.candidates:
            if each.state != "missing" or each.seq in wanted:
                day = each.received_at.astimezone(UTC).date()
                days.setdefault(day, Counter())[each.state] += 1
        selected = {each.seq for each in selector.select(page.candidates, store)}
        jobs += len(selected)
        sample += _sampled(page.candidates, selected, _SAMPLE - len(sample))
    pace = store.pace(event.path)
    return Forecast(dict(sorted(days.items())), jobs, jobs / pace if pace else None, sample)


def _sampled(
    candidates: Sequence[ReplayCandidate], selected: set[int], number: int
) -> list[Sample]:
    picked = [each for each in candidates if each.seq in selected] if number else []
    return [Sample(each.id, each.event_type, each.state, each.error) for each in picked[:number]]


def _acquire(
    path: str,
    request: ReplayRequest,
    holder: str,
    store: Store,
    supervisor: Supervisor,
    stop: threading.Event,
    wait: float,
) -> Lease | None:
    """The lock, or `None` if it was asked to stop. Raises `UsageError` for one that overlaps."""
    key, give_up = f"replay/{path}", time.monotonic() + wait
    while not stop.is_set():
        lease = supervisor.acquire(key, holder, wait=min(wait, 1.0))
        if lease is not None:
            return lease
        other = supervisor.status(key).holder
        running = [
            each for each in store.replays(path) if each.ended_at is None and each.run == other
        ]
        overlapping = [each for each in running if _overlap(each.request, request)]
        if overlapping and time.monotonic() > give_up:
            theirs = overlapping[0].request
            raise UsageError(
                f"{path}: run {other} is replaying {theirs.start:%Y-%m-%d %H:%M} to "
                f"{theirs.end:%Y-%m-%d %H:%M} already; wait until it has ended, or terminate it"
            )
        stop.wait(_LOOK)
    return None


def _overlap(one: ReplayRequest, other: ReplayRequest) -> bool:
    return one.start < other.end and other.start < one.end


class _ProgressTracker:
    """Where a replay is, how fast it is, and when its next load may begin."""

    def __init__(
        self,
        replay: Replay,
        rate: float | None,
        stop: threading.Event,
        report: Callable[[LoadReport, ReplayProgress], None],
    ) -> None:
        self.replay = replay
        self._rate = rate
        self._stop = stop
        self._report = report
        self._before = replay.jobs - replay.waiting
        self._done = 0
        self._began = self._next = time.monotonic()

    def report(self, done: LoadReport) -> None:
        """Report a load, then wait as long as the rate has it."""
        ran = sum(each.succeeded + each.failed + each.discarded for each in done.days.values())
        self._done += ran
        now = time.monotonic()
        at = self.replay
        unplanned, planned = at.upto - at.planned_upto, at.planned_upto - at.after
        left = max(at.jobs - self._before - self._done, 0)
        left += round(unplanned * at.jobs / planned) if planned else 0
        speed = self._done / (now - self._began) if now > self._began else 0.0
        progress = ReplayProgress(
            self._before + self._done, left, speed, left / speed if speed else None
        )
        self._report(done, progress)
        if self._rate is not None:
            self._next = max(self._next, now - 1.0) + ran / self._rate
            self._stop.wait(max(self._next - time.monotonic(), 0.0))


class _LiveFirst:
    """Lets loads of new jobs go first, where one is under way."""

    def __init__(
        self, path: str, store: Store, supervisor: Supervisor, stop: threading.Event
    ) -> None:
        self._path, self._store, self._supervisor, self._stop = path, store, supervisor, stop
        self._looked = 0.0

    def give_way(self) -> None:
        """Wait while the load lane has something to claim, and someone who does."""
        now = time.monotonic()
        if now - self._looked < _LOOK:
            return
        while (
            time.monotonic() - now < _LIVE_FIRST
            and self._store.next_due(self._path) == 0
            and self._supervisor.status(f"load/{self._path}").held
            and not self._stop.wait(_LOOK / 5)
        ):
            pass
        self._looked = time.monotonic()
