"""How long events are kept."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta

from blacksmith_dagster.pipeline.validation import Duration, duration

_FOREVER = "forever"


@dataclass(frozen=True, slots=True)
class Retention:
    """How long events of one type are kept; `None` is forever.

    - `events`: counted from when an event was received. An event that a job still needs stays.
    - `discarded`: counted from when a job of the event was discarded.
    - `quarantine`: of what was sent but could not be ingested, counted from when it was received.
    """

    events: timedelta | None = None
    discarded: timedelta | None = None
    quarantine: timedelta | None = None

    @classmethod
    def declared(
        cls,
        retention: Duration | None,
        discarded_retention: Duration | None,
        quarantine_retention: Duration | None,
    ) -> Retention:
        """From the properties of these names; the last two are the same as `retention` if `None`.

        >>> Retention.declared("30d", None, "7d").discarded.days
        30
        """
        return cls(
            _length(retention),
            _length(retention if discarded_retention is None else discarded_retention),
            _length(retention if quarantine_retention is None else quarantine_retention),
        )

    @property
    def is_forever(self) -> bool:
        """Whether nothing is ever past it."""
        return self.events is None and self.quarantine is None

    @classmethod
    def longest(cls, retentions: Iterable[Retention]) -> Retention:
        """The longest of several, field by field."""
        retentions = list(retentions)
        return cls(
            _longest([retention.events for retention in retentions]),
            _longest([retention.discarded for retention in retentions]),
        )


def checked_retention(where: str, retention: Duration | None) -> Duration | None:
    """`retention` if it is a duration or 'forever'; else raises `DeclarationError`."""
    if retention is not None and retention != _FOREVER:
        duration(where, retention)
    return retention


def _length(retention: Duration | None) -> timedelta | None:
    if retention is None or retention == _FOREVER:
        return None
    return duration("retention", retention)


def _longest(lengths: list[timedelta | None]) -> timedelta | None:
    finite = [length for length in lengths if length is not None]
    return max(finite) if finite and len(finite) == len(lengths) else None
