"""Loads a window of the log again: selects its jobs page by page, and loads them by a `Loader`."""

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
from blacksmith_dagster.importer import load_function
from blacksmith_dagster.pipeline.application import Blacksmith
from blacksmith_dagster.pipeline.destination import AnyDestinationEvent
from blacksmith_dagster.pipeline.event import Event
from blacksmith_dagster.pipeline.model import decoder, encode
from blacksmith_dagster.pubsub.notifier import Notify
from blacksmith_dagster.redaction import describe
from blacksmith_dagster.scheduler.decoding import JobDecoder
from blacksmith_dagster.scheduler.executor import Executor
from blacksmith_dagster.scheduler.loader import HeldLane, Loader, take_lane
from blacksmith_dagster.scheduler.outcomes import LoadReport, Tally
from blacksmith_dagster.store.interface import (
    JobRow,
    Lane,
    Replay,
    ReplayCandidate,
    ReplayMode,
    ReplayRequest,
    SelectedJob,
    Store,
    Window,
)
from blacksmith_dagster.supervisor import here

if TYPE_CHECKING:
    from blacksmith_dagster.supervisor import Supervisor

WAIT = 20.0
"""Seconds to wait for an overlapping replay: longer than the 15 s lease of a killed process."""

_POLL = 0.05  # seconds between two checks of the load lane for jobs to claim
_LONGEST_YIELD = 5.0  # seconds that a replay waits for the load lane, at most
_SAMPLE = 5

# By the state of an event's job: the modes in which a replay runs it.
_MODES = {
    "missing": {ReplayMode.MISSING, ReplayMode.ALL},
    "discarded": {ReplayMode.FAILED, ReplayMode.ALL},
    "succeeded": {ReplayMode.ALL},
    "pending": set[ReplayMode](),
}


class ReplayProgress(msgspec.Struct, frozen=True):
    """How far a replay has come: `done` jobs have run; about how many are `left`.

    `rate` is in jobs a second; `seconds_left` is `None` until there is a rate.
    """

    done: int
    left: int
    rate: float
    seconds_left: float | None


class ReplaySummary(msgspec.Struct, frozen=True):
    """What a call of `replay` did. `stopped`: before its end, on request; the next call continues."""

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
    event: AnyDestinationEvent,
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
    """Load the jobs that the request selects, until each has run once or `stop` is set.

    If a replay with an equal request has not ended, it continues that. The scheduled loads retry jobs
    that fail.
    `rate` limits it, in jobs a second; while a load of new jobs is running and has something to claim,
    that load goes first. `run` names the caller's run; `report` is called after each recorded load, in
    this thread, and `notify` with the destination events that have new jobs by its outcomes. It waits
    for another replay of this destination event, `wait` seconds at most if the two overlap.

    Raises `UsageError` if an overlapping replay still runs then, or if a function of the request
    raises; `Gone` if events of the window have been purged; `MigrationPending` if the destination
    waits for a migration; what `Scheduler.load` raises.

    >>> replay(app, flights, ReplayRequest(start, end), store=store, supervisor=locks)  # doctest: +SKIP
    ReplaySummary(replay=1, loads=3, tally=Tally(succeeded=2641, failed=0, discarded=0), stopped=False)
    """
    stop = stop or threading.Event()
    selector = ReplaySelector(app, event, request)
    holder = run or here()
    lane = _wait_for_lane(event.path, request, holder, store, supervisor, stop, wait)
    if lane is None:
        return ReplaySummary(0, stopped=True)
    token, lease = lane
    with lease, closing(Executor()) as executor:
        begun = store.begin_replay(token, request, selector.event_types, holder)
        loader = Loader(app, event, store=store, executor=executor, run=run, notify=notify)
        tracker = _ProgressTracker(begun, rate, stop, report or (lambda *_: None))
        load_lane = _LoadLane(event.path, store, supervisor, stop)
        loads, tally = 0, Tally()

        def report_load(load: LoadReport) -> None:
            tracker.report(load)
            load_lane.wait_until_idle()

        while True:
            drained = loader.drain(token, lease, stop, report_load)
            loads, tally = loads + drained.loads, tally + drained.tally
            if drained.skipped:
                raise MigrationPending(drained.skipped)
            if drained.stopped or stop.is_set():
                return ReplaySummary(begun.id, loads, tally, stopped=True)
            planned = tracker.replay
            if planned.planned_upto < planned.upto:
                window = Window(planned.planned_upto, planned.upto)
                page = store.replay_page(event.path, request, selector.event_types, window)
                selected = selector.select(page.candidates, store)
                tracker.replay = store.plan(token, planned, page.upto, selected, event.batch_size)
            elif store.end_replay(token, planned):
                return ReplaySummary(begun.id, loads, tally)
            else:
                stop.wait(_POLL)  # an operator is discarding jobs that are left


