"""Idempotency keys, and the positions of readers: what makes a repeated event one event."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection, bindparam, delete, select, tuple_, update

from blacksmith_dagster.errors import KeyReused, PositionMoved
from blacksmith_dagster.store.interface import NewEvent, Position
from blacksmith_dagster.store.tables import keys, positions
from blacksmith_dagster.store.upkeep import upsert

Key = tuple[str, str, int]
"""Kind, key, ordinal in the request."""


class Known(NamedTuple):
    """What a key stands for already: the event's number, and the digest of its body."""

    seq: int
    digest: bytes


class Admission(NamedTuple):
    """What becomes of the requests of one commit.

    `new` are the events to append. `slots` has for each request its `KeyReused`, or for each of its
    events an index into `new` (0 and up) or `~seq` of the event that it repeats. `claimed` are the
    keys written for the events of `new`, by index; `unused` those written and not needed.
    """

    new: Sequence[NewEvent]
    slots: Sequence[KeyReused | Sequence[int]]
    claimed: Mapping[Key, int]
    unused: Sequence[Key]

    def answers(
        self, seqs: Sequence[int], id_of: Callable[[int], str]
    ) -> list[list[str] | KeyReused]:
        """The public ids of each request's events, given the numbers of the new ones."""
        return [
            slot
            if isinstance(slot, KeyReused)
            else [id_of(~each if each < 0 else seqs[each]) for each in slot]
            for slot in self.slots
        ]


def resolve(requests: Sequence[Sequence[NewEvent]], known: Mapping[Key, Known]) -> Admission:
    """Decide which events are new. Pure.

    `known` are the keys that were there before this commit. Of two events in this commit with one
    key the first is kept, and the second is the same event, or the request is refused.
    """
    new: list[NewEvent] = []
    slots: list[KeyReused | Sequence[int]] = []
    claimed: dict[Key, int] = {}
    for request in requests:
        fresh: dict[Key, int] = {}
        slot: list[int] = []
        refused: KeyReused | None = None
        start = len(new)
        for event in request:
            if event.key is None:
                slot.append(len(new))
                new.append(event)
                continue
            key = (event.kind, event.key, event.ordinal)
            before = known.get(key)
            index = claimed.get(key, fresh.get(key))
            digest = before.digest if before else None if index is None else new[index].digest
            if digest is not None and digest != event.digest:
                refused = KeyReused(
                    f"the key {event.key!r} came before with another body; send the same body again, "
                    "or give the new event a key of its own"
                )
                break
            if before is not None:
                slot.append(~before.seq)
            elif index is not None:
                slot.append(index)
            else:
                fresh[key] = len(new)
                slot.append(len(new))
                new.append(event)
        if refused is not None:
            del new[start:]
            slots.append(refused)
            continue
        claimed |= fresh
        slots.append(slot)
    asked = {
        (event.kind, event.key, event.ordinal)
        for request in requests
        for event in request
        if event.key is not None
    }
    unused = sorted(asked - known.keys() - claimed.keys())
    return Admission(new, slots, claimed, unused)


def admit(
    conn: Connection,
    requests: Sequence[Sequence[NewEvent]],
    kind_id: Callable[[str], int],
    now: datetime,
) -> Admission:
    """Claim the keys of a commit, and decide which of its events are new.

    The rows are inserted in sorted order, so that two commits wait for each other and never in a
    circle.
    """
    digests = {
        (event.kind, event.key, event.ordinal): event.digest
        for request in reversed(requests)
        for event in reversed(request)
        if event.key is not None
    }
    if not digests:
        return resolve(requests, {})
    wanted = sorted(((kind_id(key[0]), key[1], key[2]), key) for key in digests)
    inserted = conn.execute(
        upsert(conn, keys)
        .on_conflict_do_nothing()
        .returning(keys.c.kind, keys.c.key, keys.c.ordinal),
        [
            {
                "kind": row[0],
                "key": row[1],
                "ordinal": row[2],
                "digest": digests[key],
                "received_at": now,
            }
            for row, key in wanted
        ],
    )
    there = dict(wanted)
    for row in inserted:
        there.pop((row.kind, row.key, row.ordinal))
    known: dict[Key, Known] = {}
    if there:
        columns = tuple_(keys.c.kind, keys.c.key, keys.c.ordinal)
        found = select(keys).where(columns.in_(list(there)))
        for row in conn.execute(found):
            known[there[row.kind, row.key, row.ordinal]] = Known(row.seq, row.digest)
    return resolve(requests, known)


def settle(
    conn: Connection, admitted: Admission, seqs: Sequence[int], kind_id: Callable[[str], int]
) -> None:
    """Let the claimed keys point to their events, and give back those of refused requests."""
    if admitted.claimed:
        conn.execute(
            _POINT,
            [
                {**_named(key, kind_id), "to": seqs[index], "body": admitted.new[index].digest}
                for key, index in sorted(admitted.claimed.items())
            ],
        )
    if admitted.unused:
        conn.execute(_GIVE_BACK, [_named(key, kind_id) for key in admitted.unused])


def _named(key: Key, kind_id: Callable[[str], int]) -> dict[str, Any]:
    return {"of": kind_id(key[0]), "named": key[1], "at": key[2]}


_this = (
    keys.c.kind == bindparam("of"),
    keys.c.key == bindparam("named"),
    keys.c.ordinal == bindparam("at"),
)
# The digest too: the row may have been inserted for a request that was then refused.
_POINT = update(keys).where(*_this).values(seq=bindparam("to"), digest=bindparam("body"))
_GIVE_BACK = delete(keys).where(*_this)


def move(conn: Connection, position: Position) -> None:
    """Move a reader's position on. Raises `PositionMoved` if it is not where the reader left it."""
    if position.before is None:
        moved = upsert(conn, positions).values(reader=position.reader, value=position.after)
        moved = moved.on_conflict_do_nothing()
    else:
        mine = (positions.c.reader == position.reader, positions.c.value == position.before)
        moved = update(positions).where(*mine).values(value=position.after)
    if conn.execute(moved.returning(positions.c.reader)).first() is None:
        raise PositionMoved(
            f"{position.reader} is no longer at {position.before!r}: another process has read on; "
            "read the position again and go on from there"
        )
