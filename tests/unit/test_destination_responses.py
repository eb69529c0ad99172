"""What an HTTP response means for a job."""

from datetime import UTC, datetime, timedelta

import pytest

from blacksmith_dagster.destinations.responses import (
    excerpt,
    may_reject_one_job,
    retry_after_delay,
    verdict_of,
)
from blacksmith_dagster.pipeline.event import JobResult

NOW = datetime(2026, 10, 21, 7, 27, tzinfo=UTC)


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [
        ([200, 201, 202, 204, 299], JobResult.SUCCEEDED),
        ([400, 401, 403, 404, 409, 410, 413, 418, 422, 451, 499], JobResult.DISCARDED),
        ([408, 425, 429, 500, 502, 503, 504, 599], JobResult.FAILED),
        ([301, 302, 307, 308], JobResult.FAILED),
    ],
)
def test_statuses(statuses: list[int], expected: JobResult) -> None:
    assert {verdict_of(status, None, "", NOW).result for status in statuses} == {expected}


def test_the_reason_holds_status_and_excerpt() -> None:
    assert verdict_of(404, None, "no such hook", NOW).reason == "404 Not Found: no such hook"
    assert verdict_of(599, None, "", NOW).reason == "599"
    assert "redirects are not followed" in verdict_of(302, None, "", NOW).reason


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("0", 0.0),
        ("120", 120.0),
        (" 7 ", 7.0),
        ("Wed, 21 Oct 2026 07:28:00 GMT", 60.0),
        ("Wed, 21 Oct 2026 07:00:00 GMT", 0.0),
        ("Wed, 21 Oct 2099 07:28:00 GMT", 86_400.0),
        ("9" * 400, 86_400.0),
        ("-1", None),
        ("1.5", None),
        ("soon", None),
        ("", None),
        (None, None),
        ("٣", None),
    ],
)
def test_retry_after_in_seconds_or_as_a_date(header: str | None, seconds: float | None) -> None:
    delay = None if seconds is None else timedelta(seconds=seconds)
    assert retry_after_delay(header, NOW) == delay


def test_retry_after_counts_for_what_is_tried_again() -> None:
    assert verdict_of(429, "5", "", NOW).retry_after == timedelta(seconds=5)
    assert verdict_of(503, "5", "", NOW).retry_after == timedelta(seconds=5)
    assert verdict_of(400, "5", "", NOW).retry_after is None


def test_only_what_speaks_of_the_body_can_be_the_fault_of_one_job() -> None:
    assert [status for status in range(100, 600) if may_reject_one_job(status)] == [
        400,
        409,
        413,
        422,
    ]


def test_an_excerpt_is_short_and_one_line_and_hides_secrets() -> None:
    assert excerpt(b" a\r\n\tb\x00\x1b[31mc ", []) == "a b [31mc"
    assert excerpt(b"\xff\xfe", []) == "\ufffd\ufffd"
    assert len(excerpt(b"x" * 100_000, [])) == 201
    assert excerpt(b"token s3cret-long, s3cret", ["s3cret", "s3cret-long"]) == "token ***, ***"
