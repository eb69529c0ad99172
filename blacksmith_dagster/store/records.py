"""The records of the store: what its parts take and return.

The store is a database used as a queue: events are appended to a log, in the order of their sequence
numbers, each with one job per destination event that receives it. A loader claims a batch of jobs as a
*load*, runs it, and records the result; jobs that failed, or whose load was lost, wait as a *job group*
and are claimed again.

In the store an *event type* is the path of a source event or of an outcome (`airport/departed`,
`warehouse/flights.discarded`), and `destination` is the path of a destination event
(`warehouse/flights`). docs/glossary.md defines the other words.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime
from enum import Enum, StrEnum
from typing import NamedTuple, Protocol, TypeAlias

import msgspec

from blacksmith_dagster.pipeline.event import JobResult

Confirm: TypeAlias = Callable[[], bool]
"""Asks the supervisor, by a consistent read, whether the caller still has its lock."""


class Lane(StrEnum):
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


class JobCounts(msgspec.Struct, frozen=True):
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
