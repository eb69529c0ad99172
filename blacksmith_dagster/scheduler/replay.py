"""Loads a window of the log again: selects its jobs page by page, and lets the scheduler load them."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import msgspec

from blacksmith_dagster.errors import UsageError
from blacksmith_dagster.importer import load_function
from blacksmith_dagster.pipeline.application import Blacksmith
from blacksmith_dagster.pipeline.destination import AnyDestinationEvent
from blacksmith_dagster.pipeline.event import Event
from blacksmith_dagster.pipeline.model import decoder, encode
from blacksmith_dagster.redaction import describe
from blacksmith_dagster.scheduler.decoding import JobDecoder
from blacksmith_dagster.scheduler.loader import HeldLane, StandardScheduler, take_lane
from blacksmith_dagster.scheduler.outcomes import LoadReport, Tally
from blacksmith_dagster.store import Store
from blacksmith_dagster.store.records import (
    FencingToken,
    JobRow,
    Lane,
    Replay,
    ReplayCandidate,
    ReplayMode,
    ReplayRequest,
    SelectedJob,
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
    scheduler: StandardScheduler,
    *,
    store: Store,
    supervisor: Supervisor,
    run: str | None = None,
    stop: threading.Event | None = None,
    rate: float | None = None,
    report: Callable[[LoadReport, ReplayProgress], None] = lambda *_: None,
) -> ReplaySummary:
    """Load the jobs that the request selects, until each has run once or `stop` is set.

    If a replay with an equal request has not ended, it continues that. The scheduled loads retry jobs
    that fail. It waits for another replay of this destination event, 20 s at most if the two overlap.

    - `run`: names the caller's run in the history.
    - `rate`: limits it, in jobs a second. While a load of new jobs is running and has something to
      claim, that load goes first.
    - `report`: is called after each recorded load, in this thread.

    Raises `UsageError` if an overlapping replay still runs, if a function of the request raises, or if
    the scheduler skips, as while the destination waits for a migration; `Gone` if events of the window
    have been purged; what `StandardScheduler.drain` raises.

    >>> replay(app, flights, request, scheduler, store=store, supervisor=supervisor)  # doctest: +SKIP
    ReplaySummary(replay=1, loads=3, tally=Tally(succeeded=2641, failed=0, discarded=0), stopped=False)
    """
    stop, holder = stop or threading.Event(), run or here()
    selector = ReplaySelector(app, event, request)
    lane = _wait_for_lane(event.path, request, holder, store, supervisor, stop)
    if lane is None:
        return ReplaySummary(0, stopped=True)
    token, lease = lane
    with lease:
        begun = store.replays.begin(token, request, selector.event_types, holder)
        pace = _Pace(begun, store, supervisor, stop, rate, report)
        drain = partial(
            scheduler.drain, app, event, store=store, token=token, lease=lease, run=run, stop=stop
        )
        summary = ReplaySummary(begun.id)
        while True:
            drained = drain(report=pace.loaded)
            loads, tally = summary.loads + drained.loads, summary.tally + drained.tally
            summary = ReplaySummary(begun.id, loads, tally, drained.stopped or stop.is_set())
            if summary.stopped:
                return summary
            if drained.skipped:
                raise UsageError(
                    f"{event.path}: the replay has not ended: {drained.skipped}; launch it again later, "
                    "and it continues"
                )
            planned = pace.replay
            if planned.planned_upto < planned.upto:
                pace.replay = plan_page(planned, token, selector, event.batch_size, store)
            elif store.replays.end(token, planned):
                return summary
            else:
                stop.wait(_POLL)  # an operator is discarding jobs that are left


def plan_page(
    replay: Replay, token: FencingToken, selector: ReplaySelector, batch: int, store: Store
) -> Replay:
    """Put the selected jobs of the next page into job groups of the replay lane."""
    window = Window(replay.planned_upto, replay.upto)
    page = store.replays.page(replay.destination, replay.request, selector.event_types, window)
    return store.replays.plan(
        token, replay, page.upto, selector.select(page.candidates, store), batch
    )


def forecast(
    app: Blacksmith, event: AnyDestinationEvent, request: ReplayRequest, *, store: Store
) -> Forecast:
    """What a replay would do, found by reading the whole window; changes nothing.

    Raises `UsageError`, `Gone`, `Unavailable`.
    """
    selector = ReplaySelector(app, event, request)
    store.log.check_not_purged(selector.event_types, request.start)
    every = msgspec.structs.replace(request, modes=(ReplayMode.ALL,), error=None)
    missing = ReplaySelector(
        app, event, ReplayRequest(request.start, request.end, event_types=request.event_types)
    )
    window = store.log.window(request.start, request.end)
    days: dict[date, Counter[str]] = {}
    jobs, sample = 0, list[Sample]()
    while window.after < window.upto:
        page = store.replays.page(event.path, every, selector.event_types, window)
        window = Window(page.upto, window.upto)
        wanted = {job.seq for job in missing.select(page.candidates, store)}
        for candidate in page.candidates:
            if candidate.state != "missing" or candidate.seq in wanted:
                day = candidate.received_at.astimezone(UTC).date()
                days.setdefault(day, Counter())[candidate.state] += 1
        selected = {job.seq for job in selector.select(page.candidates, store)}
        jobs += len(selected)
        run = (candidate for candidate in page.candidates if candidate.seq in selected)
        sample += [
            Sample(candidate.id, candidate.event_type, candidate.state, candidate.error)
            for candidate in islice(run, _SAMPLE - len(sample))
        ]
    pace = store.counts.pace(event.path)
    return Forecast(dict(sorted(days.items())), jobs, jobs / pace if pace else None, sample)


def _wait_for_lane(
    path: str,
    request: ReplayRequest,
    holder: str,
    store: Store,
    supervisor: Supervisor,
    stop: threading.Event,
) -> HeldLane | None:
    """The replay lane, or `None` once `stop` is set. Raises `UsageError` for a replay that overlaps."""
    give_up = time.monotonic() + WAIT
    while not stop.is_set():
        lane = take_lane(Lane.REPLAY, path, holder, store=store, supervisor=supervisor, wait=1.0)
        if lane is not None:
            return lane
        other = supervisor.status(f"replay/{path}").holder
        overlapping = [
            replay.request
            for replay in store.replays.newest(path)
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


@dataclass
class _Pace:
    """Reports how far a replay is, and holds it to its rate and behind the loads of new jobs."""

    replay: Replay
    store: Store
    supervisor: Supervisor
    stop: threading.Event
    rate: float | None
    report: Callable[[LoadReport, ReplayProgress], None]
    done: int = 0
    lane_checked_at: float = 0.0

    def __post_init__(self) -> None:
        self.done_before = self.replay.jobs - self.replay.waiting
        self.began = self.next = time.monotonic()

    def loaded(self, load: LoadReport) -> None:
        """Report a load, then wait as long as the rate asks for, and while the load lane has work."""
        jobs = load.tally.succeeded + load.tally.failed + load.tally.discarded
        self.done += jobs
        now = time.monotonic()
        self.report(load, self._progress(now))
        if self.rate is not None:
            self.next = max(self.next, now - 1.0) + jobs / self.rate
            self.stop.wait(max(self.next - time.monotonic(), 0.0))
        self._wait_for_load_lane()

    def _progress(self, now: float) -> ReplayProgress:
        replay = self.replay
        unplanned, planned = replay.upto - replay.planned_upto, replay.planned_upto - replay.after
        left = max(replay.jobs - self.done_before - self.done, 0)
        left += round(unplanned * replay.jobs / planned) if planned else 0
        speed = self.done / (now - self.began) if now > self.began else 0.0
        return ReplayProgress(
            self.done_before + self.done, left, speed, left / speed if speed else None
        )

    def _wait_for_load_lane(self) -> None:
        """Wait while the load lane has something to claim, and a process that claims it."""
        now, path = time.monotonic(), self.replay.destination
        if now - self.lane_checked_at < _POLL:
            return
        while (
            time.monotonic() - now < _LONGEST_YIELD
            and self.store.counts.next_due(path) == 0
            and self.supervisor.status(f"load/{path}").held
            and not self.stop.wait(_POLL / 5)
        ):
            pass
        self.lane_checked_at = time.monotonic()


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
        rows = store.replays.job_rows(self._event.path, list(states))
        originals = self._decoder.originals(rows, store.log.originals)
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
