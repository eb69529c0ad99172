"""A store's database: transactions, clock, names, and what each dialect does in its own way."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import ColumnElement, Connection, Engine, Table, select

from blacksmith_dagster.errors import NotFound, Unavailable
from blacksmith_dagster.store.epochs import Epochs
from blacksmith_dagster.store.idempotency import EventRef, StoredKey
from blacksmith_dagster.store.job_groups import WaitingGroup
from blacksmith_dagster.store.partitions import Partitions
from blacksmith_dagster.store.records import FencingToken, JobRow, Lane, NewEvent
from blacksmith_dagster.store.tables import OutcomeState, destination_events, epochs, event_types

T = TypeVar("T")

_COMMIT_ATTEMPTS = 20


class LaneState(NamedTuple):
    """A lane's fencing token, its last load, and what it could claim now.

    - `token`, `holder`: its latest fencing token.
    - `now`: the database's clock.
    - `last`: the id of its last load, 0 if there has been none. `open`: whether that is executing.
      `first_claim`: whether it was the first of its jobs (then the next claim prefers due groups).
    - `position`, `claimed`: as in that load's row.
    - `new_upto`: the last of the new jobs that a claim would get; 0 without any.
    - `due`: whether a job group is due.
    """

    token: int
    holder: str
    now: datetime
    last: int
    open: bool
    first_claim: bool
    position: int
    claimed: int
    new_upto: int
    due: bool

    @classmethod
    def read(
        cls, token: int, holder: str, now: datetime, last: int | None, *rest: Any
    ) -> LaneState:
        """The state from the database's row, in which NULLs mean that the lane has had no load."""
        is_open, first_claim, position, claimed, new_upto, due = rest
        return cls(
            token,
            holder,
            now,
            last or 0,
            bool(is_open),
            last is None or bool(first_claim),
            position or 0,
            claimed or 0,
            new_upto or 0,
            bool(due),
        )


class OutcomeRow(NamedTuple):
    """A row of `outcomes`: a job of a load that did not succeed."""

    load: int
    seq: int
    destination: int
    state: OutcomeState
    error: str
    listing: int | None


class GroupJobRow(NamedTuple):
    """A row of `group_jobs`: a job in the listing of a replay."""

    destination: int
    seq: int
    listing: int
    created: bool
    when_error: str | None


class CommitConflict(Exception):
    """The commit was rolled back, because the store has changed meanwhile: run it again."""


class NoPartition(CommitConflict):
    """The sequence has run past the table partitions that were created ahead."""


