"""Idempotency keys: what makes a repeated event one event."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from blacksmith_dagster.errors import KeyReused
from blacksmith_dagster.store.interface import NewEvent

Key = tuple[str, str, int]
"""Event type, key, ordinal in the request."""


class StoredKey(NamedTuple):
    """What a key stands for already: the event's number, and the digest of its body."""

    seq: int
    digest: bytes


class Resolution(NamedTuple):
    """What becomes of the requests of one commit.

    `new` are the events to append. `slots` has for each request its `KeyReused`, or for each of its
    events an index into `new` (0 and up) or `~seq` of the event that it repeats. `parents` are those
    of the children among `new`, by the child's index: a parent's seq, or `~index` of one in `new`.
    `claimed` are the keys to be written for the events of `new`, by index.
    """

    new: Sequence[NewEvent]
    slots: Sequence[KeyReused | Sequence[int]]
    parents: Mapping[int, int]
    claimed: Mapping[Key, int]

    @property
    def rejected(self) -> bool:
        """Whether some request has reused a key."""
        return any(isinstance(slot, KeyReused) for slot in self.slots)

    @property
    def rejections(self) -> list[list[str] | KeyReused]:
        """The results if nothing is kept, as some request has reused a key."""
        return [slot if isinstance(slot, KeyReused) else [] for slot in self.slots]

    def results(
        self, ids: Sequence[str], id_of: Callable[[int], str]
    ) -> list[list[str] | KeyReused]:
        """The public ids of each request's events, given those of the new ones."""
        return [
            slot
            if isinstance(slot, KeyReused)
            else [id_of(~each) if each < 0 else ids[each] for each in slot]
            for slot in self.slots
        ]


def resolve(requests: Sequence[Sequence[NewEvent]], known: Mapping[Key, StoredKey]) -> Resolution:
    """Decide which events are new. Pure.

    `known` are the keys that were there before this commit. Of two events in this commit with one
    key the first is kept, and the second is the same event, or the request is rejected.
    """
    new: list[NewEvent] = []
    slots: list[KeyReused | Sequence[int]] = []
    parents: dict[int, int] = {}
    claimed: dict[Key, int] = {}
    for request in requests:
        fresh: dict[Key, int] = {}
        children: dict[int, int] = {}
        slot: list[int] = []
        rejected: KeyReused | None = None
        start = len(new)
        for event in request:
            index: int | None = None
            if event.key is not None:
                key = (event.event_type, event.key, event.ordinal)
                before = known.get(key)
                index = claimed.get(key, fresh.get(key))
                digest = before.digest if before else None if index is None else new[index].digest
                if digest is not None and digest != event.digest:
                    rejected = KeyReused(
                        f"the key {event.key!r} came before with another body; send the same body "
                        "again, or give the new event a key of its own"
                    )
                    break
                if before is not None:
                    slot.append(~before.seq)
                    continue
                if index is None:
                    fresh[key] = len(new)
            if index is None:
                index = len(new)
                new.append(event)
                if isinstance(event.parent, int):
                    children[index] = ~slot[event.parent]
            slot.append(index)
        if rejected is not None:
            del new[start:]
            slots.append(rejected)
            continue
        claimed |= fresh
        parents |= children
        slots.append(slot)
    return Resolution(new, slots, parents, claimed)


def keys_of(requests: Iterable[Iterable[NewEvent]]) -> set[Key]:
    """The keys of a commit. Pure."""
    return {
        (event.event_type, event.key, event.ordinal)
        for request in requests
        for event in request
        if event.key is not None
    }
