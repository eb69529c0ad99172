"""What the rest of the system asks of a store: the log of events and jobs.

The words: a *kind* is what a receivable's path names (`airport/departed`,
`warehouse/flights.discarded`); `destination` is a destination event's path (`warehouse/flights`).
A *set* is jobs that run together: a range of the log, or a list. A *load* is one run of one set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, datetime
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple, Protocol

import msgspec

from blacksmith_dagster.errors import KeyReused
from blacksmith_dagster.pipeline.batch import Said

if TYPE_CHECKING:
    from blacksmith_dagster.pipeline.application import Blacksmith


class Lane(Enum):
    """Work of one kind on a destination event: each lane has its own lock, fence and open load.

    The lock's key is `<lane>/<destination>/<event>`.
    """

    LOAD = "load"
    DISCARD = "discard"


# ------------------------------------------------------------------------------------- ingest


class NewJob(msgspec.Struct, frozen=True):
    """A job to be made with its event. `when_error`: the flow's `when` raised this."""

    destination: str
    when_error: str | None = None


class NewEvent(msgspec.Struct, frozen=True):
    """An event to be kept, with its jobs.

    - `payload`: the data as JSON text, kept to the letter.
    - `context`: JSON text, or `None`.
    - `key`, `ordinal`: together they make the event once within its kind.
    - `digest`: of what the key stands for; the same key with another digest is `KeyReused`.
    - `parent`: the public id of the event that it came of.
    """

    kind: str
    payload: str
    jobs: Sequence[NewJob] = ()
    key: str | None = None
    ordinal: int = 0
    digest: bytes | None = None
    context: str | None = None
    version: str | None = None
    sent_at: datetime | None = None
    parent: str | None = None


class Position(msgspec.Struct, frozen=True):
    """How far a source was read: `reader` was at `before` and is at `after` once this is kept.

    `before` is `None` for a reader that the store has not seen.
    """

    reader: str
    before: str | None
    after: str


class Raw(msgspec.Struct, frozen=True):
    """A raw request that an extract function could not take."""

    kind: str
    body: bytes
    headers: Mapping[str, str]
    error: str


class Quarantined(msgspec.Struct, frozen=True):
    """A raw request in quarantine, with its id (`qua_...`) and the time when it came."""

    id: str
    received_at: datetime
    raw: Raw


# ------------------------------------------------------------------------------------- loads


class Fence(msgspec.Struct, frozen=True):
    """The right to claim and record in one lane, until another takes over."""

    destination: str
    lane: Lane
    token: int
    holder: str


class JobRow(NamedTuple):
    """A job as it was kept. `seq` orders the log; `id` is the event's public id."""

    seq: int
    id: str
    kind: str
    payload: str
    received_at: datetime
    key: str | None
    context: str | None
    version: str | None
    sent_at: datetime | None
    parent: str | None
    when_error: str | None


class Load(msgspec.Struct, frozen=True):
    """One run of one set of jobs, claimed under a fence.

    - `job_key`: what its jobs' stable idempotency keys end in, see `key_of`.
    - `attempt`: the number of this attempt for each of its jobs (1 is the first).
    - `losses`: how often this set's loads ended without a word.
    - `alone`: this job runs alone because its set raised until its last attempt; `strikes` is how
      many of the set's jobs have failed so in a row.
    - `condemned`: why its jobs are to be discarded without being run, if they are.
    """

    id: int
    fence: Fence
    rows: Sequence[JobRow]
    job_key: str
    attempt: int
    fresh: bool
    losses: int = 0
    alone: bool = False
    strikes: int = 0
    condemned: str | None = None

    def key_of(self, event_id: str) -> str:
        """The stable idempotency key of the job of this event."""
        return f"{event_id}-{self.job_key}"


class Deviation(msgspec.Struct, frozen=True):
    """A job of a load that did not succeed.

    A failed one is due again after `delay` seconds, alone if `alone`.
    """

    seq: int
    said: Said
    error: str
    delay: float | None = None
    alone: bool = False


class Verdict(msgspec.Struct, frozen=True):
    """How a load ended.

    Either `raised` (all its jobs failed by one error, and the set is due again after `delay`
    seconds, alone if `alone`), or each job succeeded except the `deviations`.
    `outcomes` are the events that someone receives of it; their `parent` is the job's event.
    """

    deviations: Sequence[Deviation] = ()
    raised: str | None = None
    delay: float = 0.0
    alone: bool = False
    outcomes: Sequence[NewEvent] = ()


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
    """How many events of a kind were received on a UTC day."""

    kind: str
    day: date
    events: int


