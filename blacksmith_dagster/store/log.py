"""`store.log`: appends events with their jobs and the cursors of readers; reads and purges events."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection

from blacksmith_dagster.errors import KeyReused
from blacksmith_dagster.store import history, idempotency, maintenance, quarantine, readers
from blacksmith_dagster.store.database import Database
from blacksmith_dagster.store.purge import Purge
from blacksmith_dagster.store.records import (
    Archive,
    Cursor,
    JobRow,
    ListenerStatus,
    NewEvent,
    Purgeable,
    PurgeStep,
    RawRequest,
    StoredEvent,
    Window,
)
from blacksmith_dagster.store.retention import raise_if_purged

if TYPE_CHECKING:
    from blacksmith_dagster.pipeline.retention import Retention


class Log:
    """The log of events."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # -- append
    def append(
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
        if not (cursors or released or received_at):
            plain = _plain_events(requests)
            if plain is not None:
                return self._database.retry_conflicts(lambda: self._append_plain(requests, plain))
        return self._database.retry_conflicts(
            lambda: self._append_in_transaction(requests, cursors, released, received_at)
        )

    def _append_plain(
        self, requests: Sequence[Any], new: Sequence[NewEvent]
    ) -> list[list[str] | KeyReused]:
        """Append events without keys and parents: one statement is the whole transaction."""
        if not new:
            return [[] for _ in requests]
        with self._database.one_statement() as conn:
            seqs = self._database.insert_events(conn, new, {})
        ids = iter(self._database.epochs.ids_of(seqs))
        return [list(islice(ids, len(request))) for request in requests]

    def _append_in_transaction(
        self,
        requests: Sequence[Sequence[NewEvent] | RawRequest],
        cursors: Sequence[Cursor],
        released: Sequence[str],
        received_at: datetime | None,
    ) -> list[list[str] | KeyReused]:
        database = self._database
        raw_requests = [request for request in requests if isinstance(request, RawRequest)]
        extracted = [request for request in requests if not isinstance(request, RawRequest)]
        with database.writing() as conn:
            if received_at is not None:
                maintenance.begin_import(conn, received_at, database.high_watermark(conn))
            readers.move_cursors(conn, cursors)
            quarantine.drop(conn, released)
            quarantined = [[id_] for id_ in quarantine.insert_all(database, conn, raw_requests)]
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
        new, epochs = resolution.new, self._database.epochs
        seqs = (
            self._database.insert_events(conn, new, resolution.parents, received_at) if new else []
        )
        if received_at is not None and seqs:
            maintenance.end_import(conn, received_at, max(seqs))
        written = sorted(
            (*self._key(key), seqs[index], new[index].digest or b"")
            for key, index in resolution.claimed.items()
        )
        if written:
            self._database.write_keys(conn, written)
        return resolution.results(epochs.ids_of(seqs), epochs.id_of)

    def _known_keys(
        self, conn: Connection, wanted: Iterable[idempotency.Key]
    ) -> Mapping[idempotency.Key, idempotency.StoredKey]:
        """The keys of a commit that are stored already."""
        keys = {self._key(key): key for key in wanted}
        if not keys:
            return {}
        return {
            keys[event_type, key, ordinal]: idempotency.StoredKey(seq, digest)
            for event_type, key, ordinal, seq, digest in self._database.look_up_keys(
                conn, list(keys)
            )
        }

    def _key(self, key: idempotency.Key) -> tuple[int, str, int]:
        return self._database.event_type(key[0]), key[1], key[2]

    # -- readers
    def cursor(self, reader: str) -> str | None:
        """A reader's cursor, or `None` if the store does not know the reader."""
        with self._database.reading() as conn:
            return readers.cursor(conn, reader)

    def note_listener(self, status: ListenerStatus) -> None:
        """Store the status of a listener, in place of the previous one."""
        with self._database.writing() as conn:
            readers.note_listener(conn, status, self._database.now(conn))

    def listeners(self) -> Sequence[ListenerStatus]:
        """The last status of each listener."""
        with self._database.reading() as conn:
            return readers.listener_statuses(conn)

    # -- events
    def event(self, event_id: str) -> StoredEvent:
        """An event by its public id. Raises `NotFound`; `Gone` if it may have been purged."""
        seq = self._database.epochs.seq_of(event_id)
        with self._database.reading() as conn:
            row = history.existing_event(conn, event_id, seq)
            return self._stored(row, history.destinations_by_event(conn, [seq]))

    def newest(self, event_type: str | None = None, limit: int = 100) -> Sequence[StoredEvent]:
        """The newest events, of one type or of all, newest first."""
        number = None if event_type is None else self._database.event_type(event_type)
        with self._database.reading() as conn:
            rows = history.newest_events(conn, number, limit)
            destinations = history.destinations_by_event(conn, [row.seq for row in rows])
            return [self._stored(row, destinations) for row in rows]

    def _stored(self, row: Any, destinations: Mapping[int, Sequence[str]]) -> StoredEvent:
        id_of = self._database.epochs.id_of
        return StoredEvent(
            id_of(row.seq),
            row.seq,
            self._database.event_type_path(row.event_type),
            row.payload,
            row.received_at,
            row.key,
            row.context,
            row.version,
            row.sent_at,
            None if row.parent is None else id_of(row.parent),
            destinations.get(row.seq, ()),
        )

    def originals(self, event_ids: Sequence[str]) -> Mapping[str, JobRow]:
        """Events by their ids, as job rows: the originals that outcomes refer to as parents."""
        seqs = [self._database.epochs.seq_of(event_id) for event_id in event_ids]
        with self._database.reading() as conn:
            rows = self._database.job_rows(history.events_as_jobs(conn, seqs))
        return {row.id: row for row in rows}

    def window(self, start: datetime, end: datetime) -> Window:
        """A range of sequence numbers that has every event received from `start` to `end`."""
        with self._database.reading() as conn:
            return history.window(conn, start, end, self._database.sequence(conn))

    # -- purge
    def purgeable(self, retention: Mapping[str, Retention]) -> Sequence[Purgeable]:
        """What `purge` would remove, for each event type that is not kept forever."""
        return Purge(self._database, retention).look()

    def purge(
        self, retention: Mapping[str, Retention], archive: Archive | None = None
    ) -> Iterator[PurgeStep]:
        """Remove the events that are past their retention and not needed, with their jobs and loads.

        Each step is committed when it is returned. The caller may stop after any step; the next purge
        continues. With an archive, a step's events are archived before they are deleted. Ingest and
        loads may run at the same time; two purges at once are safe, but repeat each other's work.
        """
        return Purge(self._database, retention).run(archive)

    def check_not_purged(self, event_types: Sequence[str], start: datetime) -> None:
        """Raise `Gone` if events of these types received at or after `start` may have been purged.

        The error says since when they are kept.
        """
        after = self.window(start, start).after
        with self._database.reading() as conn:
            raise_if_purged(conn, [self._database.event_type(path) for path in event_types], after)


def _plain_events(requests: Sequence[Any]) -> Sequence[NewEvent] | None:
    """The events of these requests, if all of them are events without keys and parents."""
    if any(isinstance(request, RawRequest) for request in requests):
        return None
    new: list[NewEvent] = [event for request in requests for event in request]
    return new if all(event.key is None and event.parent is None for event in new) else None
