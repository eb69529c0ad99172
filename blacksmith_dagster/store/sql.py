"""The store on a SQL database: everything that is the same for PostgreSQL and SQLite.

Each adapter adds how to connect, to lock and append, and to read the high watermark.
"""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec
from sqlalchemy import ColumnElement, Connection, Engine, select, update

from blacksmith_dagster.errors import (
    FencedOut,
    Gone,
    KeyReused,
    NotFound,
    SequenceWentBack,
    UsageError,
)
from blacksmith_dagster.pipeline.event import JobResult
from blacksmith_dagster.store import (
    counts,
    group_members,
    history,
    idempotency,
    loads,
    maintenance,
    migration_barrier,
    quarantine,
    readers,
    replays,
    tables,
)
from blacksmith_dagster.store.claims import Claim, LaneState
from blacksmith_dagster.store.epochs import Epochs
from blacksmith_dagster.store.interface import (
    Archive,
    Confirm,
    Counts,
    Cursor,
    DayCount,
    FencingToken,
    JobRow,
    JobState,
    Lane,
    ListenerStatus,
    Load,
    LoadVerdict,
    NewEvent,
    Orphan,
    Purgeable,
    PurgeStep,
    Quarantined,
    RawRequest,
    Replay,
    ReplayCandidate,
    ReplayPage,
    ReplayRequest,
    SelectedJob,
    StoredEvent,
    Transition,
    Window,
)
from blacksmith_dagster.store.job_groups import WaitingGroup
from blacksmith_dagster.store.purge import Purge
from blacksmith_dagster.store.retention import raise_if_purged, why_gone
from blacksmith_dagster.store.tables import DONE, FAILED, LANE_NUMBERS, RELEASED, UNKNOWN

if TYPE_CHECKING:
    from blacksmith_dagster.pipeline.application import Blacksmith
    from blacksmith_dagster.pipeline.retention import Retention
    from blacksmith_dagster.store.partitions import Partitions


