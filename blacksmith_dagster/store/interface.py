"""The interface of the store, and its records.

The store is a database used as a queue. Events are appended to a log, in the order of their sequence
numbers, each with one job per destination event that receives it. A loader claims a batch of jobs as a
*load*, runs it, and records the result; jobs that failed, or whose load was lost, wait as a *job group*
and are claimed again.

In all methods an *event type* is the path of a source event or of an outcome (`airport/departed`,
`warehouse/flights.discarded`), and `destination` is the path of a destination event
(`warehouse/flights`). docs/glossary.md defines the other words.
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
    """Independent work on a destination event.

    Each lane has its own lock, with the key `<lane>/<destination>/<event>`, its own fencing token, and
    at most one open load.
    """

    LOAD = "load"
    DISCARD = "discard"
    REPLAY = "replay"


# ------------------------------------------------------------------------------------- ingest


class NewJob(msgspec.Struct, frozen=True):
    """A job to be stored with its event. `when_error` is what the flow's `when` raised."""

    destination: str
    when_error: str | None = None


class NewEvent(msgspec.Struct, frozen=True):
    """An event to be stored, with its jobs.

    - `payload`: the data as JSON text, stored unchanged.
    - `context`: JSON text, or `None`.
    - `key`, `ordinal`: the idempotency key, and a number that tells apart several events sent with one
      key. Together they identify an event within its event type.
    - `digest`: a hash of what was sent with the key; the same key with another digest is `KeyReused`.
    - `parent`: the public id of the event that it was made from; or, for a parent in the same request,
      its index there.
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
    """How far a reader has come: its cursor moves from `before` to `after` when this is committed.

    `before` is `None` for a reader that the store does not know yet.
    """

    reader: str
    before: str | None
    after: str


class RawRequest(msgspec.Struct, frozen=True):
    """A request or a message that could not be ingested.

    - `event_type`: the path of the source event, or the name of the source whose webhook received it.
    - `key`: an event type has one raw request per key; storing it again has no effect.
    """

    event_type: str
    body: bytes
    headers: Mapping[str, str]
    error: str
    key: str | None = None


class Quarantined(msgspec.Struct, frozen=True):
    """A raw request in quarantine, without its body: its id (`qua_...`), and its `size` in bytes."""

    id: str
    event_type: str
    received_at: datetime
    error: str
    size: int


class ListenerStatus(msgspec.Struct, frozen=True):
    """The status of a listener, which reads a subscription or a database's changes.

    - `path`: the source event's path; `holder`: the process that listens, as text.
    - `lag`: how many `unit`s ('messages', 'bytes') it has not read yet, `None` if that is unknown.
    - `read_at`: when it last committed something; `error`: why it cannot read, if it cannot.
    - `at`: when the status was stored, by the database's clock; `None` before that.
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
    """The right to claim and record in one lane, until another holder takes over the lane."""

    destination: str
    lane: Lane
    number: int
    holder: str


class JobRow(NamedTuple):
    """A job with its event. `seq` is the event's sequence number in the log, `id` its public id."""

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
    """One batch of jobs, claimed under a fencing token: one attempt of each job.

    - `job_key`: the suffix of its jobs' stable idempotency keys, see `key_of`.
    - `attempt`: the number of this attempt for each of its jobs, from 1.
    - `first_claim`: its jobs come from the log, and were never claimed before.
    - `lost_loads`: how many loads of this job group ended without a result.
    - `isolated`: its one job runs by itself, because its job group raised until the last attempt;
      `consecutive_failures` is how many isolated jobs of that group have failed in a row.
    - `discard_reason`: set if its jobs must be discarded without being run.
    - `replay`: the id of the replay that its jobs came from, if any.
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

    If it failed, it is due again after `delay` seconds, in isolation if `isolated`.
    """

    seq: int
    result: JobResult
    error: str
    delay: float | None = None
    isolated: bool = False


class LoadVerdict(msgspec.Struct, frozen=True):
    """The result of a load.

    If it `raised`, all its jobs failed with this error and are due again after `delay` seconds, in
    isolation if `isolated`. Otherwise each job succeeded, except the `deviations`. `outcomes` are the
    outcomes that a destination event receives, as events whose `parent` is the job's event.
    """

    deviations: Sequence[Deviation] = ()
    raised: str | None = None
    delay: float = 0.0
    isolated: bool = False
    outcomes: Sequence[NewEvent] = ()


# ------------------------------------------------------------------------------------- replays


