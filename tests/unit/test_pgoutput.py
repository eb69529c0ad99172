"""The decoder of `pgoutput`, with messages built as PostgreSQL's documentation specifies."""

from collections.abc import Sequence
from datetime import UTC, datetime
from struct import pack

import pytest

from blacksmith_dagster.sources.postgres.pgoutput import Begin, Commit, PgoutputDecoder, RowChange

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
        b"n"
        if value is None
        else b"u"
        if value == b"..."
        else b"t" + pack("!i", len(value)) + value
        for value in values
    )
    return pack("!h", len(values)) + parts


def changes(decoder: PgoutputDecoder, message: bytes, begin: int = 0) -> Sequence[RowChange]:
    """The changes that a message holds."""
    decoded = decoder.decode(message, begin)
    assert not isinstance(decoded, Begin | Commit)
    return decoded


@pytest.fixture
def decoder() -> PgoutputDecoder:
    """A decoder that has the description of the table public.t (id int4, name text, tags int4[])."""
    decoder = PgoutputDecoder()
    assert not decoder.decode(relation(("id", INT4), ("name", TEXT), ("tags", INT4_ARRAY)))
    return decoder


def test_begin_and_commit() -> None:
    committed_at = datetime(2026, 1, 31, 12, 30, 0, 5, tzinfo=UTC)
    microseconds = int(
        (committed_at - datetime(2000, 1, 1, tzinfo=UTC)).total_seconds() * 1_000_000
    )
    begin = b"B" + pack("!qqI", 0x1_0000_0001, microseconds, 2**32 - 1)
    assert PgoutputDecoder().decode(begin) == Begin(0x1_0000_0001, committed_at, 2**32 - 1)
    assert PgoutputDecoder().decode(b"C" + pack("!Bqqq", 0, 1, 0x2_0000_0000, 0)) == Commit(
        0x2_0000_0000
    )


def test_insert(decoder: PgoutputDecoder) -> None:
    (change,) = changes(decoder, b"I" + pack("!I", 7) + b"N" + row(b"1", "ü".encode(), b"{1,NULL}"))
    assert (change.operation, change.old) == ("insert", None)
    assert change.new == {"id": 1, "name": "ü", "tags": [1, None]}
    assert (change.relation.schema, change.relation.table) == ("public", "t")


def test_update_without_the_old_row_or_with_its_key_or_whole(decoder: PgoutputDecoder) -> None:
    update, new = b"U" + pack("!I", 7), b"N" + row(b"2", b"...", None)
    (change,) = changes(decoder, update + new)
    assert (change.old, change.new) == (None, {"id": 2, "tags": None})
    (change,) = changes(decoder, update + b"K" + row(b"1", None, None) + new)
    assert (change.old, change.new) == ({"id": 1}, {"id": 2, "tags": None})
    (change,) = changes(decoder, update + b"O" + row(b"1", b"", None) + new)
    assert change.old == {"id": 1, "name": "", "tags": None}


def test_delete(decoder: PgoutputDecoder) -> None:
    (change,) = changes(decoder, b"D" + pack("!I", 7) + b"K" + row(b"1", None, None))
    assert (change.operation, change.new, change.old) == ("delete", None, {"id": 1})


def test_truncate_of_several_tables(decoder: PgoutputDecoder) -> None:
    decoder.decode(relation(("id", INT4), oid=8, name=b"\0u\0"))
    truncated = changes(decoder, b"T" + pack("!iBII", 2, 1, 7, 8))
    tables = [
        (change.operation, change.relation.schema, change.relation.table) for change in truncated
    ]
    assert tables == [("truncate", "public", "t"), ("truncate", "pg_catalog", "u")]


def test_a_table_is_described_again(decoder: PgoutputDecoder) -> None:
    decoder.decode(relation(("id", INT4), ("called", TEXT)))
    (change,) = changes(decoder, b"I" + pack("!I", 7) + b"N" + row(b"1", b"x"))
    assert change.new == {"id": 1, "called": "x"}


def test_a_domain_is_its_base_type_and_another_type_is_text() -> None:
    decoder = PgoutputDecoder()
    decoder.decode(b"Y" + pack("!I", 16400) + b"\0int4\0")
    decoder.decode(b"Y" + pack("!I", 16401) + b"public\0int4\0")
    decoder.decode(relation(("domain", 16400), ("own", 16401)))
    (change,) = changes(decoder, b"I" + pack("!I", 7) + b"N" + row(b"1", b"1"))
    assert change.new == {"domain": 1, "own": "1"}


def test_a_message_is_read_from_its_first_byte(decoder: PgoutputDecoder) -> None:
    (change,) = changes(
        decoder, b"w" * 25 + b"D" + pack("!I", 7) + b"K" + row(b"1", None, None), 25
    )
    assert change.old == {"id": 1}


@pytest.mark.parametrize("message", [b"O" + b"\0" * 8 + b"origin\0", b"M\0"])
def test_other_messages_are_skipped(message: bytes) -> None:
    assert not PgoutputDecoder().decode(message)


def test_messages_that_version_1_does_not_have_are_refused(decoder: PgoutputDecoder) -> None:
    with pytest.raises(ValueError, match="'S'"):
        decoder.decode(b"S")
    with pytest.raises(ValueError, match="only text was requested"):
        decoder.decode(b"I" + pack("!I", 7) + b"N" + pack("!h", 3) + b"b")