class SQLStore(ABC):
    """A `Store` on SQLAlchemy. The protocol documents its methods."""

    partitions: Partitions | None = None
    """The table partitions of the log, if the database has any."""

    def __init__(self, engine: Engine, label: str) -> None:
        self.engine = engine
        self.label = label
        self._event_types: dict[str, int] = {}
        self._event_type_paths: dict[int, str] = {}
        self._destinations: dict[str, int] = {}
        self._read_names()

    # -- what the adapters implement
    @abstractmethod
    def writing(self) -> Any:
        """A context manager: a transaction that may write; gives its `Connection`."""

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

    @abstractmethod
    def _clock(self) -> ColumnElement[datetime]:
        """The database's clock, as a SQL expression."""

    def _now(self, conn: Connection) -> datetime:
        now: datetime = conn.execute(select(self._clock())).scalar_one()
        return now

    @abstractmethod
    def _high_watermark(self, conn: Connection) -> int:
        """A sequence number: each event up to it is committed, or never will be."""

    @abstractmethod
    def _sequence(self, conn: Connection) -> int:
        """The last sequence number given to an event."""

    @abstractmethod
    def _set_sequence(self, conn: Connection, seq: int) -> None:
        """Set the sequence, so that the next event gets `seq + 1`."""

    @abstractmethod
    def _append(
        self,
        conn: Connection,
        new: Sequence[NewEvent],
        parents: Mapping[int, int],
        received_at: datetime | None = None,
    ) -> list[int]:
        """Insert events and their jobs; returns their sequence numbers. `parents` as in `Resolution`."""

    def _parents(self, new: Sequence[NewEvent], parents: Mapping[int, int]) -> list[int | None]:
        """The parent of each event: its sequence number, or `~index` of one in `new`."""
        return [
            None
            if event.parent is None
            else parents[index]
            if isinstance(event.parent, int)
            else self._epochs.seq_of(event.parent)
            for index, event in enumerate(new)
        ]

    @abstractmethod
    def _look_up_keys(
        self, conn: Connection, rows: Sequence[tuple[int, str, int]]
    ) -> Iterable[Any]:
        """The keys (event type, key, ordinal) that are stored, each with its seq and digest."""

    @abstractmethod
    def _write_keys(
        self, conn: Connection, rows: Sequence[tuple[int, str, int, int, bytes]]
    ) -> None:
        """Insert new keys (event type, key, ordinal), each with the seq and the digest of its event."""

    @abstractmethod
    def _insert_outcomes(self, conn: Connection, rows: Sequence[loads.OutcomeRow]) -> None:
        """Insert the outcomes of jobs that did not succeed."""

    @abstractmethod
    def _enter_lane(self, conn: Connection, destination: int, lane: int, wanted: int) -> LaneState:
        """Lock a lane for this transaction, without writing, and read its state.

        `next` in the state is the last of at most `wanted` new jobs.
        """

    @abstractmethod
    def _jobs_between(
        self, conn: Connection, destination: int, after: int, upto: int
    ) -> list[JobRow]:
        """The jobs of a range of the log: `after < seq <= upto`."""

    def _jobs_of_groups(
        self,
        conn: Connection,
        destination: int,
        load_id: int,
        groups: Sequence[WaitingGroup],  # noqa: ARG002 - an adapter chooses the fastest query by it
    ) -> list[JobRow]:
        """The jobs of the job groups assigned to a load."""
        return self._jobs(group_members.jobs_of_load(conn, load_id, destination))

    @abstractmethod
    def _insert_group_jobs(self, conn: Connection, rows: Sequence[replays.GroupJob]) -> None:
        """Insert the jobs in the listings of a replay."""

    def _jobs(self, rows: Sequence[Any]) -> list[JobRow]:
        """Rows of `group_members.JOB_COLUMNS` as jobs."""
        ids = self._epochs.ids_of(row[0] for row in rows)
        event_types, id_of, new = self._event_type_paths, self._epochs.id_of, tuple.__new__
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

    # -- names
    def _read_names(self) -> None:
        with self.reading() as conn:
            event_types, events = tables.event_types.c, tables.destination_events.c
            self._event_types = dict(
                conn.execute(select(event_types.path, event_types.id)).tuples().all()
            )
            self._event_type_paths = {number: path for path, number in self._event_types.items()}
            self._destinations = dict(conn.execute(select(events.path, events.id)).tuples().all())
            epochs = select(tables.epochs.c.first_seq, tables.epochs.c.epoch)
            self._epochs = Epochs(
                [(row.first_seq, row.epoch) for row in conn.execute(epochs.order_by("first_seq"))]
            )

    def register(self, app: Blacksmith) -> None:
        received = {path for path in app.receivers if path not in app.source_events}
        webhooks = {webhook.path for source in app.sources.values() for webhook in source.webhooks}
        with self.writing() as conn:
            for event in app.destination_events.values():
                if event.renamed_from:
                    old = f"{event.destination.name}/{event.renamed_from}"
                    maintenance.rename(conn, tables.destination_events, old, event.path)
                    for outcome in event.outcomes:
                        maintenance.rename(
                            conn, tables.event_types, f"{old}.{outcome.name}", outcome.path
                        )
            maintenance.add_paths(
                conn, tables.event_types, [*app.source_events, *received, *webhooks]
            )
            maintenance.add_paths(conn, tables.destination_events, list(app.destination_events))
            maintenance.make_fencing_tokens(conn, LANE_NUMBERS.values())
        self._read_names()

    def _destination(self, path: str) -> int:
        if path not in self._destinations:
            self._read_names()
        if path not in self._destinations:
            raise NotFound(
                f"this store has no destination event {path!r}; it has "
                f"{', '.join(sorted(self._destinations)) or 'none yet'}; register(app) adds those of an "
                "application"
            )
        return self._destinations[path]

    def _event_type(self, path: str) -> int:
        if path not in self._event_types:
            self._read_names()
        if path not in self._event_types:
            raise NotFound(
                f"this store has no event {path!r}; it has "
                f"{', '.join(sorted(self._event_types)) or 'none yet'}; register(app) adds those of an "
                "application"
            )
        return self._event_types[path]

    # -- ingest
    def ingest(
        self,
        requests: Sequence[Sequence[NewEvent] | RawRequest],
        *,
        cursors: Sequence[Cursor] = (),
        released: Sequence[str] = (),
        received_at: datetime | None = None,
    ) -> list[list[str] | KeyReused]:
        raw_requests = [request for request in requests if isinstance(request, RawRequest)]
        extracted = [request for request in requests if not isinstance(request, RawRequest)]
        with self.writing() as conn:
            if received_at is not None:
                maintenance.begin_import(conn, received_at, self._high_watermark(conn))
            readers.move_cursors(conn, cursors)
            quarantine.drop(conn, released)
            quarantined = [[id_] for id_ in self._quarantine(conn, raw_requests)]
            known = self._known_keys(conn, idempotency.keys_of(extracted))
            resolution = idempotency.resolve(extracted, known)
            if resolution.rejected and (cursors or released):
                conn.rollback()
                results, quarantined = resolution.rejections, [[] for _ in raw_requests]
            else:
                results = self._append_with_keys(conn, resolution, received_at)
        if not raw_requests:
            return results
        in_order, raw_in_order = iter(results), iter(quarantined)
        return [
            next(raw_in_order if isinstance(request, RawRequest) else in_order)
            for request in requests
        ]

    def _append_with_keys(
        self, conn: Connection, resolution: idempotency.Resolution, received_at: datetime | None
    ) -> list[list[str] | KeyReused]:
        """Append the new events of a commit, with their keys; returns the requests' results.

        The keys are written in sorted order, so that concurrent commits cannot deadlock.
        """
        new = resolution.new
        seqs = self._append(conn, new, resolution.parents, received_at) if new else []
        if received_at is not None and seqs:
            maintenance.end_import(conn, received_at, max(seqs))
        written = sorted(
            (*self._key(key), seqs[index], new[index].digest or b"")
            for key, index in resolution.claimed.items()
        )
        if written:
            self._write_keys(conn, written)
        return resolution.results(self._epochs.ids_of(seqs), self._epochs.id_of)

    def _known_keys(
        self, conn: Connection, wanted: Iterable[idempotency.Key]
    ) -> Mapping[idempotency.Key, idempotency.StoredKey]:
        """The keys of a commit that are stored already."""
        keys = {self._key(key): key for key in wanted}
        if not keys:
            return {}
        return {
            keys[event_type, key, ordinal]: idempotency.StoredKey(seq, digest)
            for event_type, key, ordinal, seq, digest in self._look_up_keys(conn, list(keys))
        }

    def _key(self, key: idempotency.Key) -> tuple[int, str, int]:
        return self._event_type(key[0]), key[1], key[2]

    def cursor(self, reader: str) -> str | None:
        with self.reading() as conn:
            return readers.cursor(conn, reader)

    def quarantine(self, raw: RawRequest) -> str:
        with self.writing() as conn:
            return self._quarantine(conn, [raw])[0]

    def _quarantine(self, conn: Connection, raw_requests: Sequence[RawRequest]) -> list[str]:
        """Add raw requests; returns their ids, in order."""
        if not raw_requests:
            return []
        now = self._now(conn)
        event_types = [self._event_type(raw.event_type) for raw in raw_requests]
        # In order of their keys, so that concurrent commits cannot deadlock.
        in_order = sorted(
            range(len(raw_requests)), key=lambda n: (event_types[n], raw_requests[n].key or "")
        )
        numbers = {
            n: quarantine.insert_raw(conn, event_types[n], raw_requests[n], now) for n in in_order
        }
        return [quarantine.format_quarantine_id(numbers[n]) for n in range(len(raw_requests))]

    def quarantined(self, event_type: str | None = None, limit: int = 100) -> Sequence[Quarantined]:
        with self.reading() as conn:
            rows = quarantine.oldest(
                conn, None if event_type is None else self._event_type(event_type), limit
            )
        return [
            Quarantined(
                quarantine.format_quarantine_id(row.id),
                row.path,
                row.received_at,
                row.error,
                row.size,
            )
            for row in rows
        ]

    def in_quarantine(self, quarantine_id: str) -> RawRequest:
        with self.reading() as conn:
            row = quarantine.find_quarantined(conn, quarantine_id)
        return RawRequest(row.path, row.body, msgspec.json.decode(row.headers), row.error, row.key)

    def drop_quarantined(self, ids: Sequence[str]) -> None:
        with self.writing() as conn:
            quarantine.drop(conn, ids)

    def quarantine_sizes(self) -> Mapping[str, int]:
        with self.reading() as conn:
            return quarantine.sizes(conn)

    # -- listeners
    def note_listener(self, status: ListenerStatus) -> None:
        with self.writing() as conn:
            readers.note_listener(conn, status, self._now(conn))

    def listeners(self) -> Sequence[ListenerStatus]:
        with self.reading() as conn:
            return readers.listener_statuses(conn)

    # -- loads
    def take_over(
        self, destination: str, lane: Lane, holder: str, confirm: Confirm
    ) -> FencingToken:
        destination_id, lane_number = self._destination(destination), LANE_NUMBERS[lane]
        tokens = tables.fencing_tokens
        of_lane = (tokens.c.destination == destination_id) & (tokens.c.lane == lane_number)
        while True:
            with self.reading() as conn:
                latest = conn.execute(select(tokens.c.token).where(of_lane)).scalar_one()
            if not confirm():
                raise FencedOut(f"{destination}: the lock was lost before it could be used")
            with self.writing() as conn:
                raised = update(tokens).where(of_lane, tokens.c.token == latest)
                if conn.execute(raised.values(token=latest + 1, holder=holder)).rowcount == 1:
                    state = self._enter_lane(conn, destination_id, lane_number, 0)
                    if state.open:
                        loads.close_load(
                            conn, state.last, UNKNOWN, state.now, "its loader was lost"
                        )
                        loads.requeue(conn, state.last, state.now, lost_loads=1)
                    return FencingToken(destination, lane, latest + 1, holder)

    def _lock_lane(
        self, conn: Connection, token: FencingToken, wanted: int = 0
    ) -> tuple[int, LaneState]:
        """Lock the token's lane; returns the destination event's id, and the lane's state.

        Raises `FencedOut` unless the token is still the lane's latest.
        """
        destination = self._destination(token.destination)
        state = self._enter_lane(conn, destination, LANE_NUMBERS[token.lane], wanted)
        if (state.token, state.holder) != (token.number, token.holder):
            raise fenced_out(token, state.holder)
        return destination, state

    def _begin_claim(
        self, conn: Connection, token: FencingToken, limit: int, run: str | None
    ) -> Claim:
        """Lock the lane for a claim. Raises `UsageError` if its last load is still open."""
        destination, state = self._lock_lane(conn, token, limit)
        if state.open:
            raise UsageError(
                f"{token.destination}: load {state.last} is still open; record, release or abandon "
                "it before the next claim"
            )
        return Claim(self, conn, token, destination, state, limit, run)

    def _close_load(
        self, conn: Connection, load: Load, state: int, **columns: Any
    ) -> tuple[int, LaneState]:
        """Lock the lane and close its open load; returns what `_lock_lane` does.

        Raises `FencedOut` unless the load is open and its token the lane's latest.
        """
        destination, lane = self._lock_lane(conn, load.token)
        if not loads.close_load(conn, load.id, state, lane.now, **columns):
            raise no_longer_open(load)
        return destination, lane

    def claim(
        self,
        token: FencingToken,
        limit: int,
        max_attempts: int,
        run: str | None = None,
        version: int | None = None,
    ) -> Load | None:
        with self.writing() as conn:
            claim = self._begin_claim(conn, token, limit, run)
            migration_barrier.check(conn, token.destination, version)
            if claim.state.first_claim:
                return claim.due(max_attempts) or claim.new()
            return claim.new() or claim.due(max_attempts)

    def claim_for_discard(
        self, token: FencingToken, reason: str, limit: int, event_ids: Sequence[str] | None = None
    ) -> Load | None:
        with self.writing() as conn:
            claim = self._begin_claim(conn, token, limit, None)
            if event_ids is not None:
                seqs = [self._epochs.seq_of(event_id) for event_id in event_ids]
                return claim.listed_for_discard(seqs, reason)
            if token.lane is not Lane.LOAD:
                raise UsageError(
                    "only the load lane can discard all pending jobs; give event_ids, or use its token"
                )
            return claim.next_for_discard(reason)

    def record(self, load: Load, verdict: LoadVerdict) -> None:
        discarded = sum(job.result is JobResult.DISCARDED for job in verdict.deviations)
        state = DONE if verdict.raised is None else FAILED
        with self.writing() as conn:
            destination, lane = self._close_load(
                conn, load, state, error=verdict.raised, discarded=discarded
            )
            if verdict.raised is not None:
                due = lane.now + timedelta(seconds=verdict.delay)
                loads.requeue(conn, load.id, due, raised=(load.attempt, verdict.isolated))
            elif verdict.deviations:
                listings = loads.group_failed_jobs(
                    conn, load, destination, verdict.deviations, lane.now
                )
                self._insert_outcomes(
                    conn, loads.outcome_rows(load, destination, verdict.deviations, listings)
                )
            if load.isolated and load.discard_reason is None:
                loads.count_consecutive_failures(conn, load.id, failed=bool(verdict.deviations))
            if verdict.outcomes:
                self._append(conn, verdict.outcomes, {})

    def release(self, load: Load) -> None:
        with self.writing() as conn:
            _, lane = self._close_load(conn, load, RELEASED)
            loads.requeue(conn, load.id, lane.now)

    def abandon(self, load: Load, error: str) -> None:
        with self.writing() as conn:
            _, lane = self._close_load(conn, load, UNKNOWN, error=error)
            loads.requeue(conn, load.id, lane.now, lost_loads=1)

    def next_due(self, *destinations: str) -> float | None:
        ids = [self._destination(path) for path in destinations]
        with self.reading() as conn:
            return counts.next_due(conn, ids, self._clock())

    def since_load(self, *destinations: str) -> float | None:
        ids = [self._destination(path) for path in destinations]
        with self.reading() as conn:
            return counts.since_load(conn, ids, self._clock())

    # -- replays
    def begin_replay(
        self,
        token: FencingToken,
        request: ReplayRequest,
        event_types: Sequence[str],
        run: str | None,
    ) -> Replay:
        type_ids = [self._event_type(event_type) for event_type in event_types]
        window = self.window(request.start, request.end)
        with self.writing() as conn:
            destination, lane = self._lock_lane(conn, token)
            upto = max(min(window.upto, self._high_watermark(conn)), window.after)
            window = Window(window.after, upto)
            replay_id = replays.begin(conn, destination, request, type_ids, window, lane.now, run)
            return self._replay(conn, token.destination, replay_id)

    def _replay(self, conn: Connection, path: str, replay_id: int) -> Replay:
        [row] = replays.find_replays(conn, self._destination(path), 1, replay_id)
        return replays.replay_from_row(row, path)

    def replay_page(
        self, destination: str, request: ReplayRequest, event_types: Sequence[str], window: Window
    ) -> ReplayPage:
        destination_id = self._destination(destination)
        type_ids = [self._event_type(event_type) for event_type in event_types]
        with self.reading() as conn:
            rows, upto = replays.find_page(conn, destination_id, request, type_ids, window)
        ids, paths = self._epochs.ids_of(row.seq for row in rows), self._event_type_paths
        return ReplayPage(
            [
                ReplayCandidate(seq, id_, paths[event_type], received_at, state, error)
                for id_, (seq, event_type, received_at, state, error) in zip(ids, rows, strict=True)
            ],
            upto,
        )

    def job_rows(self, destination: str, seqs: Sequence[int]) -> Sequence[JobRow]:
        with self.reading() as conn:
            return self._jobs(list(replays.job_rows_of(conn, self._destination(destination), seqs)))

    def plan(
        self,
        token: FencingToken,
        replay: Replay,
        upto: int,
        selected: Sequence[SelectedJob],
        batch: int,
    ) -> Replay:
        with self.writing() as conn:
            destination, lane = self._lock_lane(conn, token)
            rows = replays.plan(conn, destination, replay, upto, selected, batch, lane.now)
            if rows:
                self._insert_group_jobs(conn, rows)
            return self._replay(conn, token.destination, replay.id)

    def end_replay(self, token: FencingToken, replay: Replay) -> bool:
        with self.writing() as conn:
            _, lane = self._lock_lane(conn, token)
            return replays.end(conn, replay, lane.now)

    def replays(self, destination: str, limit: int = 100) -> Sequence[Replay]:
        with self.reading() as conn:
            rows = replays.find_replays(conn, self._destination(destination), limit)
        return [replays.replay_from_row(row, destination) for row in rows]

    def unsettled(self, destination: str, limit: int = 100) -> Sequence[JobState]:
        with self.reading() as conn:
            rows = replays.unsettled(conn, self._destination(destination), limit)
        return [
            self._state(destination, "discarded" if row.due_at is None else "retrying", row)
            for row in rows
        ]

    def pace(self, destination: str) -> float | None:
        with self.reading() as conn:
            return replays.pace(conn, self._destination(destination))

    # -- counts and history
    def counts(self, destination: str) -> Counts:
        with self.reading() as conn:
            return counts.count_jobs(conn, self._destination(destination))

    def day_counts(self, since: date) -> Sequence[DayCount]:
        with self.reading() as conn:
            return [
                DayCount(self._event_type_paths[event_type], day, events)
                for event_type, day, events in counts.count_events_by_day(conn, since)
            ]

    def event(self, event_id: str) -> StoredEvent:
        seq = self._epochs.seq_of(event_id)
        with self.reading() as conn:
            row = history.find_event(conn, seq)
            if row is None:
                if (reason := why_gone(conn, seq)) is not None:
                    raise Gone(f"event {event_id} has been purged: {reason}")
                raise NotFound(f"event {event_id} is not in this store")
            return self._stored(row, history.destinations_by_event(conn, [seq]))

    def events(self, event_type: str | None = None, limit: int = 100) -> Sequence[StoredEvent]:
        with self.reading() as conn:
            rows = history.newest_events(
                conn, None if event_type is None else self._event_type(event_type), limit
            )
            destinations = history.destinations_by_event(conn, [row.seq for row in rows])
            return [self._stored(row, destinations) for row in rows]

    def _stored(self, row: Any, destinations: Mapping[int, Sequence[str]]) -> StoredEvent:
        return StoredEvent(
            self._epochs.id_of(row.seq),
            row.seq,
            self._event_type_paths[row.event_type],
            row.payload,
            row.received_at,
            row.key,
            row.context,
            row.version,
            row.sent_at,
            None if row.parent is None else self._epochs.id_of(row.parent),
            destinations.get(row.seq, ()),
        )

    def history(self, event_id: str) -> Sequence[Transition]:
        event = self.event(event_id)
        with self.reading() as conn:
            return history.history(conn, event.seq, event.received_at)

    def jobs(
        self, state: str, destination: str | None = None, limit: int = 100
    ) -> Sequence[JobState]:
        paths = list(self._destinations) if destination is None else [destination]
        states: list[JobState] = []
        with self.reading() as conn:
            for path in paths:
                rows = history.jobs_in_state(
                    conn, state, self._destination(path), limit - len(states)
                )
                states += [self._state(path, state, row) for row in rows]
        return states

    def _state(self, destination: str, state: str, row: Any) -> JobState:
        return JobState(
            destination,
            self._epochs.id_of(row.seq),
            self._event_type_paths[row.event_type],
            state,
            row.received_at,
            row.attempts,
            row.error,
            row.due_at,
        )

    def originals(self, event_ids: Sequence[str]) -> Mapping[str, JobRow]:
        seqs = [self._epochs.seq_of(event_id) for event_id in event_ids]
        with self.reading() as conn:
            rows = self._jobs(history.events_as_jobs(conn, seqs))
        return {row.id: row for row in rows}

    def orphans(self, app: Blacksmith) -> Sequence[Orphan]:
        self._read_names()
        undeclared = sorted(self._destinations.keys() - app.destination_events.keys())
        waiting = [Orphan(path, self.counts(path).pending) for path in undeclared]
        return [orphan for orphan in waiting if orphan.pending]

    def window(self, start: datetime, end: datetime) -> Window:
        with self.reading() as conn:
            return history.window(conn, start, end, self._sequence(conn))

    # -- purge
    def purgeable(self, retention: Mapping[str, Retention]) -> Sequence[Purgeable]:
        return Purge(self, retention).look()

    def purge(
        self, retention: Mapping[str, Retention], archive: Archive | None = None
    ) -> Iterator[PurgeStep]:
        return Purge(self, retention).run(archive)

    def check_not_purged(self, event_types: Sequence[str], start: datetime) -> None:
        window = self.window(start, start)
        with self.reading() as conn:
            raise_if_purged(conn, [self._event_type(path) for path in event_types], window.after)

    # -- maintenance
    def ready(self) -> None:
        self._read_names()  # another process may have begun a new epoch
        with self.reading() as conn:
            highest, last = maintenance.highest_seq(conn), self._sequence(conn)
        if last < highest:
            raise SequenceWentBack(
                f"{self.label}: its sequence is at {last}, but {highest} was used already; was the "
                "store restored or promoted? Run `blacksmith store repair`: it moves the sequence past "
                "the numbers used and begins a new epoch of ids"
            )

    def repair(self) -> str:
        epoch = secrets.token_hex(4)
        with self.writing() as conn:
            last = max(maintenance.highest_seq(conn), self._sequence(conn))
            self._set_sequence(conn, last + 1)
            conn.execute(
                tables.epochs.insert(),
                {"first_seq": last + 2, "epoch": epoch, "began_at": self._now(conn)},
            )
        self._read_names()
        return epoch

    def maintain(self) -> None:
        with self.writing() as conn:
            # In this order: events up to `low` were received before `now`, events above `high` after it.
            low, now = self._high_watermark(conn), self._now(conn)
            maintenance.add_to_time_index(conn, now, low, self._sequence(conn))
            maintenance.forget_keys(conn, now)
        while self._add_to_totals():
            pass

    def _add_to_totals(self) -> bool:
        """Add the next part of the log to the totals; returns whether there is more."""
        with self.writing() as conn:
            return maintenance.add_to_totals(conn, self._high_watermark(conn))

    def close(self) -> None:
        self.engine.dispose()


def fenced_out(token: FencingToken, holder: str) -> FencedOut:
    """The error of a holder whose lane another has taken over."""
    return FencedOut(
        f"{token.destination}: {holder} has taken over; stop, and acquire the lock again"
    )


def no_longer_open(load: Load) -> FencedOut:
    """The error of a holder whose load has been closed meanwhile."""
    return FencedOut(f"{load.token.destination}: load {load.id} is no longer open")
