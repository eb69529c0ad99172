"""Events that are listened for, without an end: a database's changes, for example."""

from __future__ import annotations

from dataclasses import dataclass
from threading import Event as Flag
from typing import Any

from blacksmith_dagster.pipeline.triggers import Trigger


class Listener:
    """What the generator of a `CDC` event is handed.

    The generator sets `cursor` and then yields the event that it belongs to: what it was set to
    when an event is yielded is committed with this event. It looks at `stopping`, or waits by
    `wait`, every few seconds at least, and returns when asked to. It yields an empty list to keep a
    cursor that no event belongs to.

    - `cursor`: any JSON value: how far the listener had come when it was last committed; `None` at
      first.
    - `committed`: the newest cursor that is safe in the store: what came up to it may be forgotten
      at its origin.
    - `lag`: set it to tell how many bytes, or whatever `unit` says, wait at the origin.

    >>> listener = Listener(cursor=7)
    >>> listener.committed, listener.stopping, listener.wait(0)
    (7, False, False)
    """

    def __init__(self, cursor: Any = None, stop: Flag | None = None) -> None:
        self.cursor = cursor
        self.committed = cursor
        self.lag: int | None = None
        self.unit = "bytes"
        self._stop = stop or Flag()

    @property
    def stopping(self) -> bool:
        """Whether the generator is to return."""
        return self._stop.is_set()

    def wait(self, seconds: float) -> bool:
        """Wait so long, or until the generator is to return: then it is `True`."""
        return self._stop.wait(seconds)


@dataclass(frozen=True, slots=True)
class CDC(Trigger[Listener]):
    """A generator that listens and yields events, without an end.

    One instance runs at a time, under the lock `listen/<source>/<event>`. Events are committed as
    soon as they are yielded, many at once when many come. A generator that raises or returns is
    started again from the cursor that was committed last, a little later each time.

    ```python
    @shop.event(CDC())
    def changed(listener: Listener) -> Iterator[Event[Row]]:
        while not listener.wait(1):
            for number, row in read_after(listener.cursor or 0):
                listener.cursor = number
                yield Event(row)
    ```
    """
