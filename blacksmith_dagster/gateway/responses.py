"""Responses: errors as RFC 9457 problem documents, and the `Deprecation` header."""

from __future__ import annotations

import http
import logging
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime, time
from functools import cache
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from blacksmith_dagster.errors import (
    BlacksmithError,
    OutcomeUnknown,
    RequestError,
    RequestTimeout,
    StoreError,
    TooManyRequests,
    Unauthorized,
    Unavailable,
    UnsupportedMedia,
)
from blacksmith_dagster.pipeline.source import AnySourceEvent
from blacksmith_dagster.redaction import clean
from blacksmith_dagster.store.records import NewEvent

_WORD = re.compile(r"(?<!^)(?=[A-Z])")

_log = logging.getLogger(__name__)


def problem(
    status: int,
    detail: str,
    *,
    kind: str = "about:blank",
    title: str | None = None,
    headers: Mapping[str, str] | None = None,
    members: Mapping[str, Any] | None = None,
) -> Response:
    """A problem document as a response. `title` defaults to the status's name; `members` are added to
    the document (RFC 9457, section 3.2)."""
    document: dict[str, Any] = {
        "type": kind,
        "title": title or http.HTTPStatus(status).phrase,
        "status": status,
        "detail": clean(detail),
        **(members or {}),
    }
    return Response(
        msgspec.json.encode(document), status, headers, media_type="application/problem+json"
    )


class Accepted(Response):
    """The response to a request whose events are stored.

    It leaves out most of what Starlette's constructor does for any response, a tenth of the time of a
    small request.
    """

    def __init__(self, ids: list[str], quarantined: list[str]) -> None:
        self.status_code = 202
        self.background = None
        document = {"ids": ids, "quarantined": quarantined} if quarantined else {"ids": ids}
        self.body = msgspec.json.encode(document)
        self.raw_headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(self.body)),
        ]


def error_response(error: Exception, path: str) -> Response:
    """The response to a request to `path` that was not stored."""
    if isinstance(error, RequestError):
        return _rejection(error)
    if isinstance(error, Unavailable | StoreError):
        return _unavailable(error)
    # Our bug: log it and answer 500.
    _log.error("%s failed to process a request", path, exc_info=error, extra={"event": path})
    return _internal()


def _rejection(error: RequestError) -> Response:
    headers: dict[str, str] = {}
    if isinstance(error, TooManyRequests):
        headers["Retry-After"] = str(error.retry_after)
    elif isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = error.challenge
    elif isinstance(error, RequestTimeout):
        headers["Connection"] = "close"
    elif isinstance(error, UnsupportedMedia):
        headers["Accept"] = "application/json, application/x-ndjson"
        headers["Accept-Encoding"] = "gzip, deflate"
    kind = _WORD.sub("-", type(error).__name__).lower()
    return problem(
        error.status, str(error), kind=f"urn:blacksmith:{kind}", title=error.title, headers=headers
    )


def _unavailable(error: BlacksmithError) -> Response:
    # The database's own message stays in the log: it may say more than a stranger should know.
    kind, detail = (
        "unavailable",
        "the store accepts no events now; nothing was stored, send it again",
    )
    if isinstance(error, OutcomeUnknown):
        kind = "outcome-unknown"
        detail = (
            "the connection to the store broke during the commit: this may or may not be stored; send "
            "it again with the same Idempotency-Key, and it is stored at most once"
        )
    elif isinstance(error, Unavailable):
        detail = "the store does not respond; nothing was stored, send it again"
    return problem(503, detail, kind=f"urn:blacksmith:{kind}", headers={"Retry-After": "1"})


async def routing_problem(request: Request, error: Exception) -> Response:
    """The response to a request whose path (404) or method (405) has no route."""
    assert isinstance(error, HTTPException)
    details = {
        404: "no source event is served at this path",
        405: f"{request.method} is not served at this path",
    }
    return problem(
        error.status_code, details.get(error.status_code, error.detail), headers=error.headers
    )


async def internal_problem(request: Request, error: Exception) -> Response:  # noqa: ARG001
    """The response when a middleware has failed."""
    return _internal()


class Deprecations:
    """The deprecated versions of source events; logs each once, when it is used."""

    def __init__(self, events: Iterable[AnySourceEvent]) -> None:
        self._versions = {
            event.path: event.versions
            for event in events
            if any(day is not None for day in event.versions.accepted.values())
        }

    def header(self, events: Iterable[NewEvent]) -> str | None:
        """The `Deprecation` header (RFC 9745) of a response, if an event has a deprecated version."""
        if not self._versions:
            return None
        today = datetime.now(UTC).date()
        dates: list[date] = []
        for event in events:
            versions = self._versions.get(event.event_type)
            since = versions and versions.deprecated_since(event.version, today)
            if since:
                dates.append(since)
                _log_deprecated(event.event_type, event.version, since)
        if not dates:
            return None
        return f"@{datetime.combine(min(dates), time.min, UTC).timestamp():.0f}"


@cache
def _log_deprecated(path: str, version: str | None, since: date) -> None:
    _log.warning(
        "%s is still sent in version %s, which has been deprecated since %s",
        *(path, version, since),
        extra={"event": path},
    )


def _internal() -> Response:
    return problem(
        500,
        "the gateway failed to process this request, and may have stored it; its log says why. Send it "
        "again with the same Idempotency-Key",
    )
