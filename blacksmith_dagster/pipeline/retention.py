"""How long events are kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from blacksmith_dagster.pipeline.validation import duration

if TYPE_CHECKING:
    from blacksmith_dagster.pipeline.application import Blacksmith

_FOREVER = "forever"


@dataclass(frozen=True, slots=True)
class Retention:
    """How long events of one type are kept; `None` is forever.

    - `events`: from when an event was received. One that a job still waits for stays.
    - `discarded`: from when a job of it was discarded.
    """

    events: timedelta | None = None
    discarded: timedelta | None = None


def checked_keep(where: str, keep: str | None) -> str | None:
    """`keep` if it is a duration or 'forever'; else a `DeclarationError`."""
    if keep is not None and keep != _FOREVER:
        duration(where, keep)
    return keep


def retention_of(app: Blacksmith) -> Mapping[str, Retention]:
    """How long events of each type are kept, by path.

    Source events as they declare it. An outcome is kept as long as what it may have come of: as the
    events that its destination event receives, whichever stays longest.

    >>> from blacksmith_dagster import Blacksmith, Source
    >>> airport = Source("airport", keep="30d", keep_discarded="90d")
    >>> departed = airport.accept("departed")
    >>> app = Blacksmith(sources=[airport], destinations=[], since="2026-01-01")
    >>> retention_of(app)["airport/departed"].discarded.days
    90
    """
    found = {
        path: Retention(
            _length(event.keep),
            _length(event.keep if event.keep_discarded is None else event.keep_discarded),
        )
        for path, event in app.source_events.items()
    }
    origins = {
        outcome.path: event
        for event in app.destination_events.values()
        for outcome in event.outcomes
    }

    def retention(path: str) -> Retention:
        if path not in found:
            received = [retention(each) for each in origins[path].flows]
            found[path] = Retention(
                _longest([each.events for each in received]),
                _longest([each.discarded for each in received]),
            )
        return found[path]

    return {path: retention(path) for path in (*app.source_events, *origins)}


def _length(keep: str | None) -> timedelta | None:
    return None if keep is None or keep == _FOREVER else duration("keep", keep)


def _longest(lengths: list[timedelta | None]) -> timedelta | None:
    given = [each for each in lengths if each is not None]
    return max(given) if given and len(given) == len(lengths) else None