class ReplayMode(Enum):
    """Which of a window's events a replay loads.

    MISSING: events that the flows want but that have no job. FAILED: events whose job was discarded.
    ALL: every event that the flows want. A pending job is never replayed: it will be loaded anyway.
    """

    MISSING = "missing"
    FAILED = "failed"
    ALL = "all"


class ReplayRequest(msgspec.Struct, frozen=True, omit_defaults=True):
    """Which events to load again. If a replay with an equal request has not ended, it is continued.

    - `start`, `end`: events received from `start` until before `end`.
    - `event_types`: only events of these types; if empty, of all types that the destination event
      receives.
    - `version`: only events of this version.
    - `error`: only jobs that were discarded with an error that contains this text.
    - `when`, `edit`: functions, as `module:function`, that select events and change their data.
    - `new_key`: give the jobs new idempotency keys. By default they keep theirs.
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
    """A replay and its progress.

    It reads the log from `after` to `upto`. Up to `planned_upto` it has put `jobs` jobs into job groups,
    of which it created `created_jobs`; `waiting` of them have not run yet. `run` is the last Dagster run
    that worked on it, and `ended_at` when all of them had run once.
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
    """An event of a replay's window, with the `state` of its job: 'missing' (it has no job),
    'succeeded', 'discarded' (`error` is the reason) or 'pending'."""

    seq: int
    id: str
    event_type: str
    received_at: datetime
    state: str
    error: str | None


class ReplayPage(NamedTuple):
    """The next candidates of a window. It was searched up to the sequence number `upto`."""

    candidates: Sequence[ReplayCandidate]
    upto: int


class SelectedJob(NamedTuple):
    """A job that a replay runs. `state` is its candidate's, `when_error` what the flow's `when` raised,
    and `payload` the data if it was edited."""

    seq: int
    state: str
    when_error: str | None = None
    payload: str | None = None


# ------------------------------------------------------------------------- counts and history


class Counts(msgspec.Struct, frozen=True):
    """How many jobs of a destination event are in each state.

    `awaiting`: never claimed; `retrying`: failed or unknown, and due again; `executing`: in an open
    load. `oldest_waiting` is when the job that has waited longest was received, or became due.
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
    """An event as it was stored, with the paths of the destination events that have a job of it."""

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

    - `state`: 'acknowledged', 'awaiting', 'executing', 'succeeded', 'failed', 'discarded' or 'unknown'.
    - `run`: the Dagster run of the load.
    - `due_at`: when a failed or unknown job runs again.
    - `replay`: the replay that runs the job again.
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
    """A job with its current state, as `blacksmith jobs list` shows it."""

    destination: str
    event_id: str
    event_type: str
    state: str
    received_at: datetime
    attempts: int
    error: str | None
    due_at: datetime | None


class Orphan(NamedTuple):
    """A destination event that the application no longer declares, and how many pending jobs it has."""

    destination: str
    pending: int


class Window(NamedTuple):
    """A range of sequence numbers, `after < seq <= upto`, that has every event between two times."""

    after: int
    upto: int


# ------------------------------------------------------------------------------------- purge


class Purgeable(NamedTuple):
    """How many events of a type are past their retention: they were received before `before`.

    `events` of them would be removed; `needed` stay, because a job, an outcome or a replay needs them.
    """

    event_type: str
    before: datetime
    events: int
    needed: int


class PurgeStep(msgspec.Struct, frozen=True):
    """What a purge has done since its last step.

    - `events`: how many were deleted.
    - `partitions`: how many table partitions were dropped (PostgreSQL's, of 5,000,000 sequence numbers
      each).
    - `file`: the file that the archive wrote.
    - `postponed`: the tables that could not be dropped because a reader has locked them; `None` if the
      step tried to drop none. Their events are no longer in the log, and the next purge drops them.
    """

    events: int = 0
    partitions: int = 0
    file: str | None = None
    postponed: Sequence[str] | None = None


NOTHING = msgspec.Raw(b"null")


class ArchivedJob(msgspec.Struct, frozen=True, omit_defaults=True):
    """A job of an archived event. `state` is 'succeeded', or 'discarded' with an error.

    `edited` is the data that the job got instead of the event's, if a replay edited it.
    """

    destination: str
    state: str
    error: str | None = None
    edited: msgspec.Raw = NOTHING


class ArchivedEvent(msgspec.Struct, frozen=True, omit_defaults=True):
    """An event that is about to be purged, as an archive stores it.

    `data` and `context` are JSON as it was stored, but without line breaks.
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
    """Where events are written before they are purged."""

    def write(self, events: Sequence[ArchivedEvent]) -> str:
        """Write events, in order of their sequence numbers; returns where, once they are durable.

        If a purge is killed, the next one may write the same events again.

        Raises `Unavailable`.
        """
        ...


