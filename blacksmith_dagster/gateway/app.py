"""The gateway's HTTP application: an endpoint per source event or door, and `/_health`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, cast
from urllib.parse import parse_qsl

import anyio
import msgspec
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HTTPRequest
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from blacksmith_dagster.errors import (
    BadRequest,
    BlacksmithError,
    Refused,
    Unavailable,
    traced,
)
from blacksmith_dagster.gateway.body import Bodies, unpack
from blacksmith_dagster.gateway.extract import Extractor
from blacksmith_dagster.gateway.problem import (
    internal,
    internal_problem,
    problem,
    refusal,
    routing_problem,
    unavailable,
)
from blacksmith_dagster.gateway.quarantine import raw_of
from blacksmith_dagster.gateway.writer import STORE_IS_DOWN, Writer
from blacksmith_dagster.pipeline.application import Blacksmith
from blacksmith_dagster.pipeline.source import Door, SourceEvent
from blacksmith_dagster.pipeline.trigger import HTTP, Reply, Request
from blacksmith_dagster.pubsub.announcer import Announcer
from blacksmith_dagster.store.interface import Store
from blacksmith_dagster.supervisor import Supervisor

BODIES_AT_ONCE = 256 * 1024 * 1024

# Bodies above this are taken apart in a thread, so that the small requests beside them go on.
_LARGE = 128 * 1024
_READY_FOR = 1.0  # seconds for which an answer of `/_health` holds: strangers may ask it too
_READY_WAIT = 5.0
_SUPERVISOR_WAIT = 1.0  # its silence must not make the gateway look dead

_log = logging.getLogger(__name__)


def create_app(
    app: Blacksmith,
    store: Store,
    *,
    queue: int,
    announcer: Announcer | None = None,
    supervisor: Supervisor | None = None,
) -> ASGIApp:
    """The ASGI application that receives the events of `app` and keeps them in `store`.

    At most `queue` events wait for their commit; more are answered by 429. The store's application
    must be registered. `announcer` tells of new jobs; `supervisor`, if it is another service than
    the store, is asked by `/_health`.
    """
    bodies = Bodies(BODIES_AT_ONCE)
    doors = [
        *(
            Endpoint(app, event, event.trigger, store, bodies)
            for event in app.source_events.values()
            if isinstance(event.trigger, HTTP)
        ),
        *(Endpoint(app, door, door.on, store, bodies) for door in app.doors),
    ]

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        writer = Writer(store, queue, announcer.announce if announcer else None)
        for door in doors:
            door.writer = writer
        watching = asyncio.create_task(bodies.watch())
        yield
        watching.cancel()
        await writer.stop()

    routes = [Route(door.path, door, methods=[door.method]) for door in doors]
    others = Starlette(
        routes=[*routes, Route("/_health", Health(store, announcer, supervisor).answer)],
        exception_handlers={HTTPException: routing_problem, Exception: internal_problem},
        lifespan=lifespan,
    )
    others.router.redirect_slashes = False
    served = _straight_to(doors, others)
    for middleware, args, kwargs in reversed(app.middleware):
        served = middleware(served, *args, **kwargs)
    return ServerErrorMiddleware(served, internal_problem) if app.middleware else served


def _straight_to(doors: Sequence[Endpoint], others: ASGIApp) -> ASGIApp:
    """Doors are found by one look-up: Starlette's router and the layers around it take a fifth of
    the time that a small request needs."""
    found: Mapping[tuple[str, str], ASGIApp] = {(door.method, door.path): door for door in doors}

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        is_http = scope["type"] == "http"
        door = found.get((scope["method"], scope["path"]), others) if is_http else others
        await door(scope, receive, send)

    return serve


class Endpoint:
    """Receives the requests to one source event, or through one door: an ASGI application."""

    writer: Writer

    def __init__(
        self,
        app: Blacksmith,
        event: SourceEvent[Any, Any, Any] | Door,
        on: HTTP,
        store: Store,
        bodies: Bodies,
    ) -> None:
        self.path = on.path
        self.method = on.method
        self._event = event
        self._kept = event.answer if isinstance(event, Door) else None
        self._store = store
        self._bodies = bodies
        self._extract = Extractor(app, event)
        self._request_bytes = cast(int, event.limits.request_bytes)
        self._body_seconds = cast(float, event.limits.body_seconds)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        try:
            answer = await self._answer(scope, receive)
        except ClientDisconnect:
            return
        except Refused as error:
            answer = refusal(error)
        except Exception:  # noqa: BLE001 - a bug of ours: it is told, and the sender too
            _log.exception("%s has failed at a request", self._event.path)
            answer = internal()
        if isinstance(answer, Response):
            await answer(scope, receive, send)
            return
        content = msgspec.json.encode(answer)
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(content)),
        ]
        await send({"type": "http.response.start", "status": 202, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    async def _answer(self, scope: Scope, receive: Receive) -> Response | dict[str, Any]:
        headers: dict[bytes, bytes] = dict(scope["headers"])
        auth = self._event.auth
        if auth is not None:
            auth.admit(headers)
        key = _idempotency_key(headers.get(b"idempotency-key"))
        body = await self._bodies.read(
            receive, headers.get(b"content-length"), self._request_bytes, self._body_seconds
        )
        held = len(body)
        try:
            encoding = headers.get(b"content-encoding")
            if encoding is not None:
                body = await run_in_threadpool(
                    unpack, body, encoding.decode("latin-1"), self._request_bytes
                )
                self._bodies.take(len(body))
                held += len(body)
            if auth is not None:
                key = auth.verify(headers, body) if key is None else key
            return await self._keep(self._request(scope, headers, body), key)
        finally:
            self._bodies.give_back(held)

    def _request(self, scope: Scope, headers: Mapping[bytes, bytes], body: bytes) -> Request:
        if self._event.function is None:  # nobody will look at more than this
            media = headers.get(b"content-type")
            return Request(body, {} if media is None else {"content-type": media.decode("latin-1")})
        named: dict[str, str] = {}
        for raw_name, raw_value in scope["headers"]:
            name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
            named[name] = f"{named[name]}, {value}" if name in named else value
        query = scope["query_string"]
        return Request(
            body,
            named,
            dict(parse_qsl(query.decode("latin-1"), keep_blank_values=True)) if query else {},
            scope["method"],
            scope["path"],
        )

    async def _keep(self, request: Request, key: str | None) -> Response | dict[str, Any]:
        try:
            if len(request.body) > _LARGE:
                extracted = await run_in_threadpool(self._extract, request, key)
            else:
                extracted = self._extract(request, key)
        except Refused:
            raise
        except Exception as error:  # noqa: BLE001 - the user's code
            return await self._quarantine(request, error)
        if isinstance(extracted, Reply):
            return _reply(extracted)
        kept = await self.writer.submit(extracted) if extracted else []
        if isinstance(kept, list):
            return {"ids": kept} if self._kept is None else _reply(self._kept)
        if isinstance(kept, Refused):
            return refusal(kept)
        if isinstance(kept, STORE_IS_DOWN):
            return unavailable(kept)
        return await self._quarantine(request, kept)

    async def _quarantine(self, request: Request, error: Exception) -> Response | dict[str, Any]:
        _log.error("%s could not take a request\n%s", self._event.path, traced(error))
        try:
            quarantined = await run_in_threadpool(
                self._store.quarantine, raw_of(self._event.path, request, error)
            )
        except Exception as failed:  # noqa: BLE001 - whatever it is, the request is not kept
            _log.error("its request could not be quarantined", exc_info=failed)
            return unavailable(failed)
        if self._kept is not None:
            return _reply(self._kept)
        return {"ids": [], "quarantined": quarantined}


class Health:
    """Says whether the gateway lives, and whether its store can take events.

    Neither a broker nor a supervisor that does not answer makes it less ready: how many wake-ups
    could not be published at their time is told, and whether the supervisor can be reached.
    """

    def __init__(
        self, store: Store, announcer: Announcer | None, supervisor: Supervisor | None
    ) -> None:
        self._store = store
        self._announcer = announcer
        self._supervisor = supervisor
        self._asking = anyio.Lock()
        self._asked = -_READY_FOR
        self._why: str | None = None
        self._unsupervised: str | None = None

    async def answer(self, request: HTTPRequest) -> Response:  # noqa: ARG002
        """200 if events can be taken now, else 503 and why not."""
        async with self._asking:
            if time.monotonic() - self._asked >= _READY_FOR:
                await self._ask_both()
                self._asked = time.monotonic()
        state: dict[str, Any] = {"live": True, "ready": self._why is None}
        if self._announcer is not None:
            state["wake_ups_unpublished"] = self._announcer.unpublished
        if self._supervisor is not None:
            state["supervisor"] = self._unsupervised or "reachable"
        if self._why is None:
            return Response(msgspec.json.encode(state), media_type="application/json")
        return problem(503, self._why, headers={"Retry-After": "1"}, members=state)

    async def _ask_both(self) -> None:
        async with anyio.create_task_group() as both:
            both.start_soon(self._ask_store)
            if self._supervisor is not None:
                both.start_soon(self._ask_supervisor, self._supervisor)

    async def _ask_store(self) -> None:
        self._why = await _ask(
            self._store.ready,
            _READY_WAIT,
            "the store does not answer",
            "the store cannot take events; the gateway's log says why",
        )

    async def _ask_supervisor(self, supervisor: Supervisor) -> None:
        self._unsupervised = await _ask(
            supervisor.ready,
            _SUPERVISOR_WAIT,
            "the supervisor does not answer",
            "the supervisor refuses this process; the gateway's log says why",
        )


async def _ask(ready: Callable[[], None], seconds: float, silent: str, refused: str) -> str | None:
    """Why something is not ready, as strangers may know it; the log has more."""
    try:
        with anyio.fail_after(seconds):
            await anyio.to_thread.run_sync(ready, abandon_on_cancel=True)
    except (Unavailable, TimeoutError):
        return silent
    except BlacksmithError as error:
        _log.error("%s", error)
        return refused
    return None


def _idempotency_key(raw: bytes | None) -> str | None:
    if raw is None:
        return None
    key = raw.decode("latin-1")
    if not key.isascii() or not key.isprintable() or not key.strip():
        raise BadRequest(
            "Idempotency-Key is one to 512 printable ASCII characters; send such a one"
        )
    return key


def _reply(reply: Reply) -> Response:
    return Response(reply.body, reply.status, {"content-type": reply.content_type})
