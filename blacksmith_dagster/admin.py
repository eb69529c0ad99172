"""The admin port: what a service manager asks a process about its health."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from blacksmith_dagster.errors import BlacksmithError, SettingsError
from blacksmith_dagster.redaction import explain

_STOP_SECONDS = 5.0

_log = logging.getLogger(__name__)


def listen(host: str, port: int) -> socket.socket:
    """A socket for the admin port. Raises `SettingsError` if it cannot listen there."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise SettingsError(
            f"the admin port cannot listen on {host}, port {port} ({error.strerror}); stop the process "
            "that uses it, or choose another port with --admin-port"
        ) from error


@contextmanager
def answering(
    listener: socket.socket, live: Callable[[], Sequence[str]], ready: Callable[[], None]
) -> Iterator[None]:
    """Answer `/health/live` and `/health/ready` within the block, in a thread of its own.

    - `live`: returns at once why the process makes no progress, nothing if it does. A process that is
      not live needs a restart.
    - `ready`: raises a `BlacksmithError` if the process cannot work now; it may wait for a service.

    Both paths return 200, or 503 with the `problems`.

    >>> with answering(listen("127.0.0.1", 0), live=list, ready=lambda: None):
    ...     pass
    """
    # Imported here: a process without an admin port needs no server.
    import uvicorn

    async def respond_live(_: Request) -> Response:
        return _response("live", live())

    def respond_ready(_: Request) -> Response:
        try:
            ready()
        except BlacksmithError as error:
            return _response("ready", [explain(error)])
        except Exception as error:  # noqa: BLE001 - a bug of ours or of a driver: not ready
            _log.exception("the admin port could not check whether this process is ready")
            return _response("ready", [explain(error)])
        return _response("ready", [])

    app = Starlette(
        routes=[Route("/health/live", respond_live), Route("/health/ready", respond_ready)]
    )
    config = uvicorn.Config(
        app,
        loop="asyncio",
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(
        target=server.run, kwargs={"sockets": [listener]}, name="admin-port", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(_STOP_SECONDS)


def _response(name: str, problems: Sequence[str]) -> Response:
    state: dict[str, object] = {name: not problems}
    if problems:
        state["problems"] = problems
    return Response(
        msgspec.json.encode(state), 503 if problems else 200, media_type="application/json"
    )