# ------------------------------------------------------------------------------------- the store


class Store(Protocol):
    """The store. Threads may share it. Every call is one transaction, or a few short ones.

    Any call may raise `Unavailable`, when the database does not respond and nothing was changed. Those
    that write may raise `OutcomeUnknown`, when the connection broke during the commit.
    """

    @property
    def label(self) -> str:
        """The store's URL without credentials, for messages."""
        ...

    def close(self) -> None:
        """Close all connections."""
        ...

    def ready(self) -> None:
        """Check that the store can accept events now.

        Raises `SchemaOutdated`, `SequenceWentBack` or `Unavailable`.
        """
        ...

    def register(self, app: Blacksmith) -> None:
        """Add the application's event types and destination events; rename those with `renamed_from`.

        Every process calls it at its start; several may do so at once.
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
        """Store the events of several requests with their jobs, in one commit.

        Returns, for each request, the ids of its events, in order. An event whose key is stored already
        gets the first event's id, and no jobs. If a request reuses a key, its result is the error (it
        is not raised) and none of its events is stored; the other requests are stored. A `RawRequest`
        goes to quarantine, and its result is its id there.

        `cursors`, of different readers, are committed with the events, and the raw requests `released`
        leave quarantine. With either, the commit is all or nothing: if a request reuses a key, nothing
        is stored, and the results of the other requests are empty.

        `received_at` is for the import of history: when the events were received elsewhere. Import in
        order of time, before the store receives events of its own.

        Raises `CursorMoved` if a reader's cursor is not at `before`, `NotFound` if a released request is
        no longer in quarantine, and `UsageError` for an import out of order.
        """
        ...

    def cursor(self, reader: str) -> str | None:
        """A reader's cursor, or `None` if the store does not know the reader."""
        ...

    def quarantine(self, raw: RawRequest) -> str:
        """Store a raw request; returns its id."""
        ...

    def quarantined(self, event_type: str | None = None, limit: int = 100) -> Sequence[Quarantined]:
        """The requests in quarantine, the oldest first."""
        ...

    def in_quarantine(self, quarantine_id: str) -> RawRequest:
        """A request in quarantine, with its body. Raises `NotFound`."""
        ...

    def drop_quarantined(self, ids: Sequence[str]) -> None:
        """Delete requests in quarantine. If one does not exist, raises `NotFound` and deletes none."""
        ...

    def quarantine_sizes(self) -> Mapping[str, int]:
        """How many requests are in quarantine, by event type."""
        ...

    # -- listeners
    def note_listener(self, status: ListenerStatus) -> None:
        """Store the status of a listener, in place of the previous one."""
        ...

    def listeners(self) -> Sequence[ListenerStatus]:
        """The last status of each listener."""
        ...

    # -- loads
    def take_over(
        self, destination: str, lane: Lane, holder: str, confirm: Confirm
    ) -> FencingToken:
        """Take over a lane: from now on only the returned token may claim and record in it.

        Reads the fencing token, calls `confirm()` to check that the caller still has its lock, and then
        raises the token, but only if no other has raised it meanwhile. An open load of the lane becomes
        unknown, and its jobs are due again.

        Raises `FencedOut` if `confirm()` returns `False`, and `NotFound` if the destination event does
        not exist.
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
        """Claim the next load, of at most `limit` jobs, and commit it as executing.

        Returns `None` if nothing is due. Jobs that are due again go first; while new jobs wait, every
        second claim takes new ones. `version` is the version of the destination's schema that the
        caller's code declares; `None` if it declares none.

        Raises `FencedOut`; `MigrationPending` if the destination is being migrated, or has not reached
        that version; `CodeOutdated` if it is past it; `UsageError` if the lane's last load is still
        open.
        """
        ...

    def record(self, load: Load, verdict: LoadVerdict) -> None:
        """Close a load with its result.

        Raises `FencedOut` if another has taken over the lane, or the load is no longer open.
        """
        ...

    def release(self, load: Load) -> None:
        """Give back a load before it starts; it does not count as an attempt. Raises `FencedOut`."""
        ...

    def abandon(self, load: Load, error: str) -> None:
        """Close a load as unknown, because it ran past its timeout: its jobs are due again.

        A later `record` of it raises `FencedOut`.
        """
        ...

    def next_due(self, *destinations: str) -> float | None:
        """Seconds until the load lane of one of these can claim; 0 if it can now, `None` if no jobs
        wait."""
        ...

    def since_load(self, *destinations: str) -> float | None:
        """Seconds since the last load of one of these ended, or began if it is executing, by the
        database's clock; `None` if there has been none."""
        ...

    def claim_for_discard(
        self, token: FencingToken, reason: str, limit: int, event_ids: Sequence[str] | None = None
    ) -> Load | None:
        """Claim waiting jobs in order to discard them: `reason` becomes the load's `discard_reason`.

        With `event_ids`, only jobs of these events that wait to run again, due now or later. Without,
        the next of all waiting jobs, including those never claimed. Returns `None` if none is left.

        Raises `FencedOut`; `UsageError` if the lane's last load is still open, or if `event_ids` is
        missing in a lane other than `Lane.LOAD`.
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
        """Begin a replay, or continue one with an equal request that has not ended.

        Jobs that other replays have left waiting move to the load lane. `event_types` are the types that
        the replay reads.

        Raises `FencedOut`; `Gone` if events that it has to read are purged.
        """
        ...

    def replay_page(
        self, destination: str, request: ReplayRequest, event_types: Sequence[str], window: Window
    ) -> ReplayPage:
        """The first events of a window that a request's modes and filters select."""
        ...

    def job_rows(self, destination: str, seqs: Sequence[int]) -> Sequence[JobRow]:
        """Events by their sequence numbers, in order, as jobs of a destination event."""
        ...

    def plan(
        self,
        token: FencingToken,
        replay: Replay,
        upto: int,
        selected: Sequence[SelectedJob],
        batch: int,
    ) -> Replay:
        """Put jobs into job groups of `batch` jobs for the replay lane; the replay advances to `upto`.

        Raises `FencedOut`.
        """
        ...

    def end_replay(self, token: FencingToken, replay: Replay) -> bool:
        """Record that a replay has ended; `False` if some of its jobs still wait to run.

        Raises `FencedOut`.
        """
        ...

    def replays(self, destination: str, limit: int = 100) -> Sequence[Replay]:
        """The replays of a destination event, the newest first."""
        ...

    def unsettled(self, destination: str, limit: int = 100) -> Sequence[JobState]:
        """The jobs of its last replay that are discarded, or wait to run again."""
        ...

    def pace(self, destination: str) -> float | None:
        """Jobs per second in its last loads, `None` if there were none."""
        ...

    # -- counts and history
    def counts(self, destination: str) -> Counts:
        """How many of its jobs are in each state. Raises `NotFound`."""
        ...

    def day_counts(self, since: date) -> Sequence[DayCount]:
        """How many events were received per event type and UTC day, from `since` on."""
        ...

    def event(self, event_id: str) -> StoredEvent:
        """An event by its public id. Raises `NotFound`; `Gone` if it may have been purged."""
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
        """Events by their ids, as job rows: the originals that outcomes refer to as parents."""
        ...

    def orphans(self, app: Blacksmith) -> Sequence[Orphan]:
        """Destination events with pending jobs that the application does not declare."""
        ...

    def window(self, start: datetime, end: datetime) -> Window:
        """A range of sequence numbers that has every event received from `start` to `end`."""
        ...

    # -- purge
    def purgeable(self, retention: Mapping[str, Retention]) -> Sequence[Purgeable]:
        """What `purge` would remove, for each event type that is not kept forever. Changes nothing."""
        ...

    def purge(
        self, retention: Mapping[str, Retention], archive: Archive | None = None
    ) -> Iterator[PurgeStep]:
        """Remove the events that are past their retention and not needed, with their jobs and loads.

        Each step is committed when it is returned. The caller may stop after any step; the next purge
        continues. With an archive, a step's events are archived before they are deleted. Ingest and
        loads may run at the same time; two purges at once are safe, but repeat each other's work.
        """
        ...

    def check_not_purged(self, event_types: Sequence[str], start: datetime) -> None:
        """Raise `Gone` if events of these types received at or after `start` may have been purged.

        The error says since when they are kept.
        """
        ...

    # -- maintenance
    def repair(self) -> str:
        """Repair a restored or promoted store: move the sequence past every number used, and begin a new
        epoch, so that no new event gets the id of a lost one. Returns the epoch."""
        ...

    def maintain(self) -> None:
        """Do the regular maintenance: add a row per minute to the time index, update the totals,
        create table partitions ahead, and delete keys older than 7 days. The gateway calls it every few
        seconds."""
        ...


class Confirm(Protocol):
    """Asks the supervisor, by a consistent read, whether the caller still has its lock."""

    def __call__(self) -> bool:
        """`False` if the lock is lost."""
        ...
