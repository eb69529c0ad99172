"""How long events are kept."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta

from blacksmith_dagster.pipeline.validation import duration

_FOREVER = "forever"


@dataclass(frozen=True, slots=True)
class Retention:
    """How long events of one type are kept; `None` is forever.

    - `events`: counted from when an event was received. An event that a job still needs stays.
    - `discarded`: counted from when a job of the event was discarded.
    """

    events: timedelta | None = None
    discarded: timedelta | None = None

    @classmethod
    def declared(cls, keep: str | None, keep_discarded: str | None) -> Retention:
        """From the properties `keep` and `keep_discarded`, which is as long as `keep` if `None`.

        >>> Retention.declared("30d", None).discarded.days
        30
        """
        return cls(_length(keep), _length(keep if keep_discarded is None else keep_discarded))

    @classmethod
    def longest(cls, retentions: Iterable[Retention]) -> Retention:
        """The longest of several, field by field."""
        retentions = list(retentions)
        return cls(
            _longest([retention.events for retention in retentions]),
            _longest([retention.discarded for retention in retentions]),
        )


def checked_keep(where: str, keep: str | None) -> str | None:
    """`keep` if it is a duration or 'forever'; else raises `DeclarationError`."""
    if keep is not None and keep != _FOREVER:
        duration(where, keep)
    return keep


def _length(keep: str | None) -> timedelta | None:
    return None if keep is None or keep == _FOREVER else duration("keep", keep)


def _longest(lengths: list[timedelta | None]) -> timedelta | None:
    finite = [length for length in lengths if length is not None]
    return max(finite) if finite and len(finite) == len(lengths) else None
