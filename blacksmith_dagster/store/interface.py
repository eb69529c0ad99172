"""What the rest of the system asks of a store: the log of events and jobs.

The words: an *event type* is the path of a source event or an outcome (`airport/departed`,
`warehouse/flights.discarded`); `destination` is a destination event's path (`warehouse/flights`).
A *job group* is jobs that run together: a range of the log, or a list. A *load* is one run of one job
group.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import date, datetime
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple, Protocol

import msgspec

from blacksmith_dagster.errors import KeyReused
from blacksmith_dagster.pipeline.event import JobResult

if TYPE_CHECKING:
    from blacksmith_dagster.pipeline.application import Blacksmith
    from blacksmith_dagster.pipeline.retention import Retention


class Lane(Enum):
    """Work of one kind on a destination event: each lane has its own lock, fencing token and open load.

    The lock's key is `<lane>/<destination>/<event>`.
    """

    LOAD = "load"
    DISCARD = "discard"
    REPLAY = "replay"


# ------------------------------------------------------------------------------------- ingest


class NewJob(msgspec.Struct, frozen=True):
    """A job to be made with its event. `when_error`: the flow's `when` raised this."""

    destination: str
    when_error: str | None = None


class NewEvent(msgspec.Struct, frozen=True):
    """An event to be kept, with its jobs.

    - `payload`: the data as JSON text, kept to the letter.
    - `context`: JSON text, or `None`.
    - `key`, `ordinal`: together they make the event once within its event type.
    - `digest`: of what the key stands for; the same key with another digest is `KeyReused`.
    - `parent`: the public id of the event that it came of; or, if that is kept with it, its place
      in the same request, 0 for the first.
    """

    event_type: str
    payload: str
    jobs: Sequence[NewJob] = ()
    key: str | None = None
    ordinal: int = 0
    digest: bytes | None = None
    context: str | None = None
    version: str | None = None
    sent_at: datetime | None = None
    parent: str | int | None = None


class Cursor(msgspec.Struct, frozen=True):
    """How far a source has been read: `reader` was at `before` and is at `after` once this is kept.

    `before` is `None` for a reader that the store has not seen.
    """

    reader: str
    before: str | None
    after: str


class RawRequest(msgspec.Struct, frozen=True):
    """A request or a message that could not be ingested.

    - `event_type`: the source event that it came to, or the source whose webhook it came to.
    - `key`: makes it once within its event type: kept again with the same key, it is the same.
    """

    event_type: str
    body: bytes
    headers: Mapping[str, str]
    error: str
    key: str | None = None


class Quarantined(msgspec.Struct, frozen=True):
    """What is in quarantine: its id (`qua_...`), the time when it came, how many bytes it has."""

    id: str
    event_type: str
    received_at: datetime
    error: str
    size: int


class ListenerStatus(msgspec.Struct, frozen=True):
    """The status of a listener, which reads a subscription, or waits for a database's changes.

    - `path`: the source event's; `holder`: who listens, for people.
    - `lag`: how many `unit`s ('messages', 'bytes') are there that were not read; `None` if nobody
      knows.
    - `read_at`: when it last committed something; `error`: why it can't read, if it can't.
    - `at`: when this was noted, by the database's clock; `None` in what is to be noted.
    """

    path: str
    holder: str
    lag: int | None = None
    unit: str = "messages"
    read_at: datetime | None = None
    error: str | None = None
    at: datetime | None = None


# ------------------------------------------------------------------------------------- loads


class FencingToken(msgspec.Struct, frozen=True):
    """The right to claim and record in one lane, until another takes over."""

    destination: str
    lane: Lane
    number: int
    holder: str


class JobRow(NamedTuple):
    """A job as it was kept. `seq` orders the log; `id` is the event's public id."""

    seq: int
    id: str
    event_type: str
    payload: str
    received_at: datetime
    key: str | None
    context: str | None
    version: str | None
    sent_at: datetime | None
    parent: str | None
    when_error: str | None


class Load(msgspec.Struct, frozen=True):
    """One run of one job group, claimed under a fencing token.

    - `job_key`: what its jobs' stable idempotency keys end in, see `key_of`.
    - `attempt`: the number of this attempt for each of its jobs (1 is the first).
    - `lost_loads`: how often this job group's loads ended without a result.
    - `isolated`: this job runs by itself because its job group raised until its last attempt;
      `consecutive_failures` is how many of the group's jobs have failed so in a row.
    - `discard_reason`: why its jobs are to be discarded without being run, if they are.
    - `replay`: the id of the replay that its jobs came of, if they did.
    """

    id: int
    token: FencingToken
    rows: Sequence[JobRow]
    job_key: str
    attempt: int
    first_claim: bool
    lost_loads: int = 0
    isolated: bool = False
    consecutive_failures: int = 0
    discard_reason: str | None = None
    replay: int | None = None

    def key_of(self, event_id: str) -> str:
        """The stable idempotency key of the job of this event."""
        return f"{event_id}-{self.job_key}"


