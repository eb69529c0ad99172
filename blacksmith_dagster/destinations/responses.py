"""What an HTTP response means for a job. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus

from blacksmith_dagster.pipeline.event import JobResult, JobVerdict
from blacksmith_dagster.redaction import redacted

_EXCERPT = 200  # characters of a response's body in an error
_LONGEST_WAIT = 86_400.0  # seconds: what a server may ask for; a wrong clock must not park a job
_TRY_AGAIN = frozenset({408, 425, 429})  # the 4xx that speak of the moment, not of the request
_OF_THE_BODY = frozenset({400, 409, 413, 422})


def verdict_of(status: int, retry_after: str | None, excerpt: str, now: datetime) -> JobVerdict:
    """The verdict of a job whose request got `status`.

    `retry_after` is the header's value; `now` is used when it is a date.

    >>> verdict = verdict_of(503, "120", "down for repair", datetime.now(UTC))
    >>> verdict.reason, verdict.retry_after
    ('503 Service Unavailable: down for repair', 120.0)
    """
    if 200 <= status < 300:
        return JobVerdict(JobResult.SUCCEEDED)
    reason = f"{_named(status)}: {excerpt}" if excerpt else _named(status)
    if 300 <= status < 400:
        return JobVerdict(
            JobResult.FAILED, f"{reason}; redirects are not followed: give the new address"
        )
    if 400 <= status < 500 and status not in _TRY_AGAIN:
        return JobVerdict(JobResult.DISCARDED, reason)
    return JobVerdict(JobResult.FAILED, reason, wait(retry_after, now))


def may_be_a_part(status: int) -> bool:
    """Whether a batch is rejected with `status` for what is in it, perhaps for one job only."""
    return status in _OF_THE_BODY


def wait(retry_after: str | None, now: datetime) -> float | None:
    """The seconds that a `Retry-After` asks for (RFC 9110, section 10.2.3), a day at most.

    `None` if there is none, or none that can be read.

    >>> wait("Wed, 21 Oct 2026 07:28:00 GMT", datetime(2026, 10, 21, 7, 27, tzinfo=UTC))
    60.0
    """
    given = (retry_after or "").strip()
    if given.isascii() and given.isdigit():
        return min(float(given), _LONGEST_WAIT)
    try:
        at = parsedate_to_datetime(given)
    except ValueError:
        return None
    seconds = (at.replace(tzinfo=at.tzinfo or UTC) - now).total_seconds()
    return min(max(seconds, 0.0), _LONGEST_WAIT)


def excerpt(body: bytes, hidden: Iterable[str]) -> str:
    """The beginning of a response's body on one line, without the texts in `hidden`.

    >>> excerpt(b"no such hook:\\n/T0/secret", ["/T0/secret"])
    'no such hook: ***'
    """
    text = redacted(body.decode(errors="replace"), hidden)
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= _EXCERPT else f"{line[:_EXCERPT]}…"


def _named(status: int) -> str:
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)
