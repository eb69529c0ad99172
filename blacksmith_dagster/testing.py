"""Runs a pipeline in a test, without Dagster, a server or a disk; and a store for tests, in memory."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple, cast, overload

import msgspec
from sqlalchemy import Connection, create_engine
from sqlalchemy.engine import URL
from sqlalchemy.pool import StaticPool

from blacksmith_dagster.composition import open_scheduler
from blacksmith_dagster.errors import KeyReused, UsageError
from blacksmith_dagster.ingest.extract import Extractor
from blacksmith_dagster.pipeline.application import Blacksmith
from blacksmith_dagster.pipeline.event import Event, Job, JobResult
from blacksmith_dagster.pipeline.model import decoder, encode
from blacksmith_dagster.pipeline.source import AnySourceEvent
from blacksmith_dagster.pipeline.triggers import Message, Poll, Request, Subscription
from blacksmith_dagster.scheduler import load
from blacksmith_dagster.scheduler.decoding import JobDecoder
from blacksmith_dagster.store import Store, schema
from blacksmith_dagster.store.database import Database
from blacksmith_dagster.store.db_errors import translate_errors
from blacksmith_dagster.store.idempotency import resolve
from blacksmith_dagster.store.loads import Loads
from blacksmith_dagster.store.records import Load, LoadVerdict, NewEvent
from blacksmith_dagster.store.sqlite import SQLiteDatabase
from blacksmith_dagster.supervisor import open_supervisor

_numbers = itertools.count(1)


class Attempt(NamedTuple):
    """An attempt to deliver a job that did not succeed: `error` says why, `number` counts from 1.

    `job` is `None` if there was no data for it: its `when` or its `transform` raised, for example.
    """

    event_id: str
    job: Job[Any] | None
    error: str
    number: int


class Deliveries(NamedTuple):
    """What became of all jobs, by destination event, in order of time.

    - `delivered`: the jobs that succeeded.
    - `failed`: each failed attempt that was repeated.
    - `discarded`: the last attempt of each job that was given up.
    """

    delivered: Mapping[str, list[Job[Any]]]
    failed: Mapping[str, list[Attempt]]
    discarded: Mapping[str, list[Attempt]]


@overload
def run(
    app: Blacksmith,
    events: Iterable[tuple[AnySourceEvent, Any]],
    *,
    deliver: Literal[False] = False,
) -> Mapping[str, list[Job[Any]]]: ...


@overload
def run(
    app: Blacksmith, events: Iterable[tuple[AnySourceEvent, Any]], *, deliver: Literal[True]
) -> Deliveries: ...


def run(
    app: Blacksmith, events: Iterable[tuple[AnySourceEvent, Any]], *, deliver: bool = False
) -> Mapping[str, list[Job[Any]]] | Deliveries:
    """The jobs that each destination event would receive, by its path, in the events' order.

    `events` are pairs of a source event and its input: a `Request` or a `Message`, data (sent as a JSON
    body), a `Poll`, or an `Event` as the extract function would return it. The steps are those between
    the gateway and a destination: extract, limits, `when`, encode as JSON and decode into the model,
    `transform`. A repeated key is the same event. Ids are `evt_1`, `evt_2`, ... Destinations are not
    called, so outcomes create no jobs; to test one function, call it with a `Batch` of these jobs.

    With `deliver`, the events are committed to a `MemoryStore`, the destinations are called until
    nothing is due, and the result is what became of the jobs. A failed job is due again at once,
    whatever its retry policy's delay, as often as the policy allows. Outcomes are delivered too.

    Raises whatever the pipeline's functions raise (with `deliver`, only the extract functions'),
    `RequestError` for a request that the gateway would reject, and `UsageError` for a source event that
    the application does not have, or a destination that waits for a migration.

    >>> from blacksmith_dagster import Flow
    >>> departed = Source("airport").accept("departed")
    >>> lake = Destination("lake")
    >>> @lake.event(receives=Flow(departed, when=lambda event: event.data["delay"] > 120))
    ... def late(batch: Batch) -> None: ...
    >>> app = Blacksmith(sources=[departed.source], destinations=[lake])
    >>> jobs = run(app, [(departed, {"delay": 5}), (departed, {"delay": 200})])
    >>> [job.data for job in jobs["lake/late"]]
    [{'delay': 200}]
    >>> result = run(app, [(departed, {"delay": 200})], deliver=True)
    >>> [job.data for job in result.delivered["lake/late"]], result.failed["lake/late"]
    ([{'delay': 200}], [])
    """
    requests = [_extract(app, source_event, sent) for source_event, sent in events]
    return _deliver(app, requests) if deliver else _jobs(app, requests)


class MemoryStore(Store):
    """A store in memory, for tests: it keeps the promises of a store in one process, without a file.

    Several may exist at once, and threads may share one. `close` frees it.

    >>> shop = Source("shop")
    >>> ordered = shop.accept("ordered")
    >>> with closing(MemoryStore(Blacksmith(sources=[shop], destinations=[]))) as store:
    ...     store.log.newest()
    []
    """

    def __init__(self, app: Blacksmith) -> None:
        super().__init__(_MemoryDatabase())
        self.register(app)


class _MemoryDatabase(SQLiteDatabase):
    """A SQLite database in memory. It has one connection, which threads use in turn."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        name = f"file:blacksmith-{next(_numbers)}?mode=memory"
        engine = create_engine(
            URL.create("sqlite", database=name, query={"uri": "true"}),
            poolclass=StaticPool,
            connect_args={"isolation_level": None, "check_same_thread": False},
            hide_parameters=True,
        )
        self._conn = engine.connect()
        schema.upgrade(self._conn, "a store in memory")
        Database.__init__(self, engine, "a store in memory")

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction. One within another of the same thread is a part of it."""
        with self._lock, translate_errors(self.label):
            if self._conn.in_transaction():
                yield self._conn
                return
            self._conn.exec_driver_sql("BEGIN")
            try:
                yield self._conn
                self._conn.commit()
            finally:
                self._conn.rollback()

    reading = writing

    def close(self) -> None:
        """Close the connection, which frees the memory."""
        with self._lock:
            self._conn.close()
            Database.close(self)


class _ImpatientLoads(Loads):
    """Makes failed jobs due at once, and keeps all verdicts."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.recorded: list[tuple[Load, LoadVerdict]] = []

    def record(self, load: Load, verdict: LoadVerdict) -> None:
        deviations = [
            msgspec.structs.replace(job, delay=None if job.delay is None else 0.0)
            for job in verdict.deviations
        ]
        super().record(load, msgspec.structs.replace(verdict, delay=0.0, deviations=deviations))
        self.recorded.append((load, verdict))


