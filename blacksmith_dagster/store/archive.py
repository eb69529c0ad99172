"""Archives events before they are purged: reads them with their jobs, and writes them to a folder."""

from __future__ import annotations

import gzip
import os
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from sqlalchemy import Connection, and_, select, union

from blacksmith_dagster.errors import SettingsError, Unavailable
from blacksmith_dagster.store.database import Database
from blacksmith_dagster.store.records import NOTHING, ArchivedEvent, ArchivedJob
from blacksmith_dagster.store.statements import batched
from blacksmith_dagster.store.tables import (
    IS_DISCARDED,
    edits,
    events,
    group_jobs,
    jobs,
    outcomes,
)

_BATCH = 5_000  # events named in one statement
_ENCODER = msgspec.json.Encoder()


def read_archived(database: Database, seqs: Sequence[int]) -> Sequence[ArchivedEvent]:
    """Read events, and how their jobs ended. Changes nothing."""
    id_of, path_of = database.epochs.id_of, database.event_type_path
    archived = []
    with database.reading() as conn:
        for batch in batched(seqs, _BATCH):
            jobs_by_event = _read_jobs(database, conn, batch)
            rows = select(events).where(events.c.seq.in_(batch)).order_by(events.c.seq)
            archived += [
                ArchivedEvent(
                    id_of(row.seq),
                    path_of(row.event_type),
                    row.received_at,
                    _one_line(row.payload),
                    row.key,
                    _one_line(row.context),
                    row.version,
                    row.sent_at,
                    None if row.parent is None else id_of(row.parent),
                    jobs_by_event.get(row.seq, ()),
                )
                for row in conn.execute(rows)
            ]
    return archived


def _read_jobs(
    database: Database, conn: Connection, seqs: Sequence[int]
) -> Mapping[int, Sequence[ArchivedJob]]:
    """How the jobs of these events ended, including the jobs that a replay created."""
    paths = {number: path for path, number in database.destinations.items()}
    discards = (
        select(outcomes.c.destination, outcomes.c.seq, outcomes.c.error)
        .where(
            outcomes.c.destination.in_(paths),
            outcomes.c.seq.in_(seqs),
            IS_DISCARDED,
        )
        .subquery()
    )
    of_events = union(
        *(
            select(table.c.destination, table.c.seq).where(
                table.c.destination.in_(paths), table.c.seq.in_(seqs)
            )
            for table in (jobs, group_jobs)
        )
    ).subquery()
    destination, seq = of_events.c.destination, of_events.c.seq
    rows = (
        select(destination, seq, discards.c.error, edits.c.payload)
        .select_from(of_events)
        .outerjoin(discards, and_(discards.c.destination == destination, discards.c.seq == seq))
        .outerjoin(edits, and_(edits.c.destination == destination, edits.c.seq == seq))
        .order_by(destination)
    )
    jobs_by_event: dict[int, list[ArchivedJob]] = {}
    for number, event_seq, error, edited in conn.execute(rows):
        state = "succeeded" if error is None else "discarded"
        job = ArchivedJob(paths[number], state, error, _one_line(edited))
        jobs_by_event.setdefault(event_seq, []).append(job)
    return jobs_by_event


def _one_line(json: str | None) -> msgspec.Raw:
    """JSON as it was stored, but without line breaks."""
    if json is None:
        return NOTHING
    has_breaks = "\n" in json or "\r" in json
    return msgspec.Raw(msgspec.json.format(json, indent=-1) if has_breaks else json)


class FolderArchive:
    """An archive in a folder, on any file system that fsspec supports.

    - `url`: a path, or a URL such as `s3://bucket/events` (install the package that fsspec needs for
      it: `s3fs`).

    A file is gzipped JSON lines, an `ArchivedEvent` each, and is named after its first and its last
    event. It is written under a temporary name and then renamed, so a file under its final name is
    complete.

    >>> from tempfile import mkdtemp
    >>> archive = FolderArchive(mkdtemp())

    Raises `SettingsError` if the URL cannot be used.
    """

    def __init__(self, url: str) -> None:
        import fsspec  # here, because it is slow to import and only a purge needs it
        from fsspec.implementations.local import LocalFileSystem

        try:
            self._files, folder = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError, OSError) as error:
            # Other messages may contain the URL, and so a password.
            reason = str(error) if isinstance(error, ImportError) else type(error).__name__
            raise SettingsError(
                f"the archive's URL cannot be used ({reason}); write a folder, or a URL that fsspec "
                "supports, such as s3://bucket/events"
            ) from None
        self._folder = str(folder).rstrip("/")
        self._is_local = isinstance(self._files, LocalFileSystem)

    def write(self, events: Sequence[ArchivedEvent]) -> str:
        """Write events to a file; returns its path, without the URL's host and credentials.

        Raises `Unavailable`.
        """
        path = f"{self._folder}/{events[0].id}-{events[-1].id}.jsonl.gz"
        compressed = gzip.compress(_ENCODER.encode_lines(events), compresslevel=6, mtime=0)
        try:
            self._files.makedirs(self._folder, exist_ok=True)
            with self._files.open(f"{path}.part", "wb") as file:
                file.write(compressed)
                if self._is_local:
                    _sync_file(file)
            self._files.mv(f"{path}.part", path)
            if self._is_local:
                _sync_folder(self._folder)
        except Exception as error:  # noqa: BLE001 - each file system has its own
            reason = getattr(error, "strerror", None) or type(error).__name__
            raise Unavailable(
                f"the archive cannot write {path}: {reason}; events are purged only once they are "
                "archived: fix the archive, and purge again"
            ) from None
        return path


def _sync_file(file: Any) -> None:
    """Make a local file survive a power cut. Remote file systems do so themselves."""
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: str) -> None:
    """Make the names in a local folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