def forecast(
    app: Blacksmith, event: AnyDestinationEvent, request: ReplayRequest, *, store: Store
) -> Forecast:
    """What a replay would do, found by reading the whole window; changes nothing.

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
        wanted = {job.seq for job in missing.select(page.candidates, store)}
        for candidate in page.candidates:
            if candidate.state != "missing" or candidate.seq in wanted:
                day = candidate.received_at.astimezone(UTC).date()
                days.setdefault(day, Counter())[candidate.state] += 1
        selected = {job.seq for job in selector.select(page.candidates, store)}
        jobs += len(selected)
        sample += _sampled(page.candidates, selected, _SAMPLE - len(sample))
    pace = store.pace(event.path)
    return Forecast(dict(sorted(days.items())), jobs, jobs / pace if pace else None, sample)


def _sampled(
    candidates: Sequence[ReplayCandidate], selected: set[int], number: int
) -> list[Sample]:
    picked = [event for event in candidates if event.seq in selected] if number else []
    return [
        Sample(event.id, event.event_type, event.state, event.error) for event in picked[:number]
    ]


def _wait_for_lane(
    path: str,
    request: ReplayRequest,
    holder: str,
    store: Store,
    supervisor: Supervisor,
    stop: threading.Event,
    wait: float,
) -> HeldLane | None:
    """The replay lane, or `None` once `stop` is set. Raises `UsageError` for a replay that overlaps."""
    give_up = time.monotonic() + wait
    while not stop.is_set():
        lane = take_lane(
            Lane.REPLAY, path, holder, store=store, supervisor=supervisor, wait=min(wait, 1.0)
        )
        if lane is not None:
            return lane
        other = supervisor.status(f"replay/{path}").holder
        overlapping = [
            replay.request
            for replay in store.replays(path)
            if replay.ended_at is None
            and replay.run == other
            and replay.request.start < request.end
            and request.start < replay.request.end
        ]
        if overlapping and time.monotonic() > give_up:
            start, end = overlapping[0].start, overlapping[0].end
            raise UsageError(
                f"{path}: run {other} is already replaying {start:%Y-%m-%d %H:%M} to "
                f"{end:%Y-%m-%d %H:%M}; wait until it has ended, or terminate it"
            )
        stop.wait(_POLL)
    return None


class _ProgressTracker:
    """Knows how far a replay is and how fast it runs, and slows it down to its rate."""

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
        self._done_before = replay.jobs - replay.waiting
        self._done = 0
        self._began = self._next = time.monotonic()

    def report(self, load: LoadReport) -> None:
        """Report a load, then wait as long as the rate asks for."""
        jobs = sum(tally.succeeded + tally.failed + tally.discarded for tally in load.days.values())
        self._done += jobs
        now = time.monotonic()
        replay = self.replay
        unplanned, planned = replay.upto - replay.planned_upto, replay.planned_upto - replay.after
        left = max(replay.jobs - self._done_before - self._done, 0)
        left += round(unplanned * replay.jobs / planned) if planned else 0
        speed = self._done / (now - self._began) if now > self._began else 0.0
        progress = ReplayProgress(
            self._done_before + self._done, left, speed, left / speed if speed else None
        )
        self._report(load, progress)
        if self._rate is not None:
            self._next = max(self._next, now - 1.0) + jobs / self._rate
            self._stop.wait(max(self._next - time.monotonic(), 0.0))


class _LoadLane:
    """Lets the loads of new jobs go first, while a process runs them."""

    def __init__(
        self, path: str, store: Store, supervisor: Supervisor, stop: threading.Event
    ) -> None:
        self._path, self._store, self._supervisor, self._stop = path, store, supervisor, stop
        self._checked_at = 0.0

    def wait_until_idle(self) -> None:
        """Wait while the load lane has something to claim, and a process that claims it."""
        now = time.monotonic()
        if now - self._checked_at < _POLL:
            return
        while (
            time.monotonic() - now < _LONGEST_YIELD
            and self._store.next_due(self._path) == 0
            and self._supervisor.status(f"load/{self._path}").held
            and not self._stop.wait(_POLL / 5)
        ):
            pass
        self._checked_at = time.monotonic()


class ReplaySelector:
    """Selects the jobs that a replay runs, by the flows as they are now and by the request.

    - `event_types`: the types of the events that it reads.

    Raises `UsageError` for an event type that the destination event does not receive, and
    `SettingsError` for a function that is not there.
    """

    def __init__(self, app: Blacksmith, event: AnyDestinationEvent, request: ReplayRequest) -> None:
        unknown = [
            event_type for event_type in request.event_types if event_type not in event.flows
        ]
        if unknown:
            raise UsageError(
                f"{event.path} does not receive {', '.join(unknown)}; it receives "
                f"{', '.join(event.flows)}"
            )
        self.event_types: Sequence[str] = request.event_types or tuple(event.flows)
        self._app = app
        self._event = event
        self._request = request
        modes = set(request.modes)
        self._states = {state for state, run_in in _MODES.items() if run_in & modes}
        self._decoder = JobDecoder(app, event)
        self._when: Callable[[Event[Any]], Any] | None = _function(request.when)
        self._edit: Callable[[Event[Any]], Any] | None = _function(request.edit)
        self._plain = self._when is self._edit is None and all(
            flow.when is None for flow in event.flows.values()
        )

    def select(self, candidates: Sequence[ReplayCandidate], store: Store) -> list[SelectedJob]:
        """The jobs to be run. The events are read from the store only if a function needs them.

        Raises `UsageError` if the request's own function raises: a bug leaves nothing out.
        """
        matching = [candidate for candidate in candidates if self.matches(candidate)]
        if self._plain:
            return [SelectedJob(candidate.seq, candidate.state) for candidate in matching]
        states = {candidate.seq: candidate.state for candidate in matching}
        rows = store.job_rows(self._event.path, list(states))
        originals = self._decoder.originals(rows, store.originals)
        jobs = (self._select_job(row, states[row.seq], originals) for row in rows)
        return [job for job in jobs if job is not None]

    def matches(self, candidate: ReplayCandidate) -> bool:
        """Whether the request's modes and its error select this job."""
        if candidate.state not in self._states:
            return False
        return self._request.error is None or self._request.error in (candidate.error or "")

    def _select_job(
        self, row: JobRow, state: str, originals: Mapping[str, JobRow]
    ) -> SelectedJob | None:
        flow = self._event.flows[row.event_type]
        raised: str | None = None
        payload: str | None = None
        try:
            event = self._decoder.event(row, originals)
            # An existing job has passed `when`, unless `when` raised and it was created anyway.
            undecided = state == "missing" or row.when_error is not None
            if undecided and flow.when is not None and not flow.when(event):
                return None
        except Exception as error:  # noqa: BLE001 - users' code; only this job fails with it
            raised = describe(error)
        else:
            if self._when is not None and not self._call(self._when, event):
                return None
            if self._edit is not None:
                payload = self._edited(self._edit, event, row)
        return SelectedJob(row.seq, state, raised, payload)

    def _edited(self, edit: Callable[[Event[Any]], Any], event: Event[Any], row: JobRow) -> str:
        source_event = self._app.source_events.get(row.event_type)
        if source_event is None:
            raise UsageError(
                f"{row.event_type} is an outcome and has no data of its own to edit; edit the jobs of "
                f"{row.event_type.rpartition('.')[0]}"
            )
        try:
            payload = encode(self._call(edit, event))
            decoder(source_event.model)(payload)
        except (TypeError, ValueError, msgspec.MsgspecError) as error:
            raise UsageError(
                f"{self._request.edit}: the data that it returned for event {row.id} does not fit "
                f"{row.event_type}: {describe(error)}; nothing more is replayed until it does"
            ) from error
        return payload.decode()

    def _call(self, function: Callable[[Event[Any]], Any], event: Event[Any]) -> Any:
        try:
            return function(event)
        except Exception as error:
            raise UsageError(
                f"{getattr(function, '__name__', function)} raised for event {event.id}: "
                f"{describe(error)}; fix it, and launch the replay again: it continues from here"
            ) from error


def _function(name: str | None) -> Callable[[Event[Any]], Any] | None:
    return None if name is None else load_function(name)