def _deliver(app: Blacksmith, requests: Sequence[Sequence[NewEvent]]) -> Deliveries:
    with closing(MemoryStore(app)) as store:
        store.loads = loads = _ImpatientLoads(store.database)
        for result in store.log.append(requests):
            if isinstance(result, KeyReused):
                raise result
        with (
            closing(open_supervisor(None, store.database)) as supervisor,
            open_scheduler(app) as scheduler,
        ):
            pending = True
            while pending:  # an outcome is a new job
                pending = False
                for event in app.destination_events.values():
                    done = load(app, event, scheduler, store=store, supervisor=supervisor)
                    if done.skipped is not None:
                        raise UsageError(f"{event.path} was not called: {done.skipped}")
                    pending = pending or done.loads > 0
        return _deliveries(app, store, loads.recorded)


def _deliveries(
    app: Blacksmith, store: Store, recorded: Sequence[tuple[Load, LoadVerdict]]
) -> Deliveries:
    result = Deliveries(*({path: [] for path in app.destination_events} for _ in range(3)))
    for done, verdict in recorded:
        path = done.token.destination
        decoder = JobDecoder(app, app.destination_events[path])
        decoded = decoder.decode(done, decoder.originals(done.rows, store.log.originals))
        jobs = {job.key: job for job in decoded.jobs}
        deviations = {deviation.seq: deviation for deviation in verdict.deviations}
        for row in done.rows:
            job, deviation = jobs.get(done.key_of(row.id)), deviations.get(row.seq)
            error = verdict.raised if deviation is None else deviation.error
            if error is not None:
                is_last = deviation is not None and deviation.result is JobResult.DISCARDED
                attempts = result.discarded if is_last else result.failed
                attempts[path].append(Attempt(row.id, job, error, done.attempt))
            elif job is not None:
                result.delivered[path].append(job)
    return result


def _jobs(app: Blacksmith, requests: Sequence[Sequence[NewEvent]]) -> Mapping[str, list[Job[Any]]]:
    admission = resolve(requests, {})
    parents: dict[int, str | None] = {}
    for request, slot in zip(requests, admission.slots, strict=True):
        if isinstance(slot, KeyReused):
            raise slot
        indexes = cast("Sequence[int]", slot)  # no key is stored before
        for new, index in zip(request, indexes, strict=True):
            parent = new.parent
            parents[index] = _id(indexes[parent]) if isinstance(parent, int) else parent
    jobs: dict[str, list[Job[Any]]] = {path: [] for path in app.destination_events}
    for index, new in enumerate(admission.new):
        event = _as_stored(app, new, _id(index), parents[index])
        for new_job in new.jobs:
            flow = app.destination_events[new_job.destination].flows[new.event_type]
            if new_job.when_error is not None and flow.when is not None:
                # Raises here; the gateway stores the error, and the job fails with it.
                flow.when(event)
            data = event.data if flow.transform is None else flow.transform(event)
            jobs[new_job.destination].append(Job(data, event, f"{event.id}-1", attempt=1))
    return jobs


def _id(index: int) -> str:
    return f"evt_{index + 1}"


def _extract(app: Blacksmith, source_event: AnySourceEvent, sent: Any) -> Sequence[NewEvent]:
    path = source_event.path
    if app.source_events.get(path) is not source_event:
        raise UsageError(f"{path} is not in this application; add its source to sources=")
    extractor = Extractor(app, source_event)
    if isinstance(sent, Event):
        if source_event.function is None:  # no function returns the event: its data is a body
            data = decoder(source_event.model)(encode(sent.data))
            sent = msgspec.structs.replace(sent, data=data)
        return extractor.extract_returned(sent)
    if isinstance(sent, Poll):
        return extractor.extract_returned(source_event(sent))
    if isinstance(source_event.trigger, Subscription):
        return extractor.extract(sent if isinstance(sent, Message) else Message.of(sent)).events
    return extractor.extract(sent if isinstance(sent, Request) else Request.of(sent)).events


def _as_stored(app: Blacksmith, new: NewEvent, event_id: str, parent: str | None) -> Event[Any]:
    return Event(
        decoder(app.source_events[new.event_type].model, stored=True)(new.payload),
        new.key,
        new.sent_at,
        {} if new.context is None else msgspec.json.decode(new.context),
        new.version,
        event_id,
        datetime.now(UTC),
        parent,
    )
