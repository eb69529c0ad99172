"""Idempotency keys, and the positions of readers: what makes a repeated event one event."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from sqlalchemy import Connection, update

from blacksmith_dagster.errors import KeyReused, PositionMoved
from blacksmith_dagster.store.interface import NewEvent, Position
from blacksmith_dagster.store.tables import positions
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
    unused = sorted(digests_of(requests).keys() - known.keys() - claimed.keys())
    return Admission(new, slots, claimed, unused)


def digests_of(requests: Sequence[Sequence[NewEvent]]) -> Mapping[Key, bytes]:
    """The keys of a commit, each with the digest of the event that asks for it first. Pure."""
    return {
        (event.kind, event.key, event.ordinal): event.digest or b""
        for request in reversed(requests)
        for event in reversed(request)
        if event.key is not None
    }


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
