"""The publication and the slot of a stream of changes: found, judged, made."""

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

_OLDEST = 130_000
_FIX = (
    "to begin anew, name another slot (slot='...'), with snapshot=True if the tables are to be read "
    "again"
)
# A slot or a publication that is missing, perhaps for a part of the log; a slot that was given up; a
# log that is gone.
_LOST_STATES = frozenset({"42704", "55000", "58P01"})


class SlotPosition(msgspec.Struct, frozen=True):
    """How far a slot's changes were read: to the change of this number in the transaction that was
    committed at `lsn`; or, in an unfinished snapshot taken there, to the row of this number."""

    slot: str
    lsn: str
    change: int = 0
    row: int | None = None


class PublishedTable(NamedTuple):
    """A table of the publication, and what of it is published."""

    schema: str
    name: str
    columns: Sequence[str]
    where: str | None
    partitioned: bool

    @property
    def named(self) -> Composable:
        """Its name, as a statement has it."""
        return SQL("{}.{}").format(Identifier(self.schema), Identifier(self.name))


class Slot(NamedTuple):
    """A slot as the server keeps it: up to `confirmed` it has forgotten what was committed."""

    confirmed: str
    lost: bool


def check_server(session: Session, label: str) -> None:
    """Raises `SettingsError` if the server is too old, or does not write what is to be decoded."""
    version = session.connection.info.server_version
    if version < _OLDEST:
        raise SettingsError(
            f"{label} is PostgreSQL {version // 10_000}; its changes are read from version 13 on"
        )
    level = session.rows(SQL("SHOW wal_level"))[0][0]
    if level != "logical":
        raise SettingsError(
            f"{label}: its wal_level is {level}; set wal_level = logical in postgresql.conf (in a "
            "managed database by a parameter, as rds.logical_replication) and restart the server"
        )


def find_slot(session: Session, label: str, name: str) -> Slot | None:
    """The slot, if there is one. Raises `SettingsError` if it is none of this database and plugin."""
    found = session.rows(
        SQL(
            "SELECT plugin, database = current_database(), confirmed_flush_lsn,"
            " wal_status IS NOT DISTINCT FROM 'lost' FROM pg_replication_slots WHERE slot_name = {}"
        ).format(Literal(name))
    )
    if not found:
        return None
    plugin, here, confirmed, lost = found[0]
    if plugin != "pgoutput" or here != "t":
        raise SettingsError(
            f"{label}: the replication slot {name!r} is of another database or plugin; drop it, or "
            "give another slot="
        )
    return Slot(confirmed or "0/0", lost == "t")


def check_continuous(session: Session, label: str, place: SlotPosition, slot: Slot | None) -> None:
    """Raises `ChangesLost` if the slot has not kept all that was committed after `place`."""
    missing = f"what was committed after {place.lsn} can't be read any more; {_FIX}"
    if slot is None:
        raise ChangesLost(f"{label}: the replication slot {place.slot!r} is gone: {missing}")
    if slot.lost:
        raise ChangesLost(
            f"{label}: the server has given up the replication slot {place.slot!r}, as it was too "
            f"far behind (max_slot_wal_keep_size): {missing}"
        )
    if parse_lsn(slot.confirmed) > parse_lsn(place.lsn):
        raise ChangesLost(
            f"{label}: the replication slot {place.slot!r} begins at {slot.confirmed} only; it was "
            f"made anew, or read or moved by others: {missing}"
        )
    now = session.rows(SQL("IDENTIFY_SYSTEM"))[0][2] or "0/0"
    if parse_lsn(now) < parse_lsn(place.lsn):
        raise ChangesLost(
            f"{label}: the server's log ends at {now}, before {place.lsn} to where it was read: it was "
            f"restored to an earlier state, and may write other changes there; {_FIX}"
        )


@contextmanager
def lost_if_refused(label: str) -> Iterator[None]:
    """Raise `ChangesLost` if the server can't go on with the slot that it streams from within."""
    try:
        yield
    except ServerError as error:
        if error.state not in _LOST_STATES:
            raise
        raise ChangesLost(f"{label}: {error}; {_FIX}") from None


def find_tables(session: Session, publication: str) -> Sequence[PublishedTable]:
    """The tables of a publication, in the order of their names."""
    chosen = session.connection.info.server_version >= 150_000  # columns and rows can be
    published = SQL("p.attnames" if chosen else "NULL::name[]")
    where = SQL("p.rowfilter" if chosen else "NULL")
    found = session.rows(
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
            schema, name, msgspec.json.decode(columns, type=list[str]), filter_, parts == "t"
        )
        for schema, name, columns, filter_, parts in found
        if schema and name and columns
    ]


