"""The store's database in a SQLite file: the default, for one machine."""

from __future__ import annotations

import fcntl
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Connection, Engine, create_engine, event, literal
from sqlalchemy.engine import URL
from sqlalchemy.pool import ConnectionPoolEntry

from blacksmith_dagster.errors import SettingsError
from blacksmith_dagster.store import schema
from blacksmith_dagster.store.database import Database, GroupJobRow, LaneState, OutcomeRow
from blacksmith_dagster.store.db_errors import translate_errors
from blacksmith_dagster.store.group_members import jobs_of_load
from blacksmith_dagster.store.idempotency import EventRef
from blacksmith_dagster.store.job_groups import WaitingGroup
from blacksmith_dagster.store.lanes import close_load
from blacksmith_dagster.store.records import FencingToken, JobRow, Lane, NewEvent
from blacksmith_dagster.store.tables import Instant, LoadState, from_micros, to_micros

_NETWORK_FILE_SYSTEMS = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "fuse.sshfs"}
)
_BUSY_SECONDS = 30


class SQLiteDatabase(Database):
    """A SQLite file, shared by the processes of one machine.

    SQLite allows one writer at a time, and waiting writers poll, so that a busy gateway starves a loader
    for seconds. So every write first takes the write lock: a lock on a file beside the database.

    Raises `SettingsError` for a file on a network file system, whose locks cannot be trusted.
    """

    def __init__(self, url: URL) -> None:
        if not url.database or url.database == ":memory:":
            raise SettingsError(
                "sqlite: a store is shared by processes and needs a file: write sqlite:////path/store.db"
            )
        path = Path(url.database)
        if not path.is_absolute():
            raise SettingsError(
                f"sqlite:///{path} is relative: each working folder would have another store; write "
                f"sqlite:///{path.absolute()}"
            )
        make_home(path.parent)
        _reject_network_folder(path.parent)
        self._thread_lock = threading.Lock()
        self._write_lock_file = path.with_name(path.name + "-write-lock").open("wb")
        engine = _engine(path)
        label = f"sqlite:///{path}"
        try:
            with translate_errors(label), self._write_lock(), engine.connect() as conn:
                schema.upgrade(conn, label)
            super().__init__(engine, label)
        except BaseException:
            engine.dispose()
            self._write_lock_file.close()
            raise

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that may write, under the write lock."""
        with translate_errors(self.label), self._write_lock(), self.engine.connect() as conn:
            conn.exec_driver_sql("BEGIN IMMEDIATE")
            yield conn
            conn.commit()

    def one_statement(self) -> AbstractContextManager[Connection]:
        """A transaction as any other: nothing is saved by a single statement."""
        return self.writing()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A read-only transaction, whose statements all see the same state."""
        with translate_errors(self.label), self.engine.connect() as conn:
            conn.exec_driver_sql("BEGIN")
            yield conn

    @contextmanager
    def _write_lock(self) -> Iterator[None]:
        with self._thread_lock:
            fcntl.flock(self._write_lock_file, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(self._write_lock_file, fcntl.LOCK_UN)

    def close(self) -> None:
        """Close all connections, and the file of the write lock."""
        super().close()
        self._write_lock_file.close()

    def clock(self) -> ColumnElement[datetime]:
        return literal(datetime.now(UTC), Instant())

    def high_watermark(self, conn: Connection) -> int:
        # One transaction writes at a time, so every event that has a number is committed.
        return self.sequence(conn)

    def sequence(self, conn: Connection) -> int:
        return int(conn.exec_driver_sql(_SEQUENCE).scalar() or 0)

    def set_sequence(self, conn: Connection, seq: int) -> None:
        conn.exec_driver_sql("DELETE FROM sqlite_sequence WHERE name = 'events'")
        conn.exec_driver_sql("INSERT INTO sqlite_sequence VALUES ('events', ?)", (seq,))

    def quarantine_ids(self, conn: Connection, number: int) -> Sequence[int]:
        last = int(conn.exec_driver_sql(_LAST_IN_QUARANTINE).scalar() or 0)
        return range(last + 1, last + 1 + number)

    def enter_lane(self, conn: Connection, destination: int, lane: Lane, wanted: int) -> LaneState:
        now = datetime.now(UTC)
        values = {
            "destination": destination,
            "lane": lane,
            "wanted": wanted,
            "now": to_micros(now),
        }
        token, holder, *state = conn.exec_driver_sql(_ENTER_LANE, values).one()
        return LaneState.read(token, holder, now, *state)

    def close_succeeded(
        self, conn: Connection, destination: int, load_id: int, token: FencingToken
    ) -> tuple[tuple[int, str], bool]:
        state = self.enter_lane(conn, destination, token.lane, 0)
        latest = (state.token, state.holder)
        closed = latest == (token.number, token.holder) and close_load(
            conn, load_id, LoadState.SUCCEEDED, state.now
        )
        return latest, closed

    def jobs_between(
        self, conn: Connection, destination: int, after: int, upto: int
    ) -> list[JobRow]:
        return self._read(conn.exec_driver_sql(_JOBS_BETWEEN, (destination, after, upto)))

    def jobs_of_groups(
        self,
        conn: Connection,
        destination: int,  # noqa: ARG002 - with it, SQLite would read all of its groups
        load_id: int,
        groups: Sequence[WaitingGroup],
    ) -> list[JobRow]:
        return self._read(conn.exec_driver_sql(jobs_of_load(groups), {"load": load_id}))

    def _read(self, rows: Iterable[Any]) -> list[JobRow]:
        return self.job_rows(
            [
                (
                    *event,
                    from_micros(received_at),
                    key,
                    context,
                    version,
                    sent_at and from_micros(sent_at),
                    parent,
                    when_error,
                )
                for *event, received_at, key, context, version, sent_at, parent, when_error in rows
            ]
        )

    def look_up_keys(self, conn: Connection, rows: Sequence[tuple[int, str, int]]) -> Iterable[Any]:
        return conn.exec_driver_sql(_KNOWN_KEYS, (msgspec.json.encode(rows).decode(),)).tuples()

    def write_keys(
        self, conn: Connection, rows: Sequence[tuple[int, str, int, int, bytes]]
    ) -> None:
        now = to_micros(self.now(conn))
        conn.exec_driver_sql(_WRITE_KEY, [(now, *row) for row in rows])

    def insert_outcomes(self, conn: Connection, rows: Sequence[OutcomeRow]) -> None:
        conn.exec_driver_sql(_OUTCOME, [tuple(row) for row in rows])

    def insert_group_jobs(self, conn: Connection, rows: Sequence[GroupJobRow]) -> None:
        conn.exec_driver_sql(_GROUP_JOB, [tuple(row) for row in rows])

    def insert_events(
        self,
        conn: Connection,
        new: Sequence[NewEvent],
        parents: Mapping[int, EventRef],
        received_at: datetime | None = None,
    ) -> list[int]:
        first = self.sequence(conn) + 1
        now = to_micros(received_at or datetime.now(UTC))
        conn.exec_driver_sql(
            _EVENT,
            [
                (
                    seq,
                    self.event_type(event.event_type),
                    now,
                    event.payload,
                    event.key,
                    event.context,
                    event.version,
                    None if event.sent_at is None else to_micros(event.sent_at),
                    parent,
                )
                for seq, event, parent in zip(
                    count(first), new, self.parent_seqs(new, parents, first.__add__)
                )
            ],
        )
        jobs = [
            (self.destination(job.destination), seq, job.when_error)
            for seq, event in enumerate(new, first)
            for job in event.jobs
        ]
        if jobs:
            conn.exec_driver_sql(_JOB, jobs)
        return list(range(first, first + len(new)))


_ENTER_LANE = """
SELECT f.token, f.holder, l.id, l.state = 'executing', l.seq_to IS NOT NULL, l.position, l.claimed,
       (SELECT max(seq) FROM (
           SELECT seq FROM jobs WHERE :lane = 'load' AND destination = :destination
              AND seq > coalesce(l.position, 0) ORDER BY seq LIMIT :wanted)),
       EXISTS (SELECT 1 FROM job_groups g WHERE g.destination = :destination AND g.lane = :lane
                  AND g.load IS NULL AND g.due_at <= :now)
  FROM fencing_tokens f
  LEFT JOIN loads l ON l.id = (
       SELECT id FROM loads WHERE destination = :destination AND lane = :lane ORDER BY id DESC LIMIT 1)
 WHERE f.destination = :destination AND f.lane = :lane
"""
_JOBS_BETWEEN = """
SELECT e.seq, e.event_type, e.payload, e.received_at, e.key, e.context, e.version, e.sent_at, e.parent,
       j.when_error
  FROM jobs j JOIN events e ON e.seq = j.seq
 WHERE j.destination = ? AND j.seq > ? AND j.seq <= ? ORDER BY j.seq
"""
_KNOWN_KEYS = """
SELECT k.event_type, k.key, k.ordinal, k.seq, k.digest
  FROM json_each(?) AS wanted
 CROSS JOIN keys k ON k.event_type = json_extract(wanted.value, '$[0]')
   AND k.key = json_extract(wanted.value, '$[1]') AND k.ordinal = json_extract(wanted.value, '$[2]')
"""
_WRITE_KEY = (
    "INSERT INTO keys (received_at, event_type, key, ordinal, seq, digest) "
    "VALUES (?, ?, ?, ?, ?, ?)"
)
_OUTCOME = (
    "INSERT INTO outcomes (load, seq, destination, state, error, listing) VALUES (?, ?, ?, ?, ?, ?)"
)
_GROUP_JOB = (
    "INSERT INTO group_jobs (destination, seq, listing, created, when_error) VALUES (?, ?, ?, ?, ?)"
)
_LAST_IN_QUARANTINE = "SELECT seq FROM sqlite_sequence WHERE name = 'quarantine'"
_SEQUENCE = "SELECT seq FROM sqlite_sequence WHERE name = 'events'"
_EVENT = (
    "INSERT INTO events (seq, event_type, received_at, payload, key, context, version, sent_at, parent)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_JOB = "INSERT INTO jobs (destination, seq, when_error) VALUES (?, ?, ?)"


def _engine(path: Path) -> Engine:
    engine = create_engine(
        URL.create("sqlite", database=str(path)),
        connect_args={
            "timeout": _BUSY_SECONDS,
            "isolation_level": None,
            "check_same_thread": False,
        },
        hide_parameters=True,
    )

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _: ConnectionPoolEntry) -> None:
        # FULL: a commit that was acknowledged survives a power cut, in WAL mode too.
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")

    return engine


def make_home(folder: Path) -> None:
    """Create a folder for a store, with a `.gitignore` for all in it, unless the folder exists."""
    if not folder.exists():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".gitignore").write_text("*\n")


def _reject_network_folder(folder: Path) -> None:
    mounts = Path("/proc/self/mounts")
    if not mounts.exists():
        return
    resolved, best, file_system = folder.resolve(), Path("/"), ""
    for line in mounts.read_text().splitlines():
        _, mount, type_, *_ = line.split(" ")
        mount_point = Path(mount.encode().decode("unicode_escape"))
        if resolved.is_relative_to(mount_point) and len(mount_point.parts) >= len(best.parts):
            best, file_system = mount_point, type_
    if file_system in _NETWORK_FILE_SYSTEMS:
        raise SettingsError(
            f"{folder} is on a network file system ({file_system}), where SQLite's locks are "
            "not reliable; use a local folder, or PostgreSQL with BLACKSMITH_STORE_URL=postgresql://..."
        )
