"""Tables of a SQL database as destination events."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa

from blacksmith_dagster.destinations.dialects import (
    TableWriter,
    bound_transaction,
    fault_of_the_data,
    open_engine,
    open_writer,
    said_by,
)
from blacksmith_dagster.destinations.rows import TableRow, fitted, statements
from blacksmith_dagster.destinations.statements import split_postgresql, split_sqlite
from blacksmith_dagster.errors import (
    BlacksmithError,
    DeclarationError,
    MigrationError,
    Unavailable,
)
from blacksmith_dagster.pipeline.destination import Destination, DestinationEvent
from blacksmith_dagster.pipeline.event import Batch
from blacksmith_dagster.pipeline.flow import Receives
from blacksmith_dagster.pipeline.migration import Direction, Migration, Migrations
from blacksmith_dagster.pipeline.schedule import Schedule
from blacksmith_dagster.redaction import Secret

T = TypeVar("T")

_ROWS = 10_000  # of one statement: it bounds the memory that its text takes


class SQLDestination(Destination[sa.Engine]):
    """A SQL database: PostgreSQL (with the extra `postgres`) or SQLite.

    - `url`: `postgresql://user:password@host/database`, `sqlite:////path/to/file.db`, or a `Secret`
      that holds one. It is never printed.

    `table` loads jobs into a table; a function of your own, declared with `event`, is handed the
    SQLAlchemy engine.

    >>> departed = Source("airport").accept("departed")
    >>> warehouse = SQLDestination("warehouse", url=Secret("WAREHOUSE_URL"))
    >>> warehouse.table("flights", receives=departed, key=["carrier", "flight", "time_hour"])
    <DestinationEvent warehouse/flights>
    """

    def __init__(
        self,
        name: str,
        *,
        url: Secret | str,
        schedule: Schedule | None = None,
        timeout: str | None = None,
        batch: int | None = None,
        owners: Sequence[str] = (),
        tags: Mapping[str, str] | None = None,
        versions: Mapping[str, date | None] | None = None,
        default_version: str | None = None,
        migrations: Migrations | None = None,
        wait_for_migrations: bool = True,
    ) -> None:
        super().__init__(
            name,
            connect=self._connect,
            schedule=schedule,
            timeout=timeout,
            batch=batch,
            owners=owners,
            tags=tags,
            versions=versions,
            default_version=default_version,
            migrations=migrations,
            wait_for_migrations=wait_for_migrations,
        )
        self.url = url

    def table(
        self,
        name: str,
        *,
        receives: Receives[T] | Sequence[Receives[T]],
        key: Sequence[str] = (),
        newest: str | None = None,
        create: sa.Table | None = None,
        schedule: Schedule | None = None,
        timeout: str | None = None,
        batch: int | None = None,
        owners: Sequence[str] | None = None,
        tags: Mapping[str, str] | None = None,
        renamed_from: str | None = None,
        backfill: str | None = None,
        backfill_days: int = 1,
        version: str | None = None,
        migrations: Migrations | None = None,
    ) -> DestinationEvent[T]:
        """Load each job into a row of the table `name`: its data's fields are the columns.

        A batch is one transaction. A row that the database rejects, and one with a field that the
        table lacks, fails alone.

        - `key`: columns with a unique index. A row whose key is there already replaces the fields
          it has; without `key` each job is inserted, again if it is loaded again.
        - `newest`: a column that is none of the key's. A row is replaced only by one in which it is
          at least as great.
        - `create`: makes this table if it is missing; its name and schema then count, not `name`.

        The remaining arguments are those of `Destination.event`. A load raises `Unavailable` when
        the database does not respond, and `DeclarationError` when there is no such table, or it
        cannot be written as declared: no row's fault, so that all jobs are tried again.

        >>> departed = Source("airport").accept("departed")
        >>> warehouse = SQLDestination("warehouse", url="sqlite:///warehouse.db")
        >>> flights = warehouse.table("flights", receives=departed, key=["id"], newest="updated_at")
        >>> flights.description
        'Upserts into the table flights by id, keeping the newest updated_at.'

        Raises `DeclarationError`.
        """
        if isinstance(key, str):
            raise DeclarationError(
                f"{self.name}/{name}: key={key!r}: write a list, as in [{key!r}]"
            )
        if newest is not None and not key:
            raise DeclarationError(
                f"{self.name}/{name}: newest={newest!r} decides which of two rows with the same key "
                "stays; give the key too"
            )
        if newest is not None and newest in key:
            raise DeclarationError(
                f"{self.name}/{name}: newest={newest!r} is of the key, and so the same in the two rows "
                "that it should decide between; name a column that tells the newer from the older"
            )
        table = _TargetTable(f"{self.name}/{name}", name, tuple(key), newest, create)

        def load(batch: Batch[T], engine: sa.Engine) -> None:
            table.load(batch, engine, event.timeout.total_seconds())

        load.__doc__ = table.description
        event: DestinationEvent[T] = self.event(
            receives=receives,
            name=name,
            schedule=schedule,
            timeout=timeout,
            batch=batch,
            owners=owners,
            tags=tags,
            renamed_from=renamed_from,
            backfill=backfill,
            backfill_days=backfill_days,
            version=version,
            migrations=migrations,
        )(load)
        return event

    def migrate(self, migration: Migration, direction: Direction) -> None:
        """Run a migration of the destination or of one of its events in one transaction.

        A function is called with the SQLAlchemy connection. SQL with a line
        `-- blacksmith: no transaction` is run statement by statement, outside of any (as
        `CREATE INDEX CONCURRENTLY` must be).

        Raises `MigrationError` if the SQL ends the transaction itself, and what the database raises.
        """
        self.migrate_and_record(migration, direction, lambda _: None)

    def migrate_and_record(
        self,
        migration: Migration,
        direction: Direction,
        record: Callable[[sa.Connection], None],
    ) -> None:
        """As `migrate`; `record` is called within the transaction, before it is committed."""
        step = migration.step(direction)
        with contextmanager(self._connect)() as engine:
            if not migration.in_transaction(direction):
                _run_alone(engine, migration.sql(direction))
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
            return _place(engine.url) == _place(url)

    def _connect(self) -> Iterator[sa.Engine]:
        url = self.url.reveal() if isinstance(self.url, Secret) else self.url
        engine = open_engine(f"destination {self.name!r}", url)
        try:
            yield engine
        finally:
            engine.dispose()


def _run_script(connection: sa.Connection, migration: Migration, direction: Direction) -> None:
    """Run SQL in the connection's transaction, by the driver: no ':' or '%' is a parameter to it."""
    script = migration.sql(direction)
    driver: Any = connection.connection.driver_connection
    if connection.dialect.name == "postgresql":
        from psycopg.pq import TransactionStatus

        driver.execute(script)  # the server takes it apart
        within = driver.info.transaction_status != TransactionStatus.IDLE
    else:
        for statement in split_sqlite(script):
            driver.execute(statement)
        within = driver.in_transaction
    if not within:
        raise MigrationError(
            f"{migration}: its SQL has ended the transaction in which it runs; remove COMMIT and "
            "ROLLBACK, or write a line `-- blacksmith: no transaction`"
        )


