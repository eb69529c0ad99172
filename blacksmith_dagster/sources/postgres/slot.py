"""Checks and creates the replication slot and the publication of a stream of changes."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import msgspec
from psycopg.sql import SQL, Composable, Identifier, Literal

from blacksmith_dagster.errors import ChangesLost, DeclarationError, SettingsError
from blacksmith_dagster.sources.postgres.change import parse_lsn
from blacksmith_dagster.sources.postgres.session import ServerError, Session

_log = logging.getLogger(__name__)

_OLDEST = 140_000
_START_OVER = (
    "to start over, name another slot (slot='...'), with snapshot=True to read the tables again"
)
# A missing slot or publication, perhaps for a part of the log; an invalidated slot; removed log files.
_LOST_STATES = frozenset({"42704", "55000", "58P01"})


class SlotPosition(msgspec.Struct, frozen=True):
    """How far a slot's changes were read: to this `change` of the transaction that was committed at
    `lsn`; or, in an unfinished snapshot at `lsn`, to this `row`."""

    slot: str
    lsn: str
    change: int = 0
    row: int | None = None


class PublishedTable(NamedTuple):
    """A table of the publication, with its published columns and rows."""

    schema: str
    name: str
    columns: Sequence[str]
    where: str | None
    partitioned: bool

    @property
    def qualified_name(self) -> Composable:
        """Its qualified name in SQL."""
        return SQL("{}.{}").format(Identifier(self.schema), Identifier(self.name))


class Slot(NamedTuple):
    """The server's record of a slot: it sends no change that was committed before `confirmed`."""

    confirmed: str
    lost: bool


def check_server(session: Session) -> None:
    """Raise `SettingsError` if the server is too old, or does not log for logical replication."""
    version = session.connection.info.server_version
    if version < _OLDEST:
        raise SettingsError(
            f"{session.label} is PostgreSQL {version // 10_000}; upgrade it to 14 or newer"
        )
    level = session.rows(SQL("SHOW wal_level"))[0][0]
    if level != "logical":
        raise SettingsError(
            f"{session.label}: its wal_level is {level}; set wal_level = logical in "
            "postgresql.conf (in a managed database, the parameter for it, such as "
            "rds.logical_replication) and restart the server"
        )


def find_slot(session: Session, name: str) -> Slot | None:
    """The slot, if it exists. Raises `SettingsError` if it has another database or plugin."""
    rows = session.rows(
        SQL(
            "SELECT plugin, database = current_database(), confirmed_flush_lsn,"
            " wal_status IS NOT DISTINCT FROM 'lost' FROM pg_replication_slots WHERE slot_name = {}"
        ).format(Literal(name))
    )
    if not rows:
        return None
    plugin, is_own, confirmed, lost = rows[0]
    if plugin != "pgoutput" or is_own != "t":
        raise SettingsError(
            f"{session.label}: the replication slot {name!r} belongs to another database or "
            "plugin; drop it, or give another slot="
        )
    return Slot(confirmed or "0/0", lost == "t")


def check_continuous(session: Session, position: SlotPosition, slot: Slot | None) -> None:
    """Raise `ChangesLost` if the slot no longer has every change after `position`."""
    missing = (
        f"changes that were committed after {position.lsn} can't be read any more; {_START_OVER}"
    )
    if slot is None:
        raise ChangesLost(
            f"{session.label}: the replication slot {position.slot!r} is gone: {missing}"
        )
    if slot.lost:
        raise ChangesLost(
            f"{session.label}: the server has invalidated the replication slot {position.slot!r}, "
            f"which was too far behind (max_slot_wal_keep_size): {missing}"
        )
    if parse_lsn(slot.confirmed) > parse_lsn(position.lsn):
        raise ChangesLost(
            f"{session.label}: the replication slot {position.slot!r} begins only at "
            f"{slot.confirmed}; it was created again, or another client has read or advanced it: "
            f"{missing}"
        )
    end = session.rows(SQL("IDENTIFY_SYSTEM"))[0][2] or "0/0"
    if parse_lsn(end) < parse_lsn(position.lsn):
        raise ChangesLost(
            f"{session.label}: the server's log ends at {end}, before {position.lsn}, up to which "
            "it was read: the server was restored to an earlier state and may write other changes "
            f"there; {_START_OVER}"
        )


@contextmanager
def lost_if_refused(session: Session) -> Iterator[None]:
    """Raise `ChangesLost` for an error that says that the slot can't be streamed from any more."""
    try:
        yield
    except ServerError as error:
        if error.state not in _LOST_STATES:
            raise
        raise ChangesLost(f"{session.label}: {error}; {_START_OVER}") from None


