"""Tables of a SQL database as destination events."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, Unpack

import sqlalchemy as sa

from blacksmith_dagster.destinations.dialects import (
    TableWriter,
    data_error,
    database_message,
    limit_transaction,
    open_engine,
    open_writer,
)
from blacksmith_dagster.destinations.rows import TableRow, fit_rows, group_rows
from blacksmith_dagster.destinations.statements import split_postgresql, split_sqlite
from blacksmith_dagster.errors import (
    BlacksmithError,
    DeclarationError,
    MigrationError,
    Unavailable,
)
from blacksmith_dagster.pipeline.destination import (
    Destination,
    DestinationEvent,
    DestinationEventProperties,
    DestinationProperties,
)
from blacksmith_dagster.pipeline.event import Batch
from blacksmith_dagster.pipeline.flow import Receives
from blacksmith_dagster.pipeline.migration import Direction, Migration
from blacksmith_dagster.redaction import Secret

T = TypeVar("T")

_ROWS = 10_000  # per statement: limits the memory of its text


class SQLDestination(Destination[sa.Engine]):
    """A SQL database: PostgreSQL (with the extra `postgres`) or SQLite.

    - `url`: `postgresql://user:password@host/database`, `sqlite:////path/to/file.db`, or a `Secret`
      that holds one. It is never printed.
    - the others are the `DestinationProperties` of every destination.

    `table` loads jobs into a table. Your own function, declared with `event`, gets the SQLAlchemy
    engine.

    >>> departed = Source("airport").accept("departed")
    >>> warehouse = SQLDestination("warehouse", url=Secret("WAREHOUSE_URL"))
    >>> warehouse.table("flights", receives=departed, key=["carrier", "flight", "time_hour"])
    <DestinationEvent warehouse/flights>
    """

    def __init__(
        self, name: str, *, url: Secret | str, **own: Unpack[DestinationProperties]
    ) -> None:
        super().__init__(name, connect=self._connect, **own)
        self.url = url

    def table(
        self,
        name: str,
        *,
        receives: Receives[T] | Sequence[Receives[T]],
        key: Sequence[str] = (),
        sequence_by: str | None = None,
        definition: sa.Table | None = None,
        **own: Unpack[DestinationEventProperties],
    ) -> DestinationEvent[T]:
        """Load each job into a row of the table `name`: its data's fields are the columns.

        A batch is one transaction. A row that the database rejects, or that has a field without a
        column, fails without the others.

        - `key`: columns with a unique index. A row updates the existing row with the same key; without
          `key` each job is inserted, and again if it is loaded again.
        - `sequence_by`: a column outside the key. A row is replaced only by one whose value in it
          is at least as great.
        - `definition`: the table, created if it is missing; its name and schema apply instead
          of `name`.
        - the others are `DestinationEventProperties`, as with `Destination.event`.

        A load raises `Unavailable` if
        the database does not respond, and `DeclarationError` if the table does not exist or cannot be
        written as declared: all jobs are retried then.

        >>> departed = Source("airport").accept("departed")
        >>> warehouse = SQLDestination("warehouse", url="sqlite:///warehouse.db")
        >>> flights = warehouse.table("flights", receives=departed, key=["id"], sequence_by="updated_at")
        >>> flights.description
        'Upserts into the table flights by id, keeping the newest updated_at.'

        Raises `DeclarationError`.
        """
        if isinstance(key, str):
            raise DeclarationError(
                f"{self.name}/{name}: key={key!r}: write a list, as in [{key!r}]"
            )
        if sequence_by is not None and not key:
            raise DeclarationError(
                f"{self.name}/{name}: sequence_by={sequence_by!r} decides which of two rows with the "
                "same key stays; give the key too"
            )
        if sequence_by is not None and sequence_by in key:
            raise DeclarationError(
                f"{self.name}/{name}: sequence_by={sequence_by!r} is part of the key, so it is equal in "
                "the two rows that it should order; name a column that is greater in the newer row"
            )
        table = _TargetTable(f"{self.name}/{name}", name, tuple(key), sequence_by, definition)

        def load(batch: Batch[T], engine: sa.Engine) -> None:
            table.load(batch, engine, event.timeout.total_seconds())

        load.__doc__ = table.description
        event: DestinationEvent[T] = self.event(receives=receives, name=name, **own)(load)
        return event

    def migrate(self, migration: Migration, direction: Direction) -> None:
        """Run a migration of the destination or of one of its events in one transaction.

        A function is called with the SQLAlchemy connection. SQL with a line
        `-- blacksmith: no transaction` runs statement by statement without one, as
        `CREATE INDEX CONCURRENTLY` requires.

        Raises `MigrationError` if the SQL ends the transaction itself, and the database's errors.
        """
        self.migrate_and_record(migration, direction, lambda _: None)

    def migrate_and_record(
        self,
        migration: Migration,
        direction: Direction,
        record: Callable[[sa.Connection], None],
    ) -> None:
        """Like `migrate`, and call `record` within the transaction, before its commit."""
        step = migration.step(direction)
        with contextmanager(self._connect)() as engine:
            if not migration.in_transaction(direction):
                _run_statements(engine, migration.sql(direction))
                return
            with engine.begin() as connection:
                if callable(step):
                    step(connection)
                else:
                    _run_script(connection, migration, direction)
                record(connection)

    def is_at(self, url: sa.URL) -> bool:
        """Whether its database is the one at `url`. Raises `MissingSecret`, `SettingsError`."""
        with contextmanager(self._connect)() as engine:
            return _database_of(engine.url) == _database_of(url)

    def _connect(self) -> Iterator[sa.Engine]:
        url = self.url.reveal() if isinstance(self.url, Secret) else self.url
        engine = open_engine(f"destination {self.name!r}", url)
        try:
            yield engine
        finally:
            engine.dispose()


def _run_script(connection: sa.Connection, migration: Migration, direction: Direction) -> None:
    """Run SQL in the connection's transaction; the driver treats no ':' or '%' as a parameter."""
    script = migration.sql(direction)
    driver: Any = connection.connection.driver_connection
    if connection.dialect.name == "postgresql":
        from psycopg.pq import TransactionStatus

        driver.execute(script)  # the server splits it into statements
        within = driver.info.transaction_status != TransactionStatus.IDLE
    else:
        for statement in split_sqlite(script):
            driver.execute(statement)
        within = driver.in_transaction
    if not within:
        raise MigrationError(
            f"{migration}: its SQL ended its transaction; remove COMMIT and "
            "ROLLBACK, or write a line `-- blacksmith: no transaction`"
        )