def publish(
    session: Session, label: str, publication: str, tables: Sequence[str], *, create: bool
) -> None:
    """Have the publication hold these tables alone; make it if there is none and it may be made.

    Raises `DeclarationError` for a table that is missing or cannot be published, `SettingsError` if
    the user may not change the publication, `ChangesLost` if it is gone.
    """
    wanted = {_table(session, label, table): table for table in tables}
    there = session.rows(
        SQL("SELECT oid FROM pg_publication WHERE pubname = {}").format(Literal(publication))
    )
    if there:
        query = SQL("SELECT prrelid FROM pg_publication_rel WHERE prpubid = {}")
        held = session.rows(query.format(Literal(int(there[0][0] or 0))))
        if {int(row[0] or 0) for row in held} == set(wanted):
            return
    elif not create:
        raise ChangesLost(
            f"{label}: the publication {publication!r} is gone: what was committed since can't be read "
            f"any more; {_FIX}"
        )
    for oid, table in wanted.items():
        _check_identity(session, label, oid, table)
    only = SQL(", ").join(
        SQL("ONLY {}.{}").format(Identifier(schema), Identifier(name))
        for schema, name in (_name(session, oid) for oid in wanted)
    )
    statement = (
        SQL("ALTER PUBLICATION {} SET TABLE {}")
        if there
        else SQL("CREATE PUBLICATION {} FOR TABLE {} WITH (publish_via_partition_root = true)")
    ).format(Identifier(publication), only)
    try:
        session.execute(statement)
    except ServerError as error:
        shown = statement.as_string(session.connection)
        if error.state == "42501":
            raise SettingsError(
                f"{label}: {error}; have the tables' owner run: {shown}; or let this user own them"
            ) from None
        raise DeclarationError(f"{label}: {error}, said to: {shown}") from None
    _log.info("%s: %s", label, statement.as_string(session.connection))


def make_slot(session: Session, label: str, name: str, *, snapshot: bool) -> str:
    """Make the slot; returns the place in the log from which on it holds changes.

    With `snapshot` the session is then in a transaction that sees the tables as they were there.
    """
    use = "USE_SNAPSHOT" if snapshot else "NOEXPORT_SNAPSHOT"
    if snapshot:
        session.execute(SQL("BEGIN READ ONLY ISOLATION LEVEL REPEATABLE READ"))
    _log.info("%s: makes the slot %r, once the transactions that are open now end", label, name)
    made = session.execute(
        SQL("CREATE_REPLICATION_SLOT {} LOGICAL pgoutput {}").format(Identifier(name), SQL(use)),
        seconds=None,
    )
    lsn = made.get_value(0, 1)
    assert lsn is not None
    return lsn.decode()


def drop_slot(session: Session, name: str) -> None:
    """Drop the slot, which nobody reads."""
    session.execute(SQL("DROP_REPLICATION_SLOT {}").format(Identifier(name)))


def _table(session: Session, label: str, table: str) -> int:
    try:
        found = session.rows(SQL("SELECT to_regclass({})::oid").format(Literal(table)))
    except ServerError as error:  # not a name at all
        raise DeclarationError(f"{label}: table {table!r}: {error}") from None
    if (oid := found[0][0]) is None:
        raise DeclarationError(
            f"{label}: the database has no table {table!r} that its user sees; create it, or write its "
            "schema before it, as in 'public.customers'"
        )
    return int(oid)


def _name(session: Session, oid: int) -> tuple[str, str]:
    query = SQL(
        "SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE c.oid = {}"
    )
    schema, name = session.rows(query.format(Literal(oid)))[0]
    return schema or "", name or ""


def _check_identity(session: Session, label: str, oid: int, table: str) -> None:
    """A table that is published without telling its rows apart refuses updates and deletes."""
    query = SQL(
        "SELECT c.oid::regclass FROM pg_class c WHERE c.relkind = 'r'"
        " AND (c.oid = {0} OR c.oid IN (SELECT relid FROM pg_partition_tree({0})))"
        " AND (c.relreplident = 'n' OR c.relreplident = 'd' AND NOT EXISTS"
        " (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary))"
    )
    if bare := session.rows(query.format(Literal(oid))):
        raise DeclarationError(
            f"{label}: table {bare[0][0]} (of {table!r}) has no primary key: published, it would refuse "
            "every UPDATE and DELETE; give it one, or run ALTER TABLE ... REPLICA IDENTITY FULL"
        )
