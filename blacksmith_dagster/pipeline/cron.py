"""Events that are fetched now and then: what a `Cron` says, and what its function is handed."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from blacksmith_dagster.errors import DeclarationError
from blacksmith_dagster.pipeline.schedule import checked_interval
from blacksmith_dagster.pipeline.triggers import Trigger


@dataclass(slots=True)
class Poll:
    """What the function of a `Cron` event is handed.

    - `cursor`: any JSON value: how far the function has come; `None` at first. What it is set to is
      committed with the events that the function returns, and handed over the next time. A function
      that raises leaves it as it was.
    - `at`: when this poll was due, in UTC; the same when the poll is tried again.

    >>> poll = Poll(cursor=41)
    >>> poll.cursor += 1
    >>> poll.cursor
    42
    """

    cursor: Any = None
    at: datetime = field(default_factory=lambda: datetime.now(UTC))


@dataclass(frozen=True, slots=True)
class Cron(Trigger[Poll]):
    """A function that is called on a schedule, in a Dagster run, and returns what is new.

    A field that is `None` is inherited: the event's is taken, else that of `Source(cron=)`, else the
    default: `@every 1h`, UTC, 3 retries.

    - `interval`: `@every <duration>` (5 s at least), a cron expression of five fields or a nickname
      (`@daily`).
    - `timezone`: that a cron expression is meant in, by its IANA name. At a change of the clocks a time
      of day comes once all the same: one that is skipped comes right after, of two the later counts.
    - `max_retries`: how often a poll that raised is tried again, soon after; then the next is waited
      for. Nothing is lost by that, as the cursor stays where it was.

    >>> Cron("*/5 * * * *").inherit(DEFAULT)
    Cron(interval='*/5 * * * *', timezone='UTC', max_retries=3)
    """

    interval: str | None = None
    timezone: str | None = None
    max_retries: int | None = None

    def __post_init__(self) -> None:
        if self.interval is not None:
            checked_interval("Cron", self.interval)
        if self.timezone is not None:
            try:
                ZoneInfo(self.timezone)
            except (ZoneInfoNotFoundError, ValueError, TypeError, OSError) as error:
                raise DeclarationError(
                    f"Cron(timezone={self.timezone!r}): there is no such time zone; write an IANA "
                    "name, such as 'Europe/Berlin'"
                ) from error
        retries = self.max_retries
        if retries is not None and not (isinstance(retries, int) and 0 <= retries <= 100):
            raise DeclarationError(
                f"Cron(max_retries={retries!r}): write a number from 0 (no retry) to 100"
            )

    def inherit(self, parent: Cron) -> Cron:
        """This one, with the parent's value in each field that is `None`."""
        return Cron(
            *(
                getattr(parent if getattr(self, field.name) is None else self, field.name)
                for field in fields(self)
            )
        )


DEFAULT = Cron("@every 1h", "UTC", 3)
