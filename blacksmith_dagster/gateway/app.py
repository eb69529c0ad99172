"""The gateway's HTTP application: an endpoint per source event or webhook, `/_health` and
`/_openapi.json`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import cast
from urllib.parse import parse_qsl

import msgspec
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HTTPRequest
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from blacksmith_dagster.errors import (
    BadRequest,
    Forbidden,
    RequestError,
    Unauthorized,
    Unavailable,
)
from blacksmith_dagster.gateway.body import BodyReader, Reservation, unpack
from blacksmith_dagster.gateway.health import Health
from blacksmith_dagster.gateway.openapi import described, http_endpoints, is_unsigned
from blacksmith_dagster.gateway.responses import (
    Accepted,
    Deprecations,
    error_response,
    internal_problem,
    problem,
    routing_problem,
)
from blacksmith_dagster.ingest.extract import VERSION_HEADER, Extracted, Extractor
from blacksmith_dagster.ingest.group_commit import GroupCommit, StoreOutages
from blacksmith_dagster.ingest.quarantine import KEY_HEADER, raw_request_of
from blacksmith_dagster.pipeline.access import is_within
from blacksmith_dagster.pipeline.application import Blacksmith
from blacksmith_dagster.pipeline.source import AnySourceEvent, Webhook
from blacksmith_dagster.pipeline.triggers import HTTP, Request
from blacksmith_dagster.pipeline.validation import Duration, seconds
from blacksmith_dagster.pubsub.notifier import Notifier
from blacksmith_dagster.redaction import traced
from blacksmith_dagster.store import Store
from blacksmith_dagster.store.records import RawRequest
from blacksmith_dagster.supervisor import Supervisor

BODIES_AT_ONCE = 256 * 1024 * 1024

# Larger bodies are processed in a thread, so that they do not delay small requests.
_LARGE = 128 * 1024
_HEADERS_WITHOUT_FUNCTION = tuple(
    (name.encode(), name) for name in ("content-type", VERSION_HEADER)
)

_log = logging.getLogger(__name__)


def create_app(
    app: Blacksmith,
    store: Store,
    *,
    queue: int,
    notifier: Notifier | None = None,
    supervisor: Supervisor | None = None,
    beat: Callable[[], None] | None = None,
    outages: StoreOutages | None = None,
) -> ASGIApp:
    """The ASGI application that receives the events of `app` and keeps them in `store`.

    At most `queue` events wait for their commit; more get a 429. The application must be registered
    in the store. `notifier` publishes new jobs. `/_health` checks `supervisor`; pass it only if it is
    not the store. `beat` is called every second while the event loop and the committing thread make
    progress. `outages` logs those of the store.
    """
    bodies = BodyReader(BODIES_AT_ONCE)
    commits = GroupCommit(store, queue, notifier.notify if notifier else None, outages)
    endpoints = [
        EventEndpoint(app, event, on, bodies, commits) for event, on in http_endpoints(app)
    ]

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(bodies.watch())]
        if beat is not None:
            tasks.append(asyncio.create_task(_beat_during(commits, beat)))
        yield
        for task in tasks:
            task.cancel()
        await commits.stop()

    description = msgspec.json.encode(described(app))

    async def serve_openapi(_: HTTPRequest) -> Response:
        return Response(description, media_type="application/json")

    methods: dict[str, list[str]] = {}
    for endpoint in endpoints:
        methods.setdefault(endpoint.path, []).append(endpoint.method)
    routes = [
        # Starlette uses these only for 405: `_dispatch` serves the methods of an endpoint.
        *(Route(endpoint.path, endpoint, methods=methods[endpoint.path]) for endpoint in endpoints),
        Route("/_health", Health(store, notifier, supervisor).respond),
        Route("/_openapi.json", serve_openapi),
    ]
    for route in routes:
        if route.methods is not None and route.path in methods:
            route.methods.discard("HEAD")  # Starlette adds it, and would call another endpoint
    fallback = Starlette(
        routes=routes,
        exception_handlers={HTTPException: routing_problem, Exception: internal_problem},
        lifespan=lifespan,
    )
    fallback.router.redirect_slashes = False
    served = _dispatch(endpoints, fallback)
    for middleware, args, kwargs in reversed(app.middleware):
        served = middleware(served, *args, **kwargs)
    return ServerErrorMiddleware(served, internal_problem) if app.middleware else served


async def _beat_during(commits: GroupCommit, beat: Callable[[], None]) -> None:
    while True:
        if commits.makes_progress:
            beat()
        await asyncio.sleep(1)


def _dispatch(endpoints: Sequence[EventEndpoint], fallback: ASGIApp) -> ASGIApp:
    """Find the endpoint by one look-up: Starlette's router and the layers around it take a fifth of
    the time of a small request."""
    by_route = {(endpoint.method, endpoint.path): endpoint.behind_cors() for endpoint in endpoints}
    cors_paths = {path for (_, path), app in by_route.items() if isinstance(app, CORSMiddleware)}

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        served = fallback
        if scope["type"] == "http":
            method, path = scope["method"], scope["path"]
            if method == "OPTIONS" and path in cors_paths:
                method = _preflighted_method(scope)
            served = by_route.get((method, path), fallback)
            if served is not fallback and b"%2" in scope["raw_path"]:
                served = _check_slashes(scope["raw_path"], served)
        await served(scope, receive, send)

    return serve


def _check_slashes(raw_path: bytes, served: ASGIApp) -> ASGIApp:
    """`served`, unless a proxy may have taken an encoded slash in the path for a part of a name."""
    if b"%2f" not in raw_path.lower():
        return served
    return problem(400, "the path has an encoded slash (%2F); send the slash itself")


def _preflighted_method(scope: Scope) -> str:
    """The method that a browser wants to use, if this is a CORS preflight request."""
    headers = dict(scope["headers"])
    wanted: bytes = headers.get(b"access-control-request-method", b"OPTIONS")
    return wanted.decode("latin-1") if b"origin" in headers else "OPTIONS"


class EventEndpoint:
    """The ASGI application that receives the requests to one source event or webhook."""

    def __init__(
        self,
        app: Blacksmith,
        event: AnySourceEvent | Webhook,
        on: HTTP,
        bodies: BodyReader,
        commits: GroupCommit,
    ) -> None:
        self.path = on.path
        self.method = on.method
        self._event = event
        self._bodies = bodies
        self._commits = commits
        self._is_unsigned = is_unsigned(event, on)
        self._auth = None if self._is_unsigned else event.auth
        self._quarantines_invalid = event.on_invalid == "quarantine"
        self._extractor = Extractor(app, event, quarantines_invalid=self._quarantines_invalid)
        self._deprecations = Deprecations(event.source.events.values())
        self._request_bytes = cast(int, event.limits.request_bytes)
        self._body_seconds = seconds(cast(Duration, event.limits.body_timeout))

    def behind_cors(self) -> ASGIApp:
        """The endpoint, with CORS if it is declared."""
        cors = self._event.cors
        if cors is None:
            return self
        return CORSMiddleware(
            self,
            allow_origins=cors.origins,
            allow_methods=[self.method],
            allow_headers=["*"],
            expose_headers=["Deprecation", "Retry-After"],
            max_age=int(seconds(cors.max_age)),
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Receive a request, extract its events, commit them, and respond."""
        response: Response
        try:
            with Reservation(self._bodies) as memory:
                request = await self._receive(scope, receive, memory)
                extracted = await self._extract(request)
                committed = await self._commit(request, extracted)
                response = self._respond(extracted, *committed)
        except ClientDisconnect:
            return
        except Exception as error:  # noqa: BLE001 - mapped to a response, which says so
            response = error_response(error, self._event.path)
        await response(scope, receive, send)

    async def _receive(self, scope: Scope, receive: Receive, memory: Reservation) -> Request:
        """A request whose sender may send it. Its header `idempotency-key` is the key in effect."""
        self._check_network(scope)
        headers: dict[bytes, bytes] = dict(scope["headers"])
        auth, limit = self._auth, self._request_bytes
        if auth is not None:
            auth.admit(headers)
        key = _idempotency_key(headers.get(b"idempotency-key"))
        length, encoding = headers.get(b"content-length"), headers.get(b"content-encoding")
        body = await self._bodies.read(receive, memory, length, limit, self._body_seconds)
        if encoding is not None:
            body = await run_in_threadpool(unpack, body, encoding.decode("latin-1"), limit)
            memory.add(len(body))
        if auth is not None:
            # Anyone could have added an unsigned Idempotency-Key to a signed request.
            if len(body) > _LARGE:
                key = await run_in_threadpool(auth.verify, headers, body) or key
            else:
                key = auth.verify(headers, body) or key
        return self._request(scope, headers, body, key)

    def _check_network(self, scope: Scope) -> None:
        networks = self._event.networks
        if networks is not None:
            host = scope["client"][0] if scope["client"] else ""
            if not is_within(networks, host):
                raise Forbidden(
                    f"this source does not accept requests from {host or 'here'}; send from an allowed "
                    "network"
                )

    def _request(
        self, scope: Scope, headers: Mapping[bytes, bytes], body: bytes, key: str | None
    ) -> Request:
        # Fast path: without a function, no other part of the request is read.
        if self._event.function is None and not self._quarantines_invalid:
            text_headers = {
                name: headers[raw].decode("latin-1")
                for raw, name in _HEADERS_WITHOUT_FUNCTION
                if raw in headers
            }
            if key is not None:
                text_headers[KEY_HEADER] = key
            return Request(body, text_headers)
        text_headers = {}
        for raw_name, raw_value in scope["headers"]:
            name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
            first = text_headers.get(name)
            text_headers[name] = value if first is None else f"{first}, {value}"
        if key is not None:
            text_headers[KEY_HEADER] = key
        if self._event.auth is not None:  # already verified; never pass credentials to user code
            text_headers.pop("authorization", None)
        query = scope["query_string"]
        return Request(
            body,
            text_headers,
            dict(parse_qsl(query.decode("latin-1"), keep_blank_values=True)) if query else {},
            scope["method"],
            scope["path"],
        )

    async def _extract(self, request: Request) -> Extracted:
        try:
            if len(request.body) > _LARGE:
                return await run_in_threadpool(self._extractor.extract, request)
            return self._extractor.extract(request)
        except RequestError:
            raise
        except Exception as error:  # the user's code
            if self._is_unsigned:
                raise
            return Extracted([], [self._quarantined(request, error)])

    async def _commit(self, request: Request, extracted: Extracted) -> tuple[list[str], list[str]]:
        """The ids of the events, and of what went to quarantine."""
        events = extracted.events
        if not events and not extracted.quarantined:
            return [], []
        if self._is_unsigned:
            raise Unauthorized(
                f"{self._event.path} creates events only of signed requests, and a GET is not signed; "
                "send a POST",
                "Signature",
            )
        try:
            ids = await self._commits.submit(events, extracted.quarantined)
            return ids[: len(events)], ids[len(events) :]
        except (RequestError, Unavailable):
            raise
        except Exception as error:  # the database rejects the request's data
            if not events:
                raise
            return [], await self._commits.submit([], [self._quarantined(request, error)])

    def _respond(self, extracted: Extracted, ids: list[str], quarantined: list[str]) -> Response:
        reply = extracted.reply
        if reply is None and isinstance(self._event, Webhook):
            reply = self._event.response
        response = (
            Accepted(ids, quarantined)
            if reply is None
            else Response(reply.body, reply.status, {"content-type": reply.content_type})
        )
        deprecation = self._deprecations.header(extracted.events)
        if deprecation is not None:
            response.headers["Deprecation"] = deprecation
        return response

    def _quarantined(self, request: Request, error: Exception) -> RawRequest:
        path = self._event.path
        _log.error("%s could not ingest a request\n%s", path, traced(error), extra={"event": path})
        return raw_request_of(path, request, error)


def _idempotency_key(raw: bytes | None) -> str | None:
    if raw is None:
        return None
    key = raw.decode("latin-1")
    if not key.isascii() or not key.isprintable() or not key.strip():
        raise BadRequest(
            "Idempotency-Key must be 1 to 512 printable ASCII characters; send another key"
        )
    return key
