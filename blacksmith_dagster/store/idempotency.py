"""Idempotency keys, which ensure that a repeated event is stored only once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

from blacksmith_dagster.errors import KeyReused
from blacksmith_dagster.store.records import NewEvent

Key = tuple[str, str, int]
"""Event type, key, ordinal in the request."""


class StoredKey(NamedTuple):
    """A key's row: the sequence number of its event, and the digest of what was sent with it."""

    seq: int
    digest: bytes


EventRef: TypeAlias = int | StoredKey
"""An event of a commit: its index in `Resolution.new`, or the key of the event that it repeats."""


class Resolution(NamedTuple):
    """The result of `resolve` for the requests of one commit.

    - `new`: the events to append.
    - `slots`: for each request its `KeyReused`, or its events.
    - `parents`: the parent of each child in `new`, by the child's index.
    - `claimed`: the keys to write, with the index in `new` of the event of each.
    """

    new: Sequence[NewEvent]
    slots: Sequence[KeyReused | Sequence[EventRef]]
    parents: Mapping[int, EventRef]
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
            else [id_of(ref.seq) if isinstance(ref, StoredKey) else ids[ref] for ref in slot]
            for slot in self.slots
        ]


def resolve(requests: Sequence[Sequence[NewEvent]], known: Mapping[Key, StoredKey]) -> Resolution:
    """Decide which events are new. Pure.

    `known` are the keys stored before this commit. If two events of this commit have the same key, the
    first is stored; the second repeats it, or its request is rejected.
    """
    new: list[NewEvent] = []
    slots: list[KeyReused | Sequence[EventRef]] = []
    parents: dict[int, EventRef] = {}
    claimed: dict[Key, int] = {}
    for request in requests:
        start = len(new)
        try:
            slot, new_keys, children = _resolve_request(request, known, claimed, new)
        except KeyReused as error:
            del new[start:]
            slots.append(error)
            continue
        claimed |= new_keys
        parents |= children
        slots.append(slot)
    return Resolution(new, slots, parents, claimed)


def _resolve_request(
    request: Sequence[NewEvent],
    known: Mapping[Key, StoredKey],
    claimed: Mapping[Key, int],
    new: list[NewEvent],
) -> tuple[list[EventRef], dict[Key, int], dict[int, EventRef]]:
    """Add the new events of a request to `new`; returns its slot, its keys and its children's parents.

    Raises `KeyReused`.
    """
    slot: list[EventRef] = []
    new_keys: dict[Key, int] = {}
    children: dict[int, EventRef] = {}
    for event in request:
        if event.key is not None:
            key = (event.event_type, event.key, event.ordinal)
            stored, index = known.get(key), claimed.get(key, new_keys.get(key))
            digest = stored.digest if stored else None if index is None else new[index].digest
            if digest is not None and digest != event.digest:
                raise KeyReused(
                    f"the key {event.key!r} was sent before with another body; send the same body "
                    "again, or give the new event a key of its own"
                )
            if stored is not None:
                slot.append(stored)
                continue
            if index is not None:
                slot.append(index)
                continue
            new_keys[key] = len(new)
        if isinstance(event.parent, int):
            children[len(new)] = slot[event.parent]
        slot.append(len(new))
        new.append(event)
    return slot, new_keys, children


def keys_of(requests: Iterable[Iterable[NewEvent]]) -> set[Key]:
    """The keys of a commit. Pure."""
    return {
        (event.event_type, event.key, event.ordinal)
        for request in requests
        for event in request
        if event.key is not None
    }
