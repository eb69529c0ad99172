"""The differences between PostgreSQL and SQLite: connecting, reading a table's columns, writing rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence, Set
from datetime import UTC, date, datetime, time
from math import isfinite
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.sql import quoted_name
from sqlalchemy.types import UserDefinedType

from blacksmith_dagster.destinations.rows import TableRow
from blacksmith_dagster.errors import SettingsError

CONNECT_SECONDS = 10
BUSY_SECONDS = 30


def open_engine(where: str, url: str) -> sa.Engine:
    """An engine for the database at `url`; it does not connect yet.

    Raises `SettingsError` for a database other than PostgreSQL and SQLite, or an invalid URL, and
    `ImportError` if the driver is not installed. No message shows the URL.
    """
    try:
        parsed = sa.make_url(url)
    except (sa.exc.ArgumentError, ValueError):
        raise SettingsError(
            f"{where}: its url is invalid; write postgresql://user:password@host:5432/database "
            "or sqlite:////path/to/file.db, with special characters percent-encoded"
        ) from None
    backend = parsed.drivername.partition("+")[0]
    if backend in ("postgresql", "postgres"):
        # SQLAlchemy 2.0 takes a plain postgresql:// as psycopg2; we use psycopg 3.
        psycopg = parsed.set(drivername="postgresql+psycopg")
        # Poolers in transaction mode lose prepared statements.
        options = {"connect_timeout": CONNECT_SECONDS, "prepare_threshold": None}
        try:
            return sa.create_engine(
                psycopg, hide_parameters=True, pool_pre_ping=True, connect_args=options
            )
        except ModuleNotFoundError as error:
            raise ImportError(
                f"{where} writes to PostgreSQL, which needs psycopg: "
                "pip install 'blacksmith-dagster[postgres]'"
            ) from error
    if backend == "sqlite":
        engine = sa.create_engine(
            parsed.set(drivername="sqlite"),
            hide_parameters=True,
            connect_args={"timeout": BUSY_SECONDS},
        )
        # Python's driver begins a transaction too late for savepoints, so SQLAlchemy begins it; as a
        # write transaction, so that it waits for another writer instead of failing.
        sa.event.listen(engine, "connect", _disable_driver_transactions)
        sa.event.listen(engine, "begin", _begin_immediate)
        return engine
    raise SettingsError(
        f"{where}: SQLDestination writes to PostgreSQL and SQLite, not to {backend!r}; declare a "
        "Destination with connect= and your own function"
    )


def limit_transaction(connection: sa.Connection, seconds: float) -> None:
    """End the transaction with the load at the latest, and let each row fail separately."""
    if connection.dialect.name == "postgresql":
        connection.execute(_SET_LIMITS, {"limit": str(int(seconds * 1000))})
        # A deferred constraint would fail at the commit, with all rows.
        connection.exec_driver_sql("SET CONSTRAINTS ALL IMMEDIATE")


def open_writer(
    connection: sa.Connection, table: sa.TableClause, key: Sequence[str], sequence_by: str | None
) -> TableWriter:
    """A writer for `table` as the database has it now; without columns if it does not exist."""
    if connection.dialect.name == "postgresql":
        quoted = connection.dialect.identifier_preparer.format_table(table)
        specs = connection.execute(_COLUMNS, {"table": quoted})
        types = {name: _DeclaredType(spec) for name, spec in specs}
        return _PostgreSQLTable(table, types, key, sequence_by)
    try:
        columns = sa.inspect(connection).get_columns(table.name, table.schema)
    except sa.exc.NoSuchTableError:
        columns = []
    written = [column for column in columns if "computed" not in column]
    converters = {column["name"]: _converter(column["type"]) for column in written}
    return _SQLiteTable(table, converters, key, sequence_by)


def data_error(error: Exception) -> str | None:
    """Why the data made the write fail; `None` if the data was not the reason."""
    if isinstance(error, sa.exc.DBAPIError):
        state = getattr(error.orig, "sqlstate", None)
        if state is None:
            of_data = isinstance(error, (sa.exc.DataError, sa.exc.IntegrityError))
        else:
            of_data = state[:2] in _DATA_SQLSTATES
        return database_message(error) if of_data else None
    # Not from the database: an integer over 64 bits, half a surrogate pair, text for a time column.
    return str(error)


def database_message(error: sa.exc.DBAPIError) -> str:
    """The database's message, without the statement and, on PostgreSQL, without the whole row."""
    diagnosis = getattr(error.orig, "diag", None)
    message = diagnosis and diagnosis.message_primary
    return message or next(iter(str(error.orig).splitlines()), type(error.orig).__name__)


