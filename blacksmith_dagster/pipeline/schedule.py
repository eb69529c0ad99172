"""Schedules: when a destination event is loaded, and when a failed job is retried."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from croniter import CroniterError, croniter

from blacksmith_dagster.errors import DeclarationError
from blacksmith_dagster.pipeline.validation import Inheriting, duration

_EVERY = "@every "
_DEFAULT_INTERVAL = "@every 1h"
_SOME_DAY = datetime(2026, 1, 1, tzinfo=UTC)
_NICKNAMES = frozenset(
    {"@hourly", "@daily", "@midnight", "@weekly", "@monthly", "@yearly", "@annually"}
)
# croniter accepts more than Dagster does: hashed and random fields, for example.
_NAMED = re.compile(
    "sun|mon|tue|wed|thu|fri|sat|jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec", re.IGNORECASE
)
_CRON = re.compile(r"[0-9*,/L \-]+")


@dataclass(frozen=True, slots=True)
class Schedule(Inheriting):
    """When jobs are loaded and retried. A field that is `None` is inherited.

    The event's field applies, else the destination's, else the default: not realtime,
    `@every 1h`, 72 retries, no backoff.

    - `interval`: `@every <duration>` (5 s at least), a cron expression of five fields or a nickname
      (`@daily`), in UTC. It is also the gap between a failed attempt and the next.
    - `realtime`: load as soon as an event is committed.
    - `max_retries`: attempts after the first, 0 or more; then the job is discarded.
    - `backoff`: a duration. The first retry comes about this long after the failure, each further
      one after twice as long, with jitter (a factor of 0.5 to 1), and never later than by `interval`.

    >>> Schedule("@every 10m", max_retries=3)
    Schedule(interval='@every 10m', realtime=None, max_retries=3, backoff=None)
    """

    interval: str | None = None
    realtime: bool | None = None
    max_retries: int | None = None
    backoff: str | None = None

    def __post_init__(self) -> None:
        if self.interval is not None:
            checked_interval("Schedule", self.interval)
        if self.backoff is not None:
            duration("Schedule(backoff=)", self.backoff)
        retries = self.max_retries
        if retries is not None and not (isinstance(retries, int) and 0 <= retries <= 10_000):
            raise DeclarationError(
                f"Schedule(max_retries={retries!r}): write a number from 0 (no retry) to 10000"
            )

    @property
    def every(self) -> timedelta | None:
        """The interval's length, or `None` if it is a cron expression."""
        return every(self.interval or _DEFAULT_INTERVAL)

    @property
    def max_attempts(self) -> int:
        """The first attempt and its retries: `1 + max_retries`."""
        return 1 + (DEFAULT.max_retries or 0 if self.max_retries is None else self.max_retries)

    def retry_delay(self, attempt: int, now: datetime) -> timedelta:
        """How long after the failure of attempt number `attempt` (1 is the first) the next one is due.

        `now` is the time of the failure, with a time zone. The jitter is random.
        """
        gap = self.every
        if gap is None:
            following: datetime = croniter(self.interval, now.astimezone(UTC)).get_next(datetime)
            gap = max(following - now, timedelta(seconds=1))
        if self.backoff is None:
            return gap
        first = duration("Schedule(backoff=)", self.backoff).total_seconds()
        doubled = first * 2.0 ** min(attempt - 1, 64) * random.uniform(0.5, 1.0)
        return timedelta(seconds=min(doubled, gap.total_seconds()))


def every(interval: str) -> timedelta | None:
    """The length of an `@every` interval, or `None` if it is a cron expression."""
    if not interval.startswith(_EVERY):
        return None
    return duration("interval", interval.removeprefix(_EVERY))


def checked_interval(where: str, interval: str) -> str:
    """`interval` if it is `@every <duration>`, a nickname or a cron expression.

    Raises `DeclarationError` if not.
    """
    if isinstance(interval, str) and interval.startswith(_EVERY):
        if duration(where, interval.removeprefix(_EVERY)) < timedelta(seconds=5):
            raise DeclarationError(
                f"{where}({interval!r}): Dagster evaluates schedules every 5 seconds; write '@every 5s' "
                "or longer" + (", or Schedule(realtime=True)" if where == "Schedule" else "")
            )
        return interval
    if isinstance(interval, str) and (interval in _NICKNAMES or _is_cron(interval)):
        return interval
    raise DeclarationError(
        f"{where}({interval!r}): write '@every <duration>', a nickname such as '@daily', or a "
        "cron expression of five fields that matches some date: minute, hour, day of month, month, "
        "day of week"
    )


def checked_cron(where: str, text: str) -> str:
    """`text` if it is a cron expression or a nickname that Dagster accepts.

    Raises `DeclarationError` if not.
    """
    if isinstance(text, str) and (text in _NICKNAMES or _is_cron(text)):
        return text
    raise DeclarationError(
        f"{where}: backfill_schedule={text!r}: write a cron expression of five fields that matches some "
        "date, such as '0 3 * * *', or a nickname such as '@daily'"
    )


def _is_cron(text: str) -> bool:
    if len(text.split()) != 5 or not _CRON.fullmatch(_NAMED.sub("0", text)):
        return False
    try:
        croniter(text, _SOME_DAY).get_next(datetime)  # raises for the 31st of April
        (_, _, days, months, _), *_ = croniter.expand(text)
    except CroniterError:
        return False
    # Dagster rejects these even with a day of the week, which would match some date.
    return months != [2] or days not in ([30], [31])


DEFAULT = Schedule(_DEFAULT_INTERVAL, realtime=False, max_retries=72)
