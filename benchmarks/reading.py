"""The drain's limit: awaiting jobs, read with the database's driver and decoded batch by batch."""

import gc
import sqlite3
from collections.abc import Generator
from contextlib import closing
from types import MappingProxyType
from typing import Any

import msgspec
import psycopg

from benchmarks.pipeline import full
from benchmarks.stores import BATCH
from blacksmith_dagster import Event, Job
from blacksmith_dagster.store import Store
from blacksmith_dagster.store.tables import from_micros

_POSITION = "SELECT coalesce(max(position), 0) FROM loads WHERE destination = {id}"
_NEXT = (
    "SELECT events.seq, received_at, payload, key, context, version, sent_at, parent"
    " FROM jobs JOIN events ON events.seq = jobs.seq"
    f" WHERE destination = {{id}} AND jobs.seq > {{after}} ORDER BY jobs.seq LIMIT {BATCH}"
)


def read_jobs(store: Store, *, collect: bool = True) -> Generator[list[Job[Any]]]:
    """Read the awaiting jobs of `sink/full`, as the scheduler would build them.

    Without `collect`, Python's garbage collector is paused while a batch is built: by default it
    visits each object several times, which takes longer than building them.
    """
    destination = store.database.destination(full.path)
    epoch, suffix = store.database.epochs._names[-1], f"-{destination}"
    decode, nothing = msgspec.json.Decoder().decode, MappingProxyType({})
    sqlite = store.database.engine.dialect.name == "sqlite"
    with closing(_connect(store)) as conn:
        cursor = conn.cursor() if sqlite else conn.cursor(binary=True)
        (after,) = cursor.execute(_POSITION.format(id=destination)).fetchone()
        statement = _NEXT.format(id=destination, after="?" if sqlite else "%s")
        while rows := cursor.execute(statement, (after,)).fetchall():
            after = rows[-1][0]
            batch = []
            if not collect:
                gc.disable()
            for seq, received_at, payload, key, _, version, sent_at, parent in rows:
                received = from_micros(received_at) if sqlite else received_at
                id_ = f"evt_{epoch}{seq:012x}"
                data = decode(payload)
                event = Event(data, key, sent_at, nothing, version, id_, received, parent)
                batch.append(Job(data, event, id_ + suffix, 1))
            gc.enable()
            yield batch


def _connect(store: Store) -> Any:
    url = store.database.engine.url
    if url.get_backend_name() == "sqlite":
        return sqlite3.connect(url.database or "")
    plain = url.set(drivername="postgresql").render_as_string(hide_password=False)
    return psycopg.connect(plain, autocommit=True)
