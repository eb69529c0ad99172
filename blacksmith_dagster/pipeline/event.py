"""What happened (`Event`), and what is to be loaded of it (`Job`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from types import MappingProxyType
from typing import Any, Generic, TypeVar

import msgspec

T_co = TypeVar("T_co", covariant=True)

_NOTHING: Mapping[str, Any] = MappingProxyType({})


class Event(msgspec.Struct, Generic[T_co], frozen=True):
    """One thing that happened.

    An extract function returns it with what it knows; the store adds `id` and `received_at`.

    - `data`: whatever msgspec can write as JSON: a Struct, a dataclass, a dict, a list, ...
    - `key`: makes the event once: the same key of the same source event within 7 days is the same
      event and gets the first one's id; with other data it is rejected. 512 characters at most.
      Without one, the request's `Idempotency-Key` and the event's place in the request count.
    - `sent_at`: when it happened at the sender, with a time zone.
    - `context`: what is known around it (user agent, library, campaign): a dict of JSON values.
    - `version`: of the source's API.
    - `id`, `received_at`: the store's; `None` until the event is kept.
    - `parent`: the id of the event that this one came of.
    - `children`: events of other types of the same source that came with it, made by
      `SourceEvent.of`. They are kept with it, make their own jobs, and have it as their parent. A
      kept event has none here.

    >>> Event({"flight": 1545}, key="UA1545").key
    'UA1545'
    """

    data: T_co
    key: str | None = None
    sent_at: datetime | None = None
    context: Mapping[str, Any] = _NOTHING
    version: str | None = None
    id: str | None = None
    received_at: datetime | None = None
    parent: str | None = None
    children: Sequence[TypedEvent] = ()


class TypedEvent(msgspec.Struct, frozen=True):
    """An event, and the path of the source event that it is one of; made by `SourceEvent.of`."""

    event_type: str
    event: Event[Any]


class Cause(msgspec.Struct, frozen=True):
    """Why the job of an outcome exists: what became of the job that it came from.

    - `outcome`: 'succeeded', 'failed' or 'discarded'.
    - `error`: the reason, `None` if it succeeded.
    - `attempts`: how often the job had been tried.
    - `load_id`: the load that decided it.
    - `at`: when that was.
    """

    outcome: str
    error: str | None
    attempts: int
    load_id: int
    at: datetime


class Job(msgspec.Struct, Generic[T_co], frozen=True):
    """One event to be loaded by one destination event.

    - `data`: the event's data, or what the flow's `transform` made of it.
    - `event`: the event as it was kept, with its id, times, context and version.
    - `key`: the same at every attempt: send it along so that the destination can tell a repetition.
    - `attempt`: 1 for the first.
    - `cause`: for the job of an outcome, what became of the job before it.
    """

    data: T_co
    event: Event[Any]
    key: str
    attempt: int
    cause: Cause | None = None