class TableWriter(ABC):
    """Writes rows into one table; `columns` are those that can be written, with their types."""

    def __init__(
        self,
        table: sa.TableClause,
        columns: Mapping[str, Any],
        key: Sequence[str],
        sequence_by: str | None,
    ) -> None:
        self.columns = columns
        # Always quoted: SQLAlchemy does not know every keyword of each database.
        quoted: list[sa.ColumnClause[Any]] = [
            sa.column(quoted_name(column, True)) for column in sorted(columns)
        ]
        self._table = sa.table(quoted_name(table.name, True), *quoted, schema=table.schema)
        self._key = key
        self._sequence_by = sequence_by
        self._statements: dict[frozenset[str], sa.Executable] = {}

    def write(self, connection: sa.Connection, rows: Sequence[TableRow]) -> None:
        """Insert or upsert rows with the same columns and different keys."""
        names = frozenset(rows[0].values)
        if names not in self._statements:
            self._statements[names] = self._on_conflict(self._insert(sorted(names)), names)
        connection.execute(self._statements[names], self._parameters(rows))

    @abstractmethod
    def _insert(self, names: Sequence[str]) -> postgresql.Insert | sqlite.Insert:
        """The statement that inserts rows with these columns."""

    @abstractmethod
    def _parameters(self, rows: Sequence[TableRow]) -> Any:
        """What the statement is executed with to insert these rows."""

    def _on_conflict(
        self, insert: postgresql.Insert | sqlite.Insert, names: Set[str]
    ) -> sa.Executable:
        if not self._key:
            return insert
        key = [self._table.c[name] for name in self._key]
        replaced = {name: insert.excluded[name] for name in names if name not in self._key}
        if not replaced:
            return insert.on_conflict_do_nothing(index_elements=key)
        newer = None
        if self._sequence_by is not None:
            stored = self._table.c[self._sequence_by]
            newer = sa.or_(stored.is_(None), insert.excluded[self._sequence_by] >= stored)
        return insert.on_conflict_do_update(index_elements=key, set_=replaced, where=newer)


class _PostgreSQLTable(TableWriter):
    """One statement with one bound value, the rows as JSON.

    PostgreSQL converts each value to its column's type, like a literal: the text
    '2013-01-01T10:00:00Z' becomes a time in a time column. Unlike COPY it needs no temporary table,
    and so no write to the catalog.
    """

    def _insert(self, names: Sequence[str]) -> postgresql.Insert:
        text = sa.bindparam("rows", type_=sa.Text)
        records = (
            sa.func.json_to_recordset(sa.cast(text, postgresql.JSON))
            .table_valued(
                *(sa.column(quoted_name(name, True), self.columns[name]) for name in names)
            )
            .render_derived(name="records", with_types=True)
        )
        rows = sa.select(*(records.c[name] for name in names))
        return postgresql.insert(self._table).from_select(list(names), rows)

    def _parameters(self, rows: Sequence[TableRow]) -> Mapping[str, str]:
        return {"rows": msgspec.json.encode([_as_json(row.values) for row in rows]).decode()}


class _SQLiteTable(TableWriter):
    """One prepared statement, executed for each row."""

    def _insert(self, names: Sequence[str]) -> sqlite.Insert:  # noqa: ARG002
        return sqlite.insert(self._table)

    def _parameters(self, rows: Sequence[TableRow]) -> Sequence[Mapping[str, Any]]:
        convert = self.columns
        return [{name: convert[name](value) for name, value in row.values.items()} for row in rows]


class _DeclaredType(UserDefinedType[Any]):
    """A type in PostgreSQL's own notation, whichever extension it comes from.

    A value for a time without a zone is read with its zone and then cast; otherwise PostgreSQL would
    ignore its offset.
    """

    cache_ok = True

    def __init__(self, spec: str) -> None:
        self.spec = spec

    def get_col_spec(self, **_: Any) -> str:
        if self.spec.startswith("timestamp"):
            return self.spec.replace("without time zone", "with time zone")
        return self.spec


def _as_json(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """The same values, with those that JSON cannot express as text that PostgreSQL reads."""
    as_text = {
        name: f"\\x{value.hex()}" if type(value) is bytes else str(value)
        for name, value in values.items()
        if type(value) is bytes or (type(value) is float and not isfinite(value))
    }
    return {**values, **as_text} if as_text else values


def _converter(column: sa.types.TypeEngine[Any]) -> Callable[[Any], Any]:
    """How to store a value in a column of this type in SQLite, which has neither times nor JSON."""
    if isinstance(column, sa.JSON):
        return lambda value: None if value is None else msgspec.json.encode(value).decode()
    for sql_type, python_type in ((sa.DateTime, datetime), (sa.Date, date), (sa.Time, time)):
        if isinstance(column, sql_type):
            return lambda value: _sqlite_value(
                msgspec.convert(value, python_type) if isinstance(value, str) else value
            )
    return _sqlite_value


def _sqlite_value(value: Any) -> Any:
    if type(value) in _SQLITE_TYPES:
        return value
    if isinstance(value, datetime):
        utc = value.astimezone(UTC).replace(tzinfo=None) if value.tzinfo else value
        return utc.isoformat(" ", "microseconds")  # as SQLAlchemy and pandas write it
    if isinstance(value, (date, time)):
        return value.isoformat()
    return msgspec.json.encode(value).decode() if isinstance(value, (dict, list)) else str(value)


def _disable_driver_transactions(connection: Any, _: object) -> None:
    connection.isolation_level = None


def _begin_immediate(connection: sa.Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


_SQLITE_TYPES = frozenset({type(None), str, int, float, bool, bytes})

# Data, integrity, check option, program limits, raised by a trigger. "Cardinality" (21) is two keys in
# one statement that only the database considers equal: in separate statements they can be written.
_DATA_SQLSTATES = frozenset({"21", "22", "23", "44", "54", "P0"})

_COLUMNS = sa.text(
    "SELECT attname, format_type(atttypid, atttypmod) FROM pg_catalog.pg_attribute "
    "WHERE attrelid = to_regclass(CAST(:table AS text)) "
    "AND attnum > 0 AND NOT attisdropped AND attgenerated = ''"
)
# A time without a zone counts as UTC. A process that is paused in a transaction loses the transaction.
_SET_LIMITS = sa.text(
    "SELECT set_config('TimeZone', 'UTC', true), set_config('statement_timeout', :limit, true), "
    "set_config('idle_in_transaction_session_timeout', :limit, true)"
)
