"""What an HTTP response means for a job. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from http import HTTPStatus

from blacksmith_dagster.pipeline.event import JobResult, JobVerdict
from blacksmith_dagster.redaction import one_line, redacted

_EXCERPT_CHARACTERS = 200  # characters of a response's body in an error
_MAX_WAIT = timedelta(days=1)  # a server's wrong clock must not delay a job for longer
_RETRYABLE = frozenset({408, 425, 429})  # the 4xx that may succeed later
_REJECTED_BODY = frozenset({400, 409, 413, 422})


def verdict_of(status: int, retry_after: str | None, excerpt: str, now: datetime) -> JobVerdict:
    """The verdict of a job whose request got `status`.

    `retry_after` is the header's value; `now` is used when it is a date.

    >>> verdict = verdict_of(503, "120", "down for repair", datetime.now(UTC))
    >>> verdict.reason, verdict.retry_after
    ('503 Service Unavailable: down for repair', datetime.timedelta(seconds=120))
    """
    if 200 <= status < 300:
        return JobVerdict(JobResult.SUCCEEDED)
    reason = f"{_status_text(status)}: {excerpt}" if excerpt else _status_text(status)
    if 300 <= status < 400:
        return JobVerdict(
            JobResult.FAILED, f"{reason}; redirects are not followed: give the new address"
        )
    if 400 <= status < 500 and status not in _RETRYABLE:
        return JobVerdict(JobResult.DISCARDED, reason)
    return JobVerdict(JobResult.FAILED, reason, retry_after_delay(retry_after, now))


def may_reject_one_job(status: int) -> bool:
    """Whether a batch rejected with `status` may have been rejected for one of its jobs."""
    return status in _REJECTED_BODY


def retry_after_delay(retry_after: str | None, now: datetime) -> timedelta | None:
    """The delay of a `Retry-After` header (RFC 9110, section 10.2.3), at most a day.

    `None` if the header is missing or invalid.

    >>> retry_after_delay("Wed, 21 Oct 2026 07:28:00 GMT", datetime(2026, 10, 21, 7, 27, tzinfo=UTC))
    datetime.timedelta(seconds=60)
    """
    value = (retry_after or "").strip()
    if value.isascii() and value.isdigit():
        return timedelta(seconds=min(float(value), _MAX_WAIT.total_seconds()))
    try:
        date = parsedate_to_datetime(value)
    except ValueError:
        return None
    return min(max(date.replace(tzinfo=date.tzinfo or UTC) - now, timedelta(0)), _MAX_WAIT)


def excerpt(body: bytes, hidden: Iterable[str]) -> str:
    """The beginning of a response's body on one line, without the texts in `hidden`.

    >>> excerpt(b"no such hook:\\n/T0/secret", ["/T0/secret"])
    'no such hook: ***'
    """
    return one_line(redacted(body.decode(errors="replace"), hidden), _EXCERPT_CHARACTERS)


def _status_text(status: int) -> str:
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)
