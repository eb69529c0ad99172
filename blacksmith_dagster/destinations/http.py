"""HTTP endpoints as destination events."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import time
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar, Unpack

import httpx

from blacksmith_dagster.destinations.responses import excerpt, may_reject_one_job, verdict_of
from blacksmith_dagster.errors import DeclarationError, SettingsError
from blacksmith_dagster.pipeline.destination import (
    Destination,
    DestinationEvent,
    DestinationEventProperties,
    DestinationProperties,
)
from blacksmith_dagster.pipeline.event import Batch, Job, JobResult, JobVerdict
from blacksmith_dagster.pipeline.flow import Receives
from blacksmith_dagster.pipeline.model import encode
from blacksmith_dagster.pipeline.validation import Duration, duration
from blacksmith_dagster.redaction import RedactingFilter, Secret, redacted

T = TypeVar("T")

# What httpx reads when a client is made.
_CLIENT_VARIABLES = frozenset(
    {"ALL_PROXY", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE"}
)
_CLIENT_FAULTS: Mapping[type[Exception], frozenset[str]] = {
    httpx.InvalidURL: _CLIENT_VARIABLES - {"SSL_CERT_FILE"},
    FileNotFoundError: frozenset({"SSL_CERT_FILE"}),
}

_READ_BYTES = 65_536  # of a response's body; the connection of a longer one is closed
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, section 5.6.2
_HEADER_VALUE = re.compile(r"[\x20-\x7e]*")
_PATH = re.compile(r"(/[A-Za-z0-9._~%-]+)*/?")


class HTTPDestination(Destination[httpx.Client]):
    """An HTTP service.

    - `url`: `https://host/path`, or a `Secret` that holds one (a webhook's URL is often its only
      password). It is never printed. A user and password in it are sent as basic authentication.
    - `headers`: sent with each request; a value may be a `Secret`.
    - the others are the `DestinationProperties` of every destination.

    `post` sends jobs. Your own function, declared with `event`, gets an `httpx.Client` with this base
    URL and these headers.

    >>> departed = Source("airport").accept("departed")
    >>> alerts = HTTPDestination("alerts", url=Secret("ALERTS_URL"))
    >>> alerts.post("late", receives=departed)
    <DestinationEvent alerts/late>

    Raises `DeclarationError`, and `SettingsError` for an environment variable about proxies that cannot
    be used, as every request would fail.
    """

    def __init__(
        self,
        name: str,
        *,
        url: Secret | str,
        headers: Mapping[str, Secret | str] | None = None,
        **own: Unpack[DestinationProperties],
    ) -> None:
        _check_environment()
        super().__init__(name, connect=self._connect, **own)
        self._endpoint = _HTTPTarget(f"destination {name!r}", url, dict(headers or {}))
        if isinstance(url, str):
            self._endpoint.base()
        for header in self._endpoint.headers:
            if not _HEADER_NAME.fullmatch(header):
                raise DeclarationError(
                    f"destination {name!r}: {header!r} cannot name a header; use letters, digits and -"
                )

    def post(
        self,
        name: str,
        *,
        receives: Receives[T] | Sequence[Receives[T]],
        path: str = "",
        body: Callable[[Job[T]], Any] | None = None,
        batched: bool = False,
        concurrency: int = 1,
        request_timeout: Duration = "10s",
        **own: Unpack[DestinationEventProperties],
    ) -> DestinationEvent[T]:
        """Send each job as JSON in a POST request.

        A 2xx response means success; a 4xx discards the job. On 408, 425, 429, 5xx, a redirect, no
        response or a broken connection the job fails and is retried, after the response's
        `Retry-After` if it has one (at most a day). The job's key is sent as `Idempotency-Key`.

        - `path`: appended to the destination's URL.
        - `body(job)`: returns the request's body, anything that msgspec encodes as JSON; by default the
          job's data. If it raises, only that job fails.
        - `batched`: send a batch in one request, as a JSON array, with a key derived from its jobs'
          keys. If it is rejected with 400, 409, 413 or 422, it is sent in halves until the faulty
          job is isolated.
        - `concurrency`: the number of concurrent requests, from 1 to 256.
        - `request_timeout`: how long to wait for a connection, and then for the response. A load holds
          only as many jobs as can all take this long within its `timeout`.
        - the others are `DestinationEventProperties`, as with `Destination.event`.

        >>> departed = Source("airport").accept("departed")
        >>> alerts = HTTPDestination("alerts", url="https://alerts.example")
        >>> late = alerts.post("late", receives=departed, path="/late", concurrency=16)
        >>> late.batch_size
        448

        Raises `DeclarationError`.
        """
        where = f"{self.name}/{name}"
        if not _PATH.fullmatch(path):
            raise DeclarationError(
                f"{where}: path={path!r} is invalid; write '/late', without a query"
            )
        if not 1 <= concurrency <= 256 or (batched and concurrency > 1):
            raise DeclarationError(
                f"{where}: concurrency={concurrency} is invalid; give a number from 1 to 256, and none "
                "with batched=True, where a batch is one request"
            )
        request_seconds = duration(f"{where}: request_timeout", request_timeout).total_seconds()
        timeout = own.get("timeout")
        whole = self.timeout if timeout is None else duration(f"{where}: timeout", timeout)
        # The last request may wait twice: for the connection and for the response.
        sending_seconds = whole.total_seconds() - 2 * request_seconds
        if sending_seconds < request_seconds:
            raise DeclarationError(
                f"{where}: request_timeout={request_timeout!r} is too long; give at most a third "
                "of the load's timeout"
            )
        post = _Post(
            self._endpoint, path, body or _job_data, concurrency, request_seconds, sending_seconds
        )

        def load(batch: Batch[T], client: httpx.Client) -> None:
            (post.together if batched else post.one_by_one)(batch, client)

        event: DestinationEvent[T] = self.event(receives=receives, name=name, **own)(load)
        if not batched:  # a load's jobs must all have the time that each may take
            per_load = int(sending_seconds / request_seconds) * concurrency
            event.batch_size = min(event.batch_size, per_load)
        return event

    def _connect(self) -> Iterator[httpx.Client]:
        redacting = RedactingFilter(self._endpoint.hidden())
        logger = logging.getLogger("httpx")  # it logs each request with its URL
        logger.addFilter(redacting)
        try:
            with httpx.Client(
                base_url=self._endpoint.base(),
                headers={"Accept-Encoding": "identity", **self._endpoint.header_values()},
                limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
                follow_redirects=False,
            ) as client:
                yield client
        finally:
            logger.removeFilter(redacting)


def _check_environment() -> None:
    """Raise `SettingsError` if httpx cannot use what the environment says about proxies and CAs."""
    names = [name for name in os.environ if name.upper() in _CLIENT_VARIABLES]
    if not names:
        return
    try:
        httpx.Client().close()
    except (httpx.InvalidURL, ValueError, ImportError, OSError) as error:
        wrong = _CLIENT_FAULTS.get(type(error), _CLIENT_VARIABLES - {"NO_PROXY"})
        named = ", ".join(name for name in names if name.upper() in wrong)
        raise SettingsError(
            f"HTTP destinations cannot use the environment variable {named} ({type(error).__name__}); "
            "write NO_PROXY as hosts and addresses, without networks of IPv6, a proxy as "
            "http://host:port, and SSL_CERT_FILE as the path of a file that exists"
        ) from error


@dataclass(frozen=True)
class _HTTPTarget:
    """The URL and headers of requests, and the texts in them that must stay secret."""

    where: str
    url: Secret | str
    headers: Mapping[str, Secret | str]

    def base(self) -> httpx.URL:
        try:
            url = httpx.URL(_reveal(self.url))
        except httpx.InvalidURL:
            url = httpx.URL()
        if url.scheme in ("http", "https") and url.host:
            return url
        if isinstance(self.url, Secret):
            raise SettingsError(
                f"{self.where}: {self.url.name} does not hold a URL; set it to https://…"
            )
        raise DeclarationError(f"{self.where}: its url is invalid; write https://…")

    def target(self, path: str) -> httpx.URL:
        base = self.base()
        before, mark, query = base.raw_path.partition(b"?")
        whole = before.rstrip(b"/") + path.encode() + mark + query
        return base.copy_with(raw_path=whole) if path else base

    def header_values(self) -> dict[str, str]:
        values = {name: _reveal(value) for name, value in self.headers.items()}
        for name, value in values.items():
            if not _HEADER_VALUE.fullmatch(value):
                raise SettingsError(
                    f"{self.where}: the value of header {name!r} has a character that headers must not "
                    "have; look for a line break at its end"
                )
        return values

    def hidden(self) -> set[str]:
        url = self.base()
        login = f"{url.username}:{url.password}"
        texts = {
            url.userinfo.decode(),
            url.password,
            b64encode(login.encode()).decode() if login != ":" else "",
            url.query.decode(),
        }
        if isinstance(self.url, Secret) and url.path != "/":
            texts |= {url.path, url.raw_path.decode()}
        for value in self.headers.values():
            if isinstance(value, Secret):
                texts |= {value.reveal(), value.reveal().rpartition(" ")[2]}
        return texts - {""}


@dataclass(frozen=True)
class _Post:
    """Sends jobs: a request waits `request_seconds`; none starts after `sending_seconds`."""

    endpoint: _HTTPTarget
    path: str
    body: Callable[[Job[Any]], Any]
    concurrency: int
    request_seconds: float
    sending_seconds: float

    def one_by_one(self, batch: Batch[Any], client: httpx.Client) -> None:
        """Send a request for each job."""
        send = self._sender(client)
        jobs, contents = self._contents(batch)
        pool = ThreadPoolExecutor(min(self.concurrency, len(jobs) or 1))
        try:
            responses = pool.map(send, contents, [job.key for job in jobs])
            for job, (_, job_verdict) in zip(jobs, responses, strict=True):
                _decide(batch, [job], job_verdict)
        finally:
            pool.shutdown(cancel_futures=True)

    def together(self, batch: Batch[Any], client: httpx.Client) -> None:
        """Send one request for the batch, and for its halves if one of its jobs may be at fault."""
        send = self._sender(client)
        jobs, contents = self._contents(batch)
        waiting = [(jobs, contents)] if jobs else []
        while waiting:
            jobs, contents = waiting.pop()
            keys = "\n".join(job.key for job in jobs)
            array = b"[" + b",".join(contents) + b"]"
            status, job_verdict = send(array, hashlib.sha256(keys.encode()).hexdigest())
            if len(jobs) > 1 and may_reject_one_job(status):
                half = len(jobs) // 2
                waiting += [(jobs[half:], contents[half:]), (jobs[:half], contents[:half])]
            else:
                _decide(batch, jobs, job_verdict)

    def _contents(self, batch: Batch[Any]) -> tuple[list[Job[Any]], list[bytes]]:
        """The jobs with their bodies; fails the jobs whose `body` raises."""
        jobs: list[Job[Any]] = []
        contents: list[bytes] = []
        for job in batch:
            try:
                contents.append(encode(self.body(job)))
                jobs.append(job)
            except Exception as error:  # noqa: BLE001 — the user's function: whatever it raises
                batch.fail(job, f"its body() raised {type(error).__name__}: {error}")
        return jobs, contents

    def _sender(self, client: httpx.Client) -> Callable[[bytes, str], tuple[int, JobVerdict]]:
        return partial(
            _send,
            client,
            self.endpoint.target(self.path),
            self.endpoint.hidden(),
            self.request_seconds,
            time.monotonic() + self.sending_seconds,
        )


def _send(
    client: httpx.Client,
    url: httpx.URL,
    hidden: Iterable[str],
    request_seconds: float,
    latest: float,
    content: bytes,
    key: str,
) -> tuple[int, JobVerdict]:
    """The response's status, 0 if there is none, and the verdict for its jobs."""
    if time.monotonic() > latest:
        return 0, _failed("not sent: earlier requests used up the load's time")
    headers = {
        "Content-Type": client.headers.get("Content-Type", "application/json"),
        "Idempotency-Key": key,
    }
    request = client.build_request(
        "POST", url, content=content, headers=headers, timeout=request_seconds
    )
    try:
        response = client.send(request, stream=True)
        try:
            body = _read_body(response, time.monotonic() + request_seconds)
        finally:
            response.close()
    except httpx.TimeoutException as error:
        return 0, _failed(f"no response within {request_seconds:g} s ({type(error).__name__})")
    except httpx.NetworkError as error:
        return 0, _failed(f"the connection failed: {redacted(str(error), hidden)}")
    except httpx.TransportError as error:
        # Its text may hold a header's value.
        return 0, _failed(f"the connection failed ({type(error).__name__})")
    job_verdict = verdict_of(
        response.status_code,
        response.headers.get("Retry-After"),
        excerpt(body, hidden),
        datetime.now(UTC),
    )
    return response.status_code, job_verdict


def _read_body(response: httpx.Response, latest: float) -> bytes:
    """The beginning of the body: only the status decides, so the rest is not worth waiting for."""
    read = bytearray()
    with suppress(httpx.TransportError):
        for part in response.iter_raw():
            read += part
            if len(read) > _READ_BYTES or time.monotonic() > latest:
                break
    return bytes(read)


def _decide(batch: Batch[Any], jobs: Iterable[Job[Any]], verdict: JobVerdict) -> None:
    for job in jobs:
        if verdict.result is JobResult.SUCCEEDED:
            batch.succeed(job)
        elif verdict.result is JobResult.DISCARDED:
            batch.discard(job, verdict.reason)
        else:
            batch.fail(job, verdict.reason, retry_after=verdict.retry_after)


def _failed(reason: str) -> JobVerdict:
    return JobVerdict(JobResult.FAILED, reason)


def _job_data(job: Job[Any]) -> Any:
    return job.data


def _reveal(value: Secret | str) -> str:
    return value.reveal() if isinstance(value, Secret) else value