class Deviation(msgspec.Struct, frozen=True):
    """A job of a load that did not succeed.

    A failed one is due again after `delay` seconds, by itself if `isolated`.
    """

    seq: int
    result: JobResult
    error: str
    delay: float | None = None
    isolated: bool = False


class LoadVerdict(msgspec.Struct, frozen=True):
    """How a load ended.

    Either `raised` (all its jobs failed by one error, and the job group is due again after `delay`
    seconds, its jobs one by one if `isolated`), or each job succeeded except the `deviations`.
    `outcomes` are the events that someone receives of it; their `parent` is the job's event.
    """

    deviations: Sequence[Deviation] = ()
    raised: str | None = None
    delay: float = 0.0
    isolated: bool = False
    outcomes: Sequence[NewEvent] = ()


# ------------------------------------------------------------------------------------- replays


class ReplayMode(Enum):
    """Which of a window's events a replay loads.

    MISSING: those that the flows want and that have no job. FAILED: those whose job is discarded.
    ALL: all that the flows want. What is pending or executing is on its way, and left alone.
    """

    MISSING = "missing"
    FAILED = "failed"
    ALL = "all"


class ReplayRequest(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is to be loaded again: it is also the name by which a replay is gone on with.

    - `start`, `end`: the events received from the one until before the other.
    - `event_types`: of these events alone; of all that the destination event receives if empty.
    - `version`: of events of this version alone.
    - `error`: of jobs that were discarded by an error which holds this text alone.
    - `when`, `edit`: the names, `module:function`, of what selects events and changes their data.
    - `new_key`: the jobs get new idempotency keys; those that they had before if not.
    """

    start: datetime
    end: datetime
    modes: tuple[ReplayMode, ...] = (ReplayMode.MISSING, ReplayMode.FAILED)
    event_types: tuple[str, ...] = ()
    version: str | None = None
    error: str | None = None
    when: str | None = None
    edit: str | None = None
    new_key: bool = False


class Replay(msgspec.Struct, frozen=True):
    """A replay, and how far it has come.

    It goes through the log from `after` to `upto`, and up to `planned_upto` it has put `jobs` jobs
    into job groups, `created_jobs` of them new ones; `waiting` of them have not been run. `run` is
    the last that worked on it, `ended_at` when all were run once.
    """

    id: int
    destination: str
    request: ReplayRequest
    after: int
    upto: int
    planned_upto: int
    jobs: int
    created_jobs: int
    waiting: int
    began_at: datetime
    ended_at: datetime | None
    run: str | None


class ReplayCandidate(NamedTuple):
    """An event of a replay's window, and the `state` of its job: 'missing' (it has none), 'succeeded',
    'discarded' (`error` says why) or 'pending'."""

    seq: int
    id: str
    event_type: str
    received_at: datetime
    state: str
    error: str | None


class ReplayPage(NamedTuple):
    """The next candidates of a window, up to the sequence number `upto`."""

    candidates: Sequence[ReplayCandidate]
    upto: int


class SelectedJob(NamedTuple):
    """A job that a replay runs: `state` as its candidate had it, `when_error` if the flow's `when`
    raised, `payload` if the event's data was edited."""

    seq: int
    state: str
    when_error: str | None = None
    payload: str | None = None


# ------------------------------------------------------------------------------------- questions


class Counts(msgspec.Struct, frozen=True):
    """How many jobs of a destination event are in each state.

    `awaiting`: not yet claimed; `retrying`: failed or unknown, due again; `executing`: in an open
    load. `oldest_waiting` is when the job that has waited longest was received, or was due.
    """

    awaiting: int
    executing: int
    retrying: int
    succeeded: int
    discarded: int
    oldest_waiting: datetime | None

    @property
    def pending(self) -> int:
        """Jobs that have neither succeeded nor been discarded."""
        return self.awaiting + self.executing + self.retrying


class DayCount(NamedTuple):
    """How many events of a type were received on a UTC day."""

    event_type: str
    day: date
    events: int


class StoredEvent(msgspec.Struct, frozen=True):
    """An event as it was kept, with the paths of the destination events that have a job of it."""

    id: str
    seq: int
    event_type: str
    payload: str
    received_at: datetime
    key: str | None
    context: str | None
    version: str | None
    sent_at: datetime | None
    parent: str | None
    destinations: Sequence[str]


class Transition(msgspec.Struct, frozen=True):
    """A change of a job's state.

    `state` is 'acknowledged', 'awaiting', 'executing', 'succeeded', 'failed', 'discarded' or
    'unknown'. `run` is the Dagster run that the load belonged to; `due_at` when a failed or unknown
    job runs again; `replay` the replay that has it run again.
    """

    destination: str
    state: str
    at: datetime
    attempt: int
    load_id: int | None = None
    run: str | None = None
    error: str | None = None
    due_at: datetime | None = None
    replay: int | None = None


class JobState(msgspec.Struct, frozen=True):
    """A job with its present state, as `jobs list` shows it."""

    destination: str
    event_id: str
    event_type: str
    state: str
    received_at: datetime
    attempts: int
    error: str | None
    due_at: datetime | None


class Orphan(NamedTuple):
    """A destination event that the application no longer declares, with its waiting jobs."""

    destination: str
    pending: int


class Window(NamedTuple):
    """Sequence numbers that hold every event received between two times: `after < seq <= upto`."""

    after: int
    upto: int


# ------------------------------------------------------------------------------------- purge


class Purgeable(NamedTuple):
    """What of an event type is past its time: all of it was received before `before`.

    `events` of it would go; `needed` stay, because a job, an outcome or a replay needs them.
    """

    event_type: str
    before: datetime
    events: int
    needed: int


class PurgeStep(msgspec.Struct, frozen=True):
    """What a purge has done since its last step.

    `events` were deleted, `partitions` dropped whole (PostgreSQL's, of 5,000,000 sequence numbers
    each). `file` was archived. `postponed` are the tables that a reader keeps from being dropped, if
    it was tried in this step: their events are gone from the log, and the next purge drops them.
    """

    events: int = 0
    partitions: int = 0
    file: str | None = None
    postponed: Sequence[str] | None = None


NOTHING = msgspec.Raw(b"null")


class ArchivedJob(msgspec.Struct, frozen=True, omit_defaults=True):
    """What became of a job of an archived event: 'succeeded', or 'discarded' by an error.

    `edited` is what it was given instead of the event's data, if a replay has changed it.
    """

    destination: str
    state: str
    error: str | None = None
    edited: msgspec.Raw = NOTHING


class ArchivedEvent(msgspec.Struct, frozen=True, omit_defaults=True):
    """An event that is about to be purged, as an archive keeps it.

    `data` and `context` are JSON as it was kept, though without line breaks.
    """

    id: str
    event_type: str
    received_at: datetime
    data: msgspec.Raw
    key: str | None = None
    context: msgspec.Raw = NOTHING
    version: str | None = None
    sent_at: datetime | None = None
    parent: str | None = None
    jobs: Sequence[ArchivedJob] = ()


class Archive(Protocol):
    """Where events go before they are purged."""

    def write(self, events: Sequence[ArchivedEvent]) -> str:
        """Keep events, in order of their sequence numbers; returns where, once they are safe.

        The same events may come again, after a purge was killed.

        Raises `Unavailable`.
        """
        ...


# ------------------------------------------------------------------------------------- the store


class Store(Protocol):
    """The log. Safe to share between threads; every call is one transaction or a few short ones.

    Any call may raise `Unavailable` when the database does not respond (nothing was changed), and
    those that write `OutcomeUnknown`.
    """

    @property
    def label(self) -> str:
        """Which store this is, for people: its URL without credentials."""
        ...

    def close(self) -> None:
        """Close all connections."""
        ...

    def ready(self) -> None:
        """Return if the store can accept events now.

        Raises `SchemaOutdated`, `SequenceWentBack` or `Unavailable`.
        """
        ...

    def register(self, app: Blacksmith) -> None:
        """Make the application's event types and destination events known; rename what was renamed.

        Called by every process at its start, and safe to be called by several at once.
        """
        ...

    # -- ingest
    def ingest(
        self,
        requests: Sequence[Sequence[NewEvent] | RawRequest],
        *,
        cursors: Sequence[Cursor] = (),
        released: Sequence[str] = (),
        received_at: datetime | None = None,
    ) -> list[list[str] | KeyReused]:
        """Keep the events of several requests with their jobs, in one commit.

        Returns for each request the ids of its events, in order; an event whose key is known gets
        the first one's id and makes no job. A request with a reused key gets the error,
        as a value, and leaves nothing; the others are kept. A request that is `RawRequest` is kept in
        quarantine, and gets its id there.

        `cursors` of different readers are committed with the events, and what is `released` leaves
        quarantine with them. With either, a reused key leaves nothing of any request: none is kept,
        and the results of the others are empty.

        Raises `CursorMoved` if a reader is elsewhere, `NotFound` if something released is not in
        quarantine any more.

        `received_at` is for history that is imported from elsewhere: when it was received there.
        It is imported in that order, before the store receives events of its own; else `UsageError`.
        """
        ...

    def cursor(self, reader: str) -> str | None:
        """A reader's cursor, or `None` if the store has not seen it."""
        ...

    def quarantine(self, raw: RawRequest) -> str:
        """Keep a raw request; returns its id."""
        ...

    def quarantined(self, event_type: str | None = None, limit: int = 100) -> Sequence[Quarantined]:
        """What is in quarantine, the oldest first."""
        ...

    def in_quarantine(self, quarantine_id: str) -> RawRequest:
        """A request in quarantine, whole. Raises `NotFound`."""
        ...

    def drop_quarantined(self, ids: Sequence[str]) -> None:
        """Remove requests from quarantine for good. Raises `NotFound`, and then removes none."""
        ...

    def quarantine_sizes(self) -> Mapping[str, int]:
        """How many requests are in quarantine, by event type; reads none of them."""
        ...

    # -- listeners
    def note_listener(self, status: ListenerStatus) -> None:
        """Keep the status of a listener, in place of what was kept of it before."""
        ...

    def listeners(self) -> Sequence[ListenerStatus]:
        """The status of each listener when it was noted last."""
        ...

    # -- loads
    def take_over(
        self, destination: str, lane: Lane, holder: str, confirm: Confirm
    ) -> FencingToken:
        """Become the one whose claims and records count in this lane.

        Reads the fencing token, asks `confirm()` whether the caller's lock is still its own, and raises
        the token only if nobody else has meanwhile. An open load of the lane becomes `unknown`, and
        its jobs are due again.

        Raises `FencedOut` if `confirm()` says no, `NotFound` if there is no such destination event.
        """
        ...

    def claim(
        self,
        token: FencingToken,
        limit: int,
        max_attempts: int,
        run: str | None = None,
        version: int | None = None,
    ) -> Load | None:
        """The next load of at most `limit` jobs, committed as executing; `None` if nothing is due.

        What is due again goes first, except that while new jobs wait every second claim takes them.
        A lane has one open load at a time. `version` is that of its destination's schema, as the
        caller's code declares it; with `None` no migration is waited for but one under way.

        Raises `FencedOut`; `MigrationPending` and `CodeOutdated` if the destination is not of that
        version, or is being migrated; `UsageError` if the lane's last load is still open.
        """
        ...

    def record(self, load: Load, verdict: LoadVerdict) -> None:
        """Close a load: all of its jobs succeeded except what the verdict says.

        Raises `FencedOut`: another has taken over, or the load is no longer open.
        """
        ...

    def release(self, load: Load) -> None:
        """Give back a load that was claimed and not started: it counts nothing. Raises `FencedOut`."""
        ...

    def abandon(self, load: Load, error: str) -> None:
        """Close a load as `unknown` (it ran past its time-out): its jobs are due again.

        A late `record` of it raises `FencedOut`.
        """
        ...

    def next_due(self, *destinations: str) -> float | None:
        """Seconds until one of these has something to claim (0 if it has now), `None` if nothing
        waits."""
        ...

    def since_load(self, *destinations: str) -> float | None:
        """Seconds since a load of one of these ended (or began, if it is under way), by the
        database's clock; `None` if there has been none."""
        ...

    def claim_for_discard(
        self, token: FencingToken, reason: str, limit: int, event_ids: Sequence[str] | None = None
    ) -> Load | None:
        """A load of waiting jobs that are to be discarded: its `discard_reason` is `reason`.

        With `event_ids` those of them that are due again, now or later; without, the next of all
        that waits. `None` if there is none (left).

        Raises `FencedOut`; `UsageError` if the lane's last load is still open, or if jobs that were
        never claimed are to be discarded in another lane than `Lane.LOAD`.
        """
        ...

    # -- replays
    def begin_replay(
        self,
        token: FencingToken,
        request: ReplayRequest,
        event_types: Sequence[str],
        run: str | None,
    ) -> Replay:
        """Begin a replay, or go on with the one that was asked for with the same words and not ended.

        What other replays have left waiting is given to the load lane. `event_types` are the events that
        it is asked to go through.

        Raises `FencedOut`; `Gone` if some of them have been purged.
        """
        ...

    def replay_page(
        self, destination: str, request: ReplayRequest, event_types: Sequence[str], window: Window
    ) -> ReplayPage:
        """The first of a window's events that a request's modes and filters select."""
        ...

    def job_rows(self, destination: str, seqs: Sequence[int]) -> Sequence[JobRow]:
        """Events by their sequence numbers, in order, in the form of a job of a destination event."""
        ...

    def plan(
        self,
        token: FencingToken,
        replay: Replay,
        upto: int,
        selected: Sequence[SelectedJob],
        batch: int,
    ) -> Replay:
        """Put jobs into job groups of `batch` jobs, to be claimed in the replay lane, and move on
        to `upto`.

        Raises `FencedOut`.
        """
        ...

    def end_replay(self, token: FencingToken, replay: Replay) -> bool:
        """Note that a replay has ended; `False` if some of its jobs still wait to be run.

        Raises `FencedOut`.
        """
        ...

    def replays(self, destination: str, limit: int = 100) -> Sequence[Replay]:
        """The replays of a destination event, the newest first."""
        ...

    def unsettled(self, destination: str, limit: int = 100) -> Sequence[JobState]:
        """Jobs of its last replay that are 'discarded', or 'retrying'."""
        ...

    def pace(self, destination: str) -> float | None:
        """Jobs a second in its last loads, `None` if there were none."""
        ...

    # -- questions
    def counts(self, destination: str) -> Counts:
        """How many of its jobs are in each state. Raises `NotFound`."""
        ...

    def day_counts(self, since: date) -> Sequence[DayCount]:
        """Totals of the events received per event type and UTC day, from `since` on."""
        ...

    def event(self, event_id: str) -> StoredEvent:
        """Raises `NotFound`; `Gone` if it was received before the oldest that is kept."""
        ...

    def events(self, event_type: str | None = None, limit: int = 100) -> Sequence[StoredEvent]:
        """The newest events, newest first."""
        ...

    def history(self, event_id: str) -> Sequence[Transition]:
        """Every transition of every job of an event, in order of time.

        Raises `NotFound`, `Gone`.
        """
        ...

    def jobs(
        self, state: str, destination: str | None = None, limit: int = 100
    ) -> Sequence[JobState]:
        """Jobs in a state: 'discarded', 'retrying' (failed or unknown, due again), 'executing' or
        'awaiting'."""
        ...

    def originals(self, event_ids: Sequence[str]) -> Mapping[str, JobRow]:
        """Events by id, in the form of a job's row: the parents that outcomes point to."""
        ...

    def orphans(self, app: Blacksmith) -> Sequence[Orphan]:
        """Destination events with waiting jobs that the application does not declare."""
        ...

    def window(self, start: datetime, end: datetime) -> Window:
        """The sequence numbers among which all events received from `start` to `end` are."""
        ...

    # -- purge
    def purgeable(self, retention: Mapping[str, Retention]) -> Sequence[Purgeable]:
        """What is past its time, for each event type that is not kept forever. Changes nothing."""
        ...

    def purge(
        self, retention: Mapping[str, Retention], archive: Archive | None = None
    ) -> Iterator[PurgeStep]:
        """Remove what is past its time and not needed, with its jobs, their loads and outcomes.

        Each step is committed when it is told, and may be the last that is asked for: the next
        purge goes on. What a step deletes was archived before, if there is an archive. Ingest and
        loads go on beside it; two purges at once do each other's work.
        """
        ...

    def check_not_purged(self, event_types: Sequence[str], start: datetime) -> None:
        """Return if no event of these types that was received from `start` on has been purged.

        Raises `Gone`, which says from when on they are kept.
        """
        ...

    # -- maintenance
    def repair(self) -> str:
        """After a restore or a promotion: move the sequence past all that it made, and begin a new
        epoch, so that no new event gets the id of one that was lost. Returns the epoch."""
        ...

    def maintain(self) -> None:
        """What must be done now and then (the gateway does it every few seconds): add a row a
        minute to the time index, move the counters on, make partitions ahead, forget keys older than
        7 days."""
        ...


class Confirm(Protocol):
    """Asks the supervisor, consistently, whether an acquisition is still the caller's."""

    def __call__(self) -> bool:
        """`False` if it is lost."""
        ...
