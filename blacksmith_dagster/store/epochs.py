"""Public ids of events: opaque, and never used twice, even after a restore."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence

from blacksmith_dagster.errors import NotFound

_ID = re.compile(r"evt_([0-9a-f]{8})([0-9a-f]{12})")


class Epochs:
    """The epochs of a store, by which sequence numbers become public ids and back.

    An id is derived from the epoch and the sequence number, so that it needs neither column nor index.

    >>> epochs = Epochs([(0, "0badcafe")])
    >>> epochs.id_of(42)
    'evt_0badcafe00000000002a'
    >>> epochs.seq_of("evt_0badcafe00000000002a")
    42
    """

    def __init__(self, epochs: Sequence[tuple[int, str]]) -> None:
        self._firsts = [first for first, _ in epochs]
        self._names = [name for _, name in epochs]

    def id_of(self, seq: int) -> str:
        """The public id of the event with this sequence number."""
        return self.ids_of((seq,))[0]

    def ids_of(self, seqs: Iterable[int]) -> list[str]:
        """The public ids of several events, in their order."""
        newest, first = self._names[-1], self._firsts[-1]
        return [f"evt_{newest if seq >= first else self._epoch_of(seq)}{seq:012x}" for seq in seqs]

    def _epoch_of(self, seq: int) -> str:
        return self._names[bisect_right(self._firsts, seq) - 1]

    def seq_of(self, event_id: str) -> int:
        """The sequence number of a public id. Raises `NotFound` if the id is not of this store."""
        match = _ID.fullmatch(event_id)
        if match is None or self.id_of(seq := int(match[2], 16)) != event_id:
            raise NotFound(
                f"no event {event_id!r} in this store; `blacksmith events list` shows some"
            )
        return seq
