"""The messages of `pgoutput`, byte by byte as PostgreSQL's documentation lays them out."""

from datetime import UTC, datetime
from struct import pack

import pytest

from blacksmith_dagster.sources.postgres.pgoutput import Begin, Commit, PgoutputDecoder

INT4, TEXT, INT4_ARRAY = 23, 25, 1007


def relation(
    *columns: tuple[str, int], oid: int = 7, name: bytes = b"public\0t\0", key: int = 1
) -> bytes:
    """Relation: oid, schema, name, replica identity, columns (flags, name, type, modifier)."""
    described = b"".join(
        pack("!B", place < key) + name.encode() + b"\0" + pack("!Ii", type_, -1)
        for place, (name, type_) in enumerate(columns)
    )
    return b"R" + pack("!I", oid) + name + b"d" + pack("!h", len(columns)) + described


def row(*values: bytes | None) -> bytes:
    """TupleData: NULL, unchanged (here ``...``), or a length and text."""
    parts = b"".join(
        b"n" if each is None else b"u" if each == b"..." else b"t" + pack("!i", len(each)) + each
        for each in values
    )
    return pack("!h", len(values)) + parts


@pytest.fixture
def decoder() -> PgoutputDecoder:
    """One to which the table public.t (id int4, name text, tags int4[]) was described."""
    made = PgoutputDecoder()
    assert not made.decode(relation(("id", INT4), ("name", TEXT), ("tags", INT4_ARRAY)))
    return made


def test_begin_and_commit() -> None:
    at = datetime(2026, 1, 31, 12, 30, 0, 5, tzinfo=UTC)
    microseconds = int((at - datetime(2000, 1, 1, tzinfo=UTC)).total_seconds() * 1_000_000)
    begin = b"B" + pack("!qqI", 0x1_0000_0001, microseconds, 2**32 - 1)
    assert PgoutputDecoder().decode(begin) == Begin(0x1_0000_0001, at, 2**32 - 1)
    assert PgoutputDecoder().decode(b"C" + pack("!Bqqq", 0, 1, 0x2_0000_0000, 0)) == Commit(
        0x2_0000_0000
    )


def test_insert(decoder: PgoutputDecoder) -> None:
    (found,) = decoder.decode(b"I" + pack("!I", 7) + b"N" + row(b"1", "ü".encode(), b"{1,NULL}"))
    assert (found.operation, found.old) == ("insert", None)
    assert found.new == {"id": 1, "name": "ü", "tags": [1, None]}
    assert (found.relation.schema, found.relation.table) == ("public", "t")


def test_update_without_the_old_row_or_with_its_key_or_whole(decoder: PgoutputDecoder) -> None:
    update, new = b"U" + pack("!I", 7), b"N" + row(b"2", b"...", None)
    (found,) = decoder.decode(update + new)
    assert (found.old, found.new) == (None, {"id": 2, "tags": None})
    (found,) = decoder.decode(update + b"K" + row(b"1", None, None) + new)
    assert (found.old, found.new) == ({"id": 1}, {"id": 2, "tags": None})
    (found,) = decoder.decode(update + b"O" + row(b"1", b"", None) + new)
    assert found.old == {"id": 1, "name": "", "tags": None}


def test_delete(decoder: PgoutputDecoder) -> None:
    (found,) = decoder.decode(b"D" + pack("!I", 7) + b"K" + row(b"1", None, None))
    assert (found.operation, found.new, found.old) == ("delete", None, {"id": 1})


def test_truncate_of_several_tables(decoder: PgoutputDecoder) -> None:
    decoder.decode(relation(("id", INT4), oid=8, name=b"\0u\0"))
    found = decoder.decode(b"T" + pack("!iBII", 2, 1, 7, 8))
    tables = [(each.operation, each.relation.schema, each.relation.table) for each in found]
    assert tables == [("truncate", "public", "t"), ("truncate", "pg_catalog", "u")]


def test_table_is_described_anew(decoder: PgoutputDecoder) -> None:
    decoder.decode(relation(("id", INT4), ("called", TEXT)))
    (found,) = decoder.decode(b"I" + pack("!I", 7) + b"N" + row(b"1", b"x"))
    assert found.new == {"id": 1, "called": "x"}


def test_domain_is_what_it_is_made_of_and_another_type_is_text() -> None:
    decoder = PgoutputDecoder()
    decoder.decode(b"Y" + pack("!I", 16400) + b"\0int4\0")
    decoder.decode(b"Y" + pack("!I", 16401) + b"public\0int4\0")
    decoder.decode(relation(("domain", 16400), ("own", 16401)))
    (found,) = decoder.decode(b"I" + pack("!I", 7) + b"N" + row(b"1", b"1"))
    assert found.new == {"domain": 1, "own": "1"}


def test_message_is_read_from_where_it_begins(decoder: PgoutputDecoder) -> None:
    (found,) = decoder.decode(b"w" * 25 + b"D" + pack("!I", 7) + b"K" + row(b"1", None, None), 25)
    assert found.old == {"id": 1}


@pytest.mark.parametrize("message", [b"O" + b"\0" * 8 + b"origin\0", b"M\0"])
def test_what_is_no_change_is_passed_over(message: bytes) -> None:
    assert not PgoutputDecoder().decode(message)


def test_what_version_1_does_not_have_is_refused(decoder: PgoutputDecoder) -> None:
    with pytest.raises(ValueError, match="'S'"):
        decoder.decode(b"S")
    with pytest.raises(ValueError, match="asked for text"):
        decoder.decode(b"I" + pack("!I", 7) + b"N" + pack("!h", 3) + b"b")
