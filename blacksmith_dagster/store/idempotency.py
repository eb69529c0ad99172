"""Idempotency keys, which ensure that a repeated event is stored only once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from blacksmith_dagster.errors import KeyReused
from blacksmith_dagster.store.interface import NewEvent

Key = tuple[str, str, int]
"""Event type, key, ordinal in the request."""


class StoredKey(NamedTuple):
    """A key's row: the sequence number of its event, and the digest of what was sent with it."""

    seq: int
    digest: bytes


class Resolution(NamedTuple):
    """The result of `resolve` for the requests of one commit.

    - `new`: the events to append.
    - `slots`: for each request its `KeyReused`, or for each of its events the index in `new`, or
      `~seq` of the stored event that it repeats.
    - `parents`: the parent of each child in `new`, by the child's index: the parent's seq, or `~index`
      of a parent in `new`.
    - `claimed`: the keys to write, with the index in `new` of the event of each.
    """

    new: Sequence[NewEvent]
    slots: Sequence[KeyReused | Sequence[int]]
    parents: Mapping[int, int]
    claimed: Mapping[Key, int]

    @property
    def rejected(self) -> bool:
        """Whether a request has reused a key."""
        return any(isinstance(slot, KeyReused) for slot in self.slots)

    @property
    def rejections(self) -> list[list[str] | KeyReused]:
        """The results when nothing is stored because a request has reused a key."""
        return [slot if isinstance(slot, KeyReused) else [] for slot in self.slots]

    def results(
        self, ids: Sequence[str], id_of: Callable[[int], str]
    ) -> list[list[str] | KeyReused]:
        """The public ids of each request's events. `ids` are those of the new ones."""
        return [
            slot
            if isinstance(slot, KeyReused)
            else [id_of(~index) if index < 0 else ids[index] for index in slot]
            for slot in self.slots
        ]


def resolve(requests: Sequence[Sequence[NewEvent]], known: Mapping[Key, StoredKey]) -> Resolution:
    """Decide which events are new. Pure.

    `known` are the keys stored before this commit. If two events of this commit have the same key, the
    first is stored; the second repeats it, or its request is rejected.
    """
    new: list[NewEvent] = []
    slots: list[KeyReused | Sequence[int]] = []
    parents: dict[int, int] = {}
    claimed: dict[Key, int] = {}
    for request in requests:
        new_keys: dict[Key, int] = {}
        children: dict[int, int] = {}
        slot: list[int] = []
        rejected: KeyReused | None = None
        start = len(new)
        for event in request:
            index: int | None = None
            if event.key is not None:
                key = (event.event_type, event.key, event.ordinal)
                stored = known.get(key)
                index = claimed.get(key, new_keys.get(key))
                digest = stored.digest if stored else None if index is None else new[index].digest
                if digest is not None and digest != event.digest:
                    rejected = KeyReused(
                        f"the key {event.key!r} was sent before with another body; send the same body "
                        "again, or give the new event a key of its own"
                    )
                    break
                if stored is not None:
                    slot.append(~stored.seq)
                    continue
                if index is None:
                    new_keys[key] = len(new)
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
        claimed |= new_keys
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