def _run_alone(engine: sa.Engine, script: str) -> None:
    """Run SQL statement by statement, outside of any transaction."""
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


def _place(url: sa.URL) -> tuple[object, ...]:
    """Where a database is, and which schema of it."""
    if url.get_backend_name() == "sqlite":
        return ("sqlite", Path(url.database or "").absolute())
    return (url.get_backend_name(), url.host, url.port or 5432, url.database, url.query)


class _TargetTable:
    """One table, and what is known of it: read once per engine, and again after an error."""

    def __init__(
        self,
        path: str,
        name: str,
        key: tuple[str, ...],
        newest: str | None,
        create: sa.Table | None,
    ) -> None:
        self._path = path
        self._table = (
            sa.table(name) if create is None else sa.table(create.name, schema=create.schema)
        )
        self._key = key
        self._newest = newest
        self._needed = (*key, newest) if newest else key
        self._create = create
        self._known: tuple[sa.Engine, TableWriter] | None = None

    @property
    def description(self) -> str:
        if not self._key:
            return f"Inserts into the table {self._table.name}."
        by = f"Upserts into the table {self._table.name} by {', '.join(self._key)}"
        return f"{by}, keeping the newest {self._newest}." if self._newest else f"{by}."

    def load(self, batch: Batch[Any], engine: sa.Engine, seconds: float) -> None:
        """Write the batch in one transaction that takes `seconds` at most."""
        try:
            writer, rows = self._fitted(batch, engine)
            with engine.begin() as connection:
                bound_transaction(connection, seconds)
                for group in statements(rows, self._key):
                    for start in range(0, len(group), _ROWS):
                        _write(writer, connection, group[start : start + _ROWS], batch)
        except sa.exc.DBAPIError as error:
            self._known = None
            raise self._refused(error) from error

    def _fitted(self, batch: Batch[Any], engine: sa.Engine) -> tuple[TableWriter, list[TableRow]]:
        """The rows that the table can hold; the jobs of the others have failed."""
        known = self._known[1] if self._known and self._known[0] is engine else None
        writer = known or self._read(engine)
        rows, invalid = fitted(batch, writer.columns, self._table.name, self._needed)
        if invalid and known:  # a column may have been added since
            writer = self._read(engine)
            rows, invalid = fitted(batch, writer.columns, self._table.name, self._needed)
        for job, why in invalid:
            batch.fail(job, why)
        return writer, rows

    def _read(self, engine: sa.Engine) -> TableWriter:
        if self._create is not None:
            self._create.create(engine, checkfirst=True)
        with engine.connect() as connection:
            writer = open_writer(connection, self._table, self._key, self._newest)
        name = self._table.name
        if not writer.columns:
            raise DeclarationError(
                f"{self._path}: the database has no table {name!r}; create it, or declare it with "
                "create=<a SQLAlchemy Table>"
            )
        if missing := set(self._needed) - writer.columns:
            raise DeclarationError(
                f"{self._path}: table {name!r} has no column {', '.join(sorted(missing))}, which key= "
                "or newest= names; add it, or name another"
            )
        self._known = engine, writer
        return writer

    def _refused(self, error: sa.exc.DBAPIError) -> BlacksmithError:
        said = said_by(error)
        if "ON CONFLICT" in said:
            columns = ", ".join(f'"{column}"' for column in self._key)
            return DeclarationError(
                f"{self._path}: the key of table {self._table.name!r} is not unique; CREATE UNIQUE "
                f'INDEX ON "{self._table.name}" ({columns}), or give another key='
            )
        if isinstance(error, (sa.exc.OperationalError, sa.exc.InterfaceError)):
            return Unavailable(
                f"{self._path}: the database rejected the batch, whose jobs are tried again: {said}"
            )
        return DeclarationError(
            f"{self._path}: table {self._table.name!r} cannot be written as declared: {said}"
        )


def _write(
    writer: TableWriter, connection: sa.Connection, rows: Sequence[TableRow], batch: Batch[Any]
) -> None:
    """Write what can be written, in order; a rejected batch is halved down to the row at fault."""
    waiting = [rows]
    while waiting:
        part = waiting.pop()
        try:
            with connection.begin_nested():
                writer.write(connection, part)
        except (sa.exc.DBAPIError, OverflowError, ValueError) as error:
            why = fault_of_the_data(error)
            if why is None:
                raise
            if len(part) == 1:
                batch.fail(part[0].job, why)
            else:
                half = len(part) // 2
                waiting += [part[half:], part[:half]]