class Database(ABC):
    """A database that keeps a store, or the tracking of migrations. Threads may share it.

    Any call may raise `Unavailable`, when the database does not respond and nothing was changed. Those
    that write may raise `OutcomeUnknown`, when the connection broke during the commit.

    - `label`: the database's URL without credentials, for messages.
    """

    partitions: Partitions | None = None
    """The table partitions of the log, if the database has any."""

    def __init__(self, engine: Engine, label: str) -> None:
        self.engine = engine
        self.label = label
        self.read_names()

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()

    # -- transactions
    @abstractmethod
    def writing(self) -> AbstractContextManager[Connection]:
        """A transaction that may write. Its end commits it, an exception rolls it back."""

    @abstractmethod
    def one_statement(self) -> AbstractContextManager[Connection]:
        """A connection for one statement that writes, which is a transaction by itself."""

    def retry_conflicts(self, run: Callable[[], T]) -> T:
        """Call `run`, which commits; again if it raises `CommitConflict`.

        Raises `Unavailable` if that happens every time.
        """
        for _ in range(_COMMIT_ATTEMPTS):
            try:
                return run()
            except NoPartition:
                self.make_partitions()
            except CommitConflict:
                pass
        raise Unavailable(
            f"the store {self.label} did not accept a commit in {_COMMIT_ATTEMPTS} attempts; nothing "
            "was changed: try again"
        )

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection for reads. Its statements may see different states; in `snapshot` they don't."""
        with self.engine.connect() as conn:
            yield conn

    @contextmanager
    def snapshot(self) -> Iterator[Connection]:
        """A read-only transaction whose statements all see the same state."""
        with self.reading() as conn:
            yield conn

    # -- clock and sequence
    @abstractmethod
    def clock(self) -> ColumnElement[datetime]:
        """The database's clock, as a SQL expression."""

    def now(self, conn: Connection) -> datetime:
        """The time by the database's clock."""
        now: datetime = conn.execute(select(self.clock())).scalar_one()
        return now

    @abstractmethod
    def high_watermark(self, conn: Connection) -> int:
        """A sequence number: each event up to it is committed, or never will be."""

    @abstractmethod
    def sequence(self, conn: Connection) -> int:
        """The last sequence number given to an event."""

    @abstractmethod
    def set_sequence(self, conn: Connection, seq: int) -> None:
        """Set the sequence, so that the next event gets `seq + 1`."""

    @abstractmethod
    def quarantine_ids(self, conn: Connection, number: int) -> Sequence[int]:
        """As many new ids for requests in quarantine."""

    # -- names
    def read_names(self) -> None:
        """Read the names of event types and destination events, and the epochs of public ids."""
        with self.reading() as conn:
            self.event_types = _ids_by_path(conn, event_types)
            self.destinations = _ids_by_path(conn, destination_events)
            first_seqs = select(epochs.c.first_seq, epochs.c.epoch).order_by(epochs.c.first_seq)
            self.epochs = Epochs(conn.execute(first_seqs).tuples().all())
        self.event_type_paths = {number: path for path, number in self.event_types.items()}

    def event_type(self, path: str) -> int:
        """The number of an event type. Raises `NotFound`."""
        number = self.event_types.get(path)
        if number is None:
            self.read_names()
            number = self.event_types.get(path)
        if number is None:
            raise _not_registered("event", path, self.event_types)
        return number

    def event_type_path(self, number: int) -> str:
        """The path of an event type; another process may have registered it after this one began."""
        if number not in self.event_type_paths:
            self.read_names()
        return self.event_type_paths[number]

    def destination(self, path: str) -> int:
        """The number of a destination event. Raises `NotFound`."""
        number = self.destinations.get(path)
        if number is None:
            self.read_names()
            number = self.destinations.get(path)
        if number is None:
            raise _not_registered("destination event", path, self.destinations)
        return number

    # -- the hot statements
    @abstractmethod
    def insert_events(
        self,
        conn: Connection,
        new: Sequence[NewEvent],
        parents: Mapping[int, EventRef],
        received_at: datetime | None = None,
    ) -> list[int]:
        """Insert events and their jobs; returns their sequence numbers. `parents` as in `Resolution`.

        Raises `NoPartition`.
        """

    def parent_seqs(
        self,
        new: Sequence[NewEvent],
        parents: Mapping[int, EventRef],
        number: Callable[[int], int],
    ) -> list[int | None]:
        """The parent of each event: its sequence number, or `number(index)` of one in `new`."""

        def parent_of(index: int, parent: str | int) -> int:
            if isinstance(parent, str):
                return self.epochs.seq_of(parent)
            resolved = parents[index]
            return resolved.seq if isinstance(resolved, StoredKey) else number(resolved)

        return [
            None if event.parent is None else parent_of(index, event.parent)
            for index, event in enumerate(new)
        ]

    def make_partitions(self) -> None:
        """Create table partitions ahead of the sequence, if the database has any."""
        return

    @abstractmethod
    def look_up_keys(self, conn: Connection, rows: Sequence[tuple[int, str, int]]) -> Iterable[Any]:
        """The keys (event type, key, ordinal) that are stored, each with its seq and digest."""

    @abstractmethod
    def write_keys(
        self, conn: Connection, rows: Sequence[tuple[int, str, int, int, bytes]]
    ) -> None:
        """Insert new keys (event type, key, ordinal), each with the seq and the digest of its event.

        Raises `CommitConflict` if another commit has written one since they were looked up.
        """

    @abstractmethod
    def enter_lane(self, conn: Connection, destination: int, lane: Lane, wanted: int) -> LaneState:
        """Lock a lane for this transaction, without writing, and read its state.

        `new_upto` in the state is the last of at most `wanted` new jobs.
        """

    @abstractmethod
    def close_succeeded(
        self, conn: Connection, destination: int, load_id: int, token: FencingToken
    ) -> tuple[tuple[int, str], bool]:
        """Close an open load whose jobs all succeeded, if the token is its lane's latest.

        Returns the lane's latest token, as its number and holder, and whether the load was closed.
        """

    @abstractmethod
    def jobs_between(
        self, conn: Connection, destination: int, after: int, upto: int
    ) -> list[JobRow]:
        """The jobs of a range of the log: `after < seq <= upto`."""

    @abstractmethod
    def jobs_of_groups(
        self, conn: Connection, destination: int, load_id: int, groups: Sequence[WaitingGroup]
    ) -> list[JobRow]:
        """The jobs of the job groups assigned to a load."""

    @abstractmethod
    def insert_outcomes(self, conn: Connection, rows: Sequence[OutcomeRow]) -> None:
        """Insert the outcomes of jobs that did not succeed."""

    @abstractmethod
    def insert_group_jobs(self, conn: Connection, rows: Sequence[GroupJobRow]) -> None:
        """Insert the jobs in the listings of a replay."""

    def job_rows(self, rows: Sequence[Any]) -> list[JobRow]:
        """Rows of `group_members.JOB_COLUMNS` as jobs."""
        ids = self.epochs.ids_of(row[0] for row in rows)
        event_types = {number: self.event_type_path(number) for number in {row[1] for row in rows}}
        id_of, new = self.epochs.id_of, tuple.__new__
        return [
            # This runs for every job, and the constructor would take half as long again.
            new(
                JobRow,
                (
                    seq,
                    id_,
                    event_types[event_type],
                    *columns,
                    None if parent is None else id_of(parent),
                    when_error,
                ),
            )
            for id_, (seq, event_type, *columns, parent, when_error) in zip(ids, rows, strict=True)
        ]


def _ids_by_path(conn: Connection, table: Table) -> dict[str, int]:
    return dict(conn.execute(select(table.c.path, table.c.id)).tuples().all())


def _not_registered(what: str, path: str, existing: Iterable[str]) -> NotFound:
    return NotFound(
        f"this store has no {what} {path!r}; it has {', '.join(sorted(existing)) or 'none yet'}; "
        "register(app) adds those of an application"
    )
