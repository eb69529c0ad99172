"""The gateway's HTTP application: an endpoint per source event or webhook, `/_health` and
`/_openapi.json`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, cast
from urllib.parse import parse_qsl

import msgspec
from msgspec import structs
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

from blacksmith_dagster.errors import BadRequest, Forbidden, RequestError
from blacksmith_dagster.gateway.body import BodyReader, unpack
from blacksmith_dagster.gateway.health import Health
from blacksmith_dagster.gateway.openapi import described
from blacksmith_dagster.gateway.responses import (
    Deprecations,
    internal,
    internal_problem,
    rejection,
    routing_problem,
    unavailable,
)
from blacksmith_dagster.ingest.extract import KEY_CHARACTERS, VERSION_HEADER, Extractor, InvalidItem
from blacksmith_dagster.ingest.group_commit import STORE_IS_DOWN, GroupCommit
from blacksmith_dagster.ingest.quarantine import raw_request_of
from blacksmith_dagster.pipeline.access import is_within
from blacksmith_dagster.pipeline.application import Blacksmith
from blacksmith_dagster.pipeline.source import AnySourceEvent, Webhook
from blacksmith_dagster.pipeline.triggers import HTTP, Reply, Request
from blacksmith_dagster.pipeline.validation import Duration, seconds
from blacksmith_dagster.pubsub.notifier import Notifier
from blacksmith_dagster.redaction import traced
from blacksmith_dagster.store import Store
from blacksmith_dagster.store.records import RawRequest
from blacksmith_dagster.supervisor import Supervisor

BODIES_AT_ONCE = 256 * 1024 * 1024

# Larger bodies are processed in a thread, so that they do not delay small requests.
_LARGE = 128 * 1024
_HEADERS_WITHOUT_FUNCTION = (
    (b"content-type", "content-type"),
    (VERSION_HEADER.encode(), VERSION_HEADER),
)

_log = logging.getLogger(__name__)


def create_app(
    app: Blacksmith,
    store: Store,
    *,
    queue: int,
    notifier: Notifier | None = None,
    supervisor: Supervisor | None = None,
) -> ASGIApp:
    """The ASGI application that receives the events of `app` and keeps them in `store`.

    At most `queue` events wait for their commit; more get a 429. The application must be registered
    in the store. `notifier` publishes new jobs. `/_health` checks `supervisor`; pass it only if it is
    not the store.
    """
    bodies = BodyReader(BODIES_AT_ONCE)
    deprecations = Deprecations(app.source_events.values())
    endpoints = [
        *(
            EventEndpoint(app, event, event.trigger, store, bodies, deprecations)
            for event in app.source_events.values()
            if isinstance(event.trigger, HTTP)
        ),
        *(
            EventEndpoint(app, webhook, webhook.on, store, bodies, deprecations)
            for webhook in app.webhooks
        ),
    ]

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        commits = GroupCommit(store, queue, notifier.notify if notifier else None)
        for endpoint in endpoints:
            endpoint.commits = commits
        watcher = asyncio.create_task(bodies.watch())
        yield
        watcher.cancel()
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
        await served(scope, receive, send)

    return serve


def _preflighted_method(scope: Scope) -> str:
    """The method that a browser wants to use, if this is a CORS preflight request."""
    headers = dict(scope["headers"])
    wanted: bytes = headers.get(b"access-control-request-method", b"OPTIONS")
    return wanted.decode("latin-1") if b"origin" in headers else "OPTIONS"


class EventEndpoint:
    """The ASGI application that receives the requests to one source event or webhook."""

    commits: GroupCommit

    def __init__(
        self,
        app: Blacksmith,
        event: AnySourceEvent | Webhook,
        on: HTTP,
        store: Store,
        bodies: BodyReader,
        deprecations: Deprecations,
    ) -> None:
        self.path = on.path
        self.method = on.method
        self._event = event
        self._webhook_response = event.response if isinstance(event, Webhook) else None
        self._store = store
        self._bodies = bodies
        self._extract = Extractor(app, event)
        self._quarantines_invalid = event.on_invalid == "quarantine"
        self._deprecations = deprecations
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
        """Respond to one request."""
        try:
            response = await self._respond(scope, receive)
        except ClientDisconnect:
            return
        except RequestError as error:
            response = rejection(error)
        except Exception:  # noqa: BLE001 - our bug: log it and answer 500
            _log.exception("%s failed to process a request", self._event.path)
            response = internal()
        if isinstance(response, Response):
            await response(scope, receive, send)
            return
        content = msgspec.json.encode(response)
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(content)),
        ]
        await send({"type": "http.response.start", "status": 202, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    async def _respond(self, scope: Scope, receive: Receive) -> Response | dict[str, Any]:
        self._check_network(scope)
        headers: dict[bytes, bytes] = dict(scope["headers"])
        auth = self._event.auth
        if auth is not None:
            auth.admit(headers)
        key = _idempotency_key(headers.get(b"idempotency-key"))
        body = await self._bodies.read(
            receive, headers.get(b"content-length"), self._request_bytes, self._body_seconds
        )
        reserved = len(body)
        try:
            encoding = headers.get(b"content-encoding")
            if encoding is not None:
                body = await run_in_threadpool(
                    unpack, body, encoding.decode("latin-1"), self._request_bytes
                )
                self._bodies.reserve(len(body))
                reserved += len(body)
            if auth is not None:
                if len(body) > _LARGE:
                    signed_key = await run_in_threadpool(auth.verify, headers, body)
                else:
                    signed_key = auth.verify(headers, body)
                # Anyone could have added an unsigned Idempotency-Key to a signed request.
                key = signed_key or key
            return await self._ingest(self._request(scope, headers, body, key), key)
        finally:
            self._bodies.release(reserved)

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
            read_headers = {
                name: headers[raw].decode("latin-1")
                for raw, name in _HEADERS_WITHOUT_FUNCTION
                if raw in headers
            }
            return Request(body, read_headers)
        text_headers: dict[str, str] = {}
        for raw_name, raw_value in scope["headers"]:
            name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
            first = text_headers.get(name)
            text_headers[name] = value if first is None else f"{first}, {value}"
        if key is not None:  # the key in effect, for a retry from quarantine
            text_headers["idempotency-key"] = key
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

    async def _ingest(self, request: Request, key: str | None) -> Response | dict[str, Any]:
        invalid: list[InvalidItem] | None = [] if self._quarantines_invalid else None
        try:
            if len(request.body) > _LARGE:
                extracted = await run_in_threadpool(self._extract, request, key, invalid)
            else:
                extracted = self._extract(request, key, invalid)
        except RequestError:
            raise
        except Exception as error:  # noqa: BLE001 - the user's code
            return await self._quarantine(request, error)
        if isinstance(extracted, Reply):
            return _reply(extracted)
        raw_requests = [self._raw_request_of(request, key, item) for item in invalid or ()]
        result = (
            await self.commits.submit(extracted, raw_requests) if extracted or raw_requests else []
        )
        if isinstance(result, list):
            response = self._accepted(result[: len(extracted)], result[len(extracted) :])
            deprecation = self._deprecations.header(extracted)
            if deprecation is not None:
                response = _with_header(response, "Deprecation", deprecation)
            return response
        if isinstance(result, RequestError):
            return rejection(result)
        if isinstance(result, STORE_IS_DOWN):
            return unavailable(result)
        return await self._quarantine(request, result)

    def _raw_request_of(self, request: Request, key: str | None, item: InvalidItem) -> RawRequest:
        headers = request.headers
        if key is not None:  # a key of its own: it is retried without the other items
            headers = {**headers, "idempotency-key": f"{item.place}.{key}"[:KEY_CHARACTERS]}
        item_request = structs.replace(request, body=item.body, headers=headers)
        return raw_request_of(self._event.path, item_request, item.error)

    async def _quarantine(self, request: Request, error: Exception) -> Response | dict[str, Any]:
        _log.error("%s could not ingest a request\n%s", self._event.path, traced(error))
        try:
            quarantine_id = await run_in_threadpool(
                self._store.quarantine.add, raw_request_of(self._event.path, request, error)
            )
        except Exception as quarantine_error:  # noqa: BLE001 - the request is not stored
            _log.error("the request could not be quarantined", exc_info=quarantine_error)
            return unavailable(quarantine_error)
        return self._accepted([], [quarantine_id])

    def _accepted(self, ids: list[str], quarantined: list[str]) -> Response | dict[str, Any]:
        if self._webhook_response is not None:
            return _reply(self._webhook_response)
        return {"ids": ids, "quarantined": quarantined} if quarantined else {"ids": ids}


def _idempotency_key(raw: bytes | None) -> str | None:
    if raw is None:
        return None
    key = raw.decode("latin-1")
    if not key.isascii() or not key.isprintable() or not key.strip():
        raise BadRequest(
            "Idempotency-Key must be 1 to 512 printable ASCII characters; send another key"
        )
    return key


def _with_header(response: Response | dict[str, Any], name: str, value: str) -> Response:
    if not isinstance(response, Response):
        response = Response(msgspec.json.encode(response), 202, media_type="application/json")
    response.headers[name] = value
    return response


def _reply(reply: Reply) -> Response:
    return Response(reply.body, reply.status, {"content-type": reply.content_type})