def _run_statements(engine: sa.Engine, script: str) -> None:
    """Run SQL statement by statement, without a transaction."""
    pooled = engine.raw_connection()
    try:
        driver: Any = pooled.driver_connection
        postgresql = engine.dialect.name == "postgresql"
        if postgresql:
            driver.autocommit = True
        for statement in split_postgresql(script) if postgresql else split_sqlite(script):
            driver.execute(statement)
    finally:
        pooled.invalidate()  # it may have been left in any state
        pooled.close()


def _database_of(url: sa.URL) -> tuple[object, ...]:
    """What identifies a database: its address, name and options."""
    if url.get_backend_name() == "sqlite":
        return ("sqlite", Path(url.database or "").absolute())
    return (url.get_backend_name(), url.host, url.port or 5432, url.database, url.query)


class _TargetTable:
    """One table and its columns, which are read once per engine, and again after an error."""

    def __init__(
        self,
        path: str,
        name: str,
        key: tuple[str, ...],
        sequence_by: str | None,
        definition: sa.Table | None,
    ) -> None:
        self._path = path
        self._table = (
            sa.table(name)
            if definition is None
            else sa.table(definition.name, schema=definition.schema)
        )
        self._key = key
        self._sequence_by = sequence_by
        self._needed = (*key, sequence_by) if sequence_by else key
        self._definition = definition
        self._cached: tuple[sa.Engine, TableWriter] | None = None

    @property
    def description(self) -> str:
        if not self._key:
            return f"Inserts into the table {self._table.name}."
        by = f"Upserts into the table {self._table.name} by {', '.join(self._key)}"
        return f"{by}, keeping the newest {self._sequence_by}." if self._sequence_by else f"{by}."

    def load(self, batch: Batch[Any], engine: sa.Engine, seconds: float) -> None:
        """Write the batch in one transaction of at most `seconds`."""
        try:
            writer, rows = self._fit(batch, engine)
            with engine.begin() as connection:
                limit_transaction(connection, seconds)
                for group in group_rows(rows, self._key):
                    for start in range(0, len(group), _ROWS):
                        _write(writer, connection, group[start : start + _ROWS], batch)
        except sa.exc.DBAPIError as error:
            self._cached = None
            raise self._database_error(error) from error

    def _fit(self, batch: Batch[Any], engine: sa.Engine) -> tuple[TableWriter, list[TableRow]]:
        """The rows that fit the table; fails the jobs of the others."""
        cached = self._cached[1] if self._cached and self._cached[0] is engine else None
        writer = cached or self._read(engine)
        rows, invalid = fit_rows(batch, writer.columns.keys(), self._table.name, self._needed)
        if invalid and cached:  # a column may have been added since
            writer = self._read(engine)
            rows, invalid = fit_rows(batch, writer.columns.keys(), self._table.name, self._needed)
        for job, reason in invalid:
            batch.fail(job, reason)
        return writer, rows

    def _read(self, engine: sa.Engine) -> TableWriter:
        if self._definition is not None:
            self._definition.create(engine, checkfirst=True)
        with engine.connect() as connection:
            writer = open_writer(connection, self._table, self._key, self._sequence_by)
        name = self._table.name
        if not writer.columns:
            raise DeclarationError(
                f"{self._path}: the database has no table {name!r}; create it, or declare it with "
                "definition=<a SQLAlchemy Table>"
            )
        if missing := set(self._needed) - writer.columns.keys():
            raise DeclarationError(
                f"{self._path}: table {name!r} has no column {', '.join(sorted(missing))}, which key= "
                "or sequence_by= names; add it, or name another"
            )
        self._cached = engine, writer
        return writer

    def _database_error(self, error: sa.exc.DBAPIError) -> BlacksmithError:
        message = database_message(error)
        if "ON CONFLICT" in message:
            columns = ", ".join(f'"{column}"' for column in self._key)
            return DeclarationError(
                f"{self._path}: the key of table {self._table.name!r} is not unique; CREATE UNIQUE "
                f'INDEX ON "{self._table.name}" ({columns}), or give another key='
            )
        if isinstance(error, (sa.exc.OperationalError, sa.exc.InterfaceError)):
            return Unavailable(
                f"{self._path}: the database rejected the batch, whose jobs are retried: {message}"
            )
        return DeclarationError(
            f"{self._path}: table {self._table.name!r} cannot be written as declared: {message}"
        )


def _write(
    writer: TableWriter, connection: sa.Connection, rows: Sequence[TableRow], batch: Batch[Any]
) -> None:
    """Write all valid rows in order; a rejected batch is halved until the faulty row is isolated."""
    waiting = [rows]
    while waiting:
        part = waiting.pop()
        try:
            with connection.begin_nested():
                writer.write(connection, part)
        except (sa.exc.DBAPIError, OverflowError, ValueError) as error:
            reason = data_error(error)
            if reason is None:
                raise
            if len(part) == 1:
                batch.fail(part[0].job, reason)
            else:
                half = len(part) // 2
                waiting += [part[half:], part[:half]]