def find_tables(session: Session, publication: str) -> Sequence[PublishedTable]:
    """The tables of a publication, sorted by name."""
    has_filters = session.connection.info.server_version >= 150_000  # of columns and rows
    published = SQL("p.attnames" if has_filters else "NULL::name[]")
    where = SQL("p.rowfilter" if has_filters else "NULL")
    rows = session.rows(
        SQL(
            "SELECT p.schemaname, p.tablename, array_to_json(ARRAY(SELECT attname FROM pg_attribute"
            " WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped AND attgenerated = ''"
            " AND ({} IS NULL OR attname = ANY ({})) ORDER BY attnum)), {}, c.relkind = 'p'"
            " FROM pg_publication_tables p JOIN pg_namespace n ON n.nspname = p.schemaname"
            " JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = p.tablename"
            " WHERE p.pubname = {} ORDER BY 1, 2"
        ).format(published, published, where, Literal(publication))
    )
    return [
        PublishedTable(
            schema, name, msgspec.json.decode(columns, type=list[str]), filter_, partitioned == "t"
        )
        for schema, name, columns, filter_, partitioned in rows
        if schema and name and columns
    ]


def publish(session: Session, publication: str, tables: Sequence[str], *, create: bool) -> None:
    """Make the publication hold exactly these tables; with `create`, create it if it is missing.

    Raises `DeclarationError` for a table that is missing or cannot be published, `SettingsError` if
    the user may not change the publication, and `ChangesLost` if it is missing without `create`.
    """
    wanted = {_oid_of(session, table): table for table in tables}
    publications = session.rows(
        SQL("SELECT oid FROM pg_publication WHERE pubname = {}").format(Literal(publication))
    )
    if publications:
        query = SQL("SELECT prrelid FROM pg_publication_rel WHERE prpubid = {}")
        published = session.rows(query.format(Literal(int(publications[0][0] or 0))))
        if {int(row[0] or 0) for row in published} == set(wanted):
            return
    elif not create:
        raise ChangesLost(
            f"{session.label}: the publication {publication!r} is gone: changes that were "
            f"committed since can't be read any more; {_START_OVER}"
        )
    for oid, table in wanted.items():
        _check_identity(session, oid, table)
    names = SQL(", ").join(
        SQL("ONLY {}.{}").format(Identifier(schema), Identifier(name))
        for schema, name in (_name(session, oid) for oid in wanted)
    )
    statement = (
        SQL("ALTER PUBLICATION {} SET TABLE {}")
        if publications
        else SQL("CREATE PUBLICATION {} FOR TABLE {} WITH (publish_via_partition_root = true)")
    ).format(Identifier(publication), names)
    try:
        session.execute(statement)
    except ServerError as error:
        text = statement.as_string(session.connection)
        if error.state == "42501":
            raise SettingsError(
                f"{session.label}: {error}; have the tables' owner run: {text}; or make this user "
                "their owner"
            ) from None
        raise DeclarationError(f"{session.label}: {error}, in response to: {text}") from None
    _log.info("%s: %s", session.label, statement.as_string(session.connection))


def create_slot(session: Session, name: str, *, snapshot: bool) -> str:
    """Create the slot; returns the place in the log at which its changes begin.

    With `snapshot`, the session is then in a transaction that sees the tables as they were there.
    """
    use = "USE_SNAPSHOT" if snapshot else "NOEXPORT_SNAPSHOT"
    if snapshot:
        session.execute(SQL("BEGIN READ ONLY ISOLATION LEVEL REPEATABLE READ"))
    _log.info(
        "%s: creating the slot %r; this waits for the transactions that are open now",
        *(session.label, name),
    )
    result = session.execute(
        SQL("CREATE_REPLICATION_SLOT {} LOGICAL pgoutput {}").format(Identifier(name), SQL(use)),
        seconds=None,
    )
    lsn = result.get_value(0, 1)
    assert lsn is not None
    return lsn.decode()


def drop_slot(session: Session, name: str) -> None:
    """Drop a slot from which no session streams."""
    session.execute(SQL("DROP_REPLICATION_SLOT {}").format(Identifier(name)))


def _oid_of(session: Session, table: str) -> int:
    try:
        rows = session.rows(SQL("SELECT to_regclass({})::oid").format(Literal(table)))
    except ServerError as error:  # not a valid name
        raise DeclarationError(f"{session.label}: table {table!r}: {error}") from None
    if (oid := rows[0][0]) is None:
        raise DeclarationError(
            f"{session.label}: its user sees no table {table!r}; create it, or name its schema "
            "too, as in 'public.customers'"
        )
    return int(oid)


def _name(session: Session, oid: int) -> tuple[str, str]:
    query = SQL(
        "SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE c.oid = {}"
    )
    schema, name = session.rows(query.format(Literal(oid)))[0]
    return schema or "", name or ""


def _check_identity(session: Session, oid: int, table: str) -> None:
    """Raise `DeclarationError` if the table, once published, would reject updates and deletes."""
    query = SQL(
        "SELECT c.oid::regclass FROM pg_class c WHERE c.relkind = 'r'"
        " AND (c.oid = {0} OR c.oid IN (SELECT relid FROM pg_partition_tree({0})))"
        " AND (c.relreplident = 'n' OR c.relreplident = 'd' AND NOT EXISTS"
        " (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary))"
    )
    if rows := session.rows(query.format(Literal(oid))):
        raise DeclarationError(
            f"{session.label}: table {rows[0][0]} (of {table!r}) has no primary key: once "
            "published, it would reject every UPDATE and DELETE; add one, or run ALTER TABLE ... "
            "REPLICA IDENTITY FULL"
        )
