"""When a destination event is loaded (`Schedule`), and a failed job is retried (`RetryPolicy`)."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from croniter import CroniterError, croniter

from blacksmith_dagster.errors import DeclarationError
from blacksmith_dagster.pipeline.validation import Duration, Inheriting, checked_number, duration

_EVERY = "@every "
_DEFAULT_INTERVAL = "@every 1h"
_MAX_RETRIES = 72
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
    """When jobs are loaded. A field that is `None` is inherited.

    The event's field applies, else the destination's, else the default: not realtime, `@every 1h`.

    - `interval`: `@every <duration>` (5 s at least), a cron expression of five fields or a nickname
      (`@daily`), in UTC.
    - `realtime`: load as soon as an event is committed. Needs a broker, `BLACKSMITH_PUBSUB_URL`; without
      one, the interval applies.

    >>> Schedule("@every 10m")
    Schedule(interval='@every 10m', realtime=None)

    Raises `DeclarationError`.
    """

    interval: str | None = None
    realtime: bool | None = None

    def __post_init__(self) -> None:
        if self.interval is not None:
            checked_interval("Schedule", self.interval)

    @property
    def every(self) -> timedelta | None:
        """The interval's length, or `None` if it is a cron expression."""
        return every(self.interval or _DEFAULT_INTERVAL)

    def gap(self, now: datetime) -> timedelta:
        """How long after `now`, which has a time zone, jobs are loaded again.

        This is the interval's length, or the time until the next tick of a cron, 1 s at least.
        """
        if (every := self.every) is not None:
            return every
        following: datetime = croniter(self.interval, now.astimezone(UTC)).get_next(datetime)
        return max(following - now, timedelta(seconds=1))


@dataclass(frozen=True, slots=True)
class RetryPolicy(Inheriting):
    """How often a failed job is retried, and how far apart. A field that is `None` is inherited.

    The event's field applies, else the destination's, else the default. Unlike Dagster's class of that
    name it says when a job is due again, not when an op runs again: except in realtime, the job is
    loaded at the next time of the schedule.

    - `max_retries`: attempts after the first (72); then the job is discarded.
    - `delay`: how long after a failure the first retry is due; by default the interval of the
      schedule, or the time until the next tick of its cron.
    - `backoff`: how many times as long each further delay is; 2 if `delay` is set, else 1.
    - `max_delay`: the longest delay; by default the schedule's interval, or `delay` if that is longer.
    - `jitter`: the fraction of a delay, from 0 to 1, by which it is shortened at random at most, so
      that jobs that failed together are not retried together; 0.5 if the delays grow, else 0.

    >>> RetryPolicy(delay="10s", max_delay="5m").inherit(DEFAULT_RETRY).max_attempts
    73

    Raises `DeclarationError`.
    """

    max_retries: int | None = None
    delay: Duration | None = None
    backoff: float | None = None
    max_delay: Duration | None = None
    jitter: float | None = None

    def __post_init__(self) -> None:
        if self.max_retries is not None:
            checked_number("RetryPolicy: max_retries", self.max_retries, 0, 10_000)
        if self.backoff is not None:
            checked_number("RetryPolicy: backoff", self.backoff, 1, 100, whole=False)
        if self.jitter is not None:
            checked_number("RetryPolicy: jitter", self.jitter, 0, 1, whole=False)
        delays = [
            duration(f"RetryPolicy: {name}", delay)
            for name, delay in (("delay", self.delay), ("max_delay", self.max_delay))
            if delay is not None
        ]
        if delays != sorted(delays):
            raise DeclarationError(
                f"RetryPolicy(delay={self.delay!r}, max_delay={self.max_delay!r}): the longest delay "
                "is shorter than the first; write a longer max_delay"
            )

    @property
    def max_attempts(self) -> int:
        """The first attempt and its retries: `1 + max_retries`."""
        return 1 + (_MAX_RETRIES if self.max_retries is None else self.max_retries)

    def delay_after(self, attempt: int, gap: timedelta) -> timedelta:
        """How long after the failure of attempt number `attempt` (1 is the first) the next one is due.

        `gap` is that of the schedule. The jitter is random.
        """
        first = gap if self.delay is None else duration("delay", self.delay)
        longest = (
            max(gap, first) if self.max_delay is None else duration("max_delay", self.max_delay)
        )
        backoff = (1 if self.delay is None else 2) if self.backoff is None else self.backoff
        jitter = (0.5 if backoff > 1 else 0.0) if self.jitter is None else self.jitter
        grown = first.total_seconds() * float(backoff) ** min(attempt - 1, 64)
        capped = min(grown, longest.total_seconds())
        return timedelta(seconds=capped * random.uniform(1.0 - jitter, 1.0))


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
    if _is_cron(interval):
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
    if _is_cron(text):
        return text
    raise DeclarationError(
        f"{where}: backfill_schedule={text!r}: write a cron expression of five fields that matches some "
        "date, such as '0 3 * * *', or a nickname such as '@daily'"
    )


def _is_cron(text: Any) -> bool:
    """Whether `text` is a nickname, or a cron expression that Dagster accepts and that comes true."""
    if not isinstance(text, str):
        return False
    if text in _NICKNAMES:
        return True
    if len(text.split()) != 5 or not _CRON.fullmatch(_NAMED.sub("0", text)):
        return False
    try:
        croniter(text, _SOME_DAY).get_next(datetime)  # raises for the 31st of April
        (_, _, days, months, _), *_ = croniter.expand(text)
    except CroniterError:
        return False
    # Dagster rejects these even with a day of the week, which would match some date.
    return months != [2] or days not in ([30], [31])


DEFAULT = Schedule(_DEFAULT_INTERVAL, realtime=False)
DEFAULT_RETRY = RetryPolicy(_MAX_RETRIES)