class StoredEvent(msgspec.Struct, frozen=True):
    """An event as it was kept, with the paths of the destination events that have a job of it."""

    id: str
    seq: int
    kind: str
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
    job runs again.
    """

    destination: str
    state: str
    at: datetime
    attempt: int
    load: int | None = None
    run: str | None = None
    error: str | None = None
    due_at: datetime | None = None


class JobState(msgspec.Struct, frozen=True):
    """A job with its present state, as `jobs list` shows it."""

    destination: str
    event_id: str
    kind: str
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


# ------------------------------------------------------------------------------------- the store


class Store(Protocol):
    """The log. Safe to share between threads; every call is one transaction or a few short ones.

    Any call may raise `Unavailable` when the database does not answer (nothing was changed), and
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
        """Return if the store can take events now.

        Raises `SchemaOutdated`, `SequenceWentBack` or `Unavailable`.
        """
        ...

    def register(self, app: Blacksmith) -> None:
        """Make the application's kinds and destination events known; rename what was renamed.

        Called by every process at its start, and safe to be called by several at once.
        """
        ...

    # -- ingest
    def ingest(
        self,
        requests: Sequence[Sequence[NewEvent]],
        *,
        position: Position | None = None,
    ) -> list[list[str] | KeyReused]:
        """Keep the events of several requests with their jobs, in one commit.

        Returns for each request the ids of its events, in order; an event whose key is known gets
        the first one's id and makes no job. A request with a reused key is answered by the error,
        as a value, and leaves nothing; the others are kept. With a `position`, it is committed with
        the events; `PositionMoved` is raised if the reader is elsewhere.
        """
        ...

    def position(self, reader: str) -> str | None:
        """Where a reader is, or `None` if the store has not seen it."""
        ...

    def quarantine(self, raw: Raw) -> str:
        """Keep a raw request; returns its id."""
        ...

    def quarantined(self, limit: int = 100) -> Sequence[Quarantined]:
        """The oldest requests in quarantine."""
        ...

    def quarantine_size(self) -> int:
        """How many requests are in quarantine; reads none of them."""
        ...

    # -- loads
    def take_over(self, destination: str, lane: Lane, holder: str, confirm: Confirm) -> Fence:
        """Become the one whose claims and records count in this lane.

        Reads the fence, asks `confirm()` whether the caller's lock is still its own, and moves the
        fence on only if nobody else has meanwhile. An open load of the lane becomes `unknown`, and
        its jobs are due again.

        Raises `Fenced` if `confirm()` says no, `Unknown` if there is no such destination event.
        """
        ...

    def claim(
        self,
        fence: Fence,
        limit: int,
        max_attempts: int,
        run: str | None = None,
        version: int | None = None,
    ) -> Load | None:
        """The next load of at most `limit` jobs, committed as executing; `None` if nothing is due.

        What is due again goes first, except that while new jobs wait every second claim takes them.
        A lane has one open load at a time. `version` is that of its destination's schema, as the
        caller's code declares it; with `None` no migration is waited for but one under way.

        Raises `Fenced`; `NotMigrated` and `CodeOutdated` if the destination is not of that version, or
        is being migrated; `UsageError` if the lane's last load is still open.
        """
        ...

    def record(self, load: Load, verdict: Verdict) -> None:
        """Close a load: all of its jobs succeeded except what the verdict says.

        Raises `Fenced`: another has taken over, or the load is no longer open.
        """
        ...

    def release(self, load: Load) -> None:
        """Give back a load that was claimed and not started: it counts nothing. Raises `Fenced`."""
        ...

    def abandon(self, load: Load, error: str) -> None:
        """Close a load as `unknown` (it ran past its time-out): its jobs are due again.

        A late `record` of it raises `Fenced`.
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

    def condemn(
        self, fence: Fence, why: str, limit: int, event_ids: Sequence[str] | None = None
    ) -> Load | None:
        """A load of waiting jobs that are to be discarded: `condemned` says why.

        With `event_ids` those of them that are due again, now or later; without, the next of all
        that waits. `None` if there is none (left).

        Raises `Fenced`; `UsageError` if the lane's last load is still open, or if jobs that were
        never claimed are to be condemned in another lane than `Lane.LOAD`.
        """
        ...

    # -- questions
    def counts(self, destination: str) -> Counts:
        """How many of its jobs are in each state. Raises `Unknown`."""
        ...

    def day_counts(self, since: date) -> Sequence[DayCount]:
        """Totals of the events received per kind and UTC day, from `since` on."""
        ...

    def event(self, event_id: str) -> StoredEvent:
        """Raises `Unknown`."""
        ...

    def events(self, kind: str | None = None, limit: int = 100) -> Sequence[StoredEvent]:
        """The newest events, newest first."""
        ...

    def history(self, event_id: str) -> Sequence[Transition]:
        """Every transition of every job of an event, in order of time. Raises `Unknown`."""
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

    # -- upkeep
    def repair(self) -> str:
        """After a restore or a promotion: move the sequence past all that it made, and begin a new
        epoch, so that no new event gets the id of one that was lost. Returns the epoch."""
        ...

    def maintain(self) -> None:
        """What must be done now and then (the gateway does it every few seconds): write a mark a
        minute, move the counters on, make partitions ahead, forget keys older than 7 days."""
        ...


class Confirm(Protocol):
    """Asks the supervisor, consistently, whether an acquisition is still the caller's."""

    def __call__(self) -> bool:
        """`False` if it is lost."""
        ...
