"""Whether the gateway can accept events, as `/_health` reports."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import anyio
import msgspec
from starlette.requests import Request
from starlette.responses import Response

from blacksmith_dagster.errors import BlacksmithError, Unavailable
from blacksmith_dagster.gateway.responses import problem
from blacksmith_dagster.pubsub.notifier import Notifier
from blacksmith_dagster.store.interface import Store
from blacksmith_dagster.supervisor import Supervisor

_READY_FOR = 1.0  # seconds for which a result holds: strangers may ask for it too
_READY_WAIT = 5.0
_SUPERVISOR_WAIT = 1.0  # its silence must not make the gateway look dead

_log = logging.getLogger(__name__)


class Health:
    """Says whether the gateway lives, and whether its store can accept events.

    Neither a broker nor a supervisor that does not respond makes it less ready: how many notifications
    could not be published at their time is reported, and whether the supervisor can be reached.
    """

    def __init__(
        self, store: Store, notifier: Notifier | None, supervisor: Supervisor | None
    ) -> None:
        self._store = store
        self._notifier = notifier
        self._supervisor = supervisor
        self._asking = anyio.Lock()
        self._asked = -_READY_FOR
        self._why: str | None = None
        self._unsupervised: str | None = None

    async def respond(self, request: Request) -> Response:  # noqa: ARG002
        """200 if events can be accepted now, else 503 and why not."""
        async with self._asking:
            if time.monotonic() - self._asked >= _READY_FOR:
                await self._ask_both()
                self._asked = time.monotonic()
        state: dict[str, Any] = {"live": True, "ready": self._why is None}
        if self._notifier is not None:
            state["notifications_unpublished"] = self._notifier.unpublished
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
            "the store does not respond",
            "the store cannot accept events; the gateway's log says why",
        )

    async def _ask_supervisor(self, supervisor: Supervisor) -> None:
        self._unsupervised = await _ask(
            supervisor.ready,
            _SUPERVISOR_WAIT,
            "the supervisor does not respond",
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
