"""`/_health`: reports whether the gateway can accept events."""

from __future__ import annotations

import asyncio
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
from blacksmith_dagster.store import Store
from blacksmith_dagster.supervisor import Supervisor

_READY_FOR = 1.0  # seconds for which a result is reused: strangers may request it too
_READY_WAIT = 5.0
_SUPERVISOR_WAIT = 1.0  # a slow supervisor must not make the gateway look dead

_log = logging.getLogger(__name__)


class Health:
    """Reports whether the gateway is alive, and whether its store can accept events.

    It is ready even if the broker or the supervisor does not respond: these are reported as the number
    of notifications that were not published on time, and as the supervisor's state.
    """

    def __init__(
        self, store: Store, notifier: Notifier | None, supervisor: Supervisor | None
    ) -> None:
        self._store = store
        self._notifier = notifier
        self._supervisor = supervisor
        self._checking = anyio.Lock()
        self._checked_at = -_READY_FOR
        self._not_ready_because: str | None = None
        self._supervisor_problem: str | None = None

    async def respond(self, request: Request) -> Response:  # noqa: ARG002
        """Respond 200 if events can be accepted now, else 503 with the reason."""
        async with self._checking:
            if time.monotonic() - self._checked_at >= _READY_FOR:
                await self._check_both()
                self._checked_at = time.monotonic()
        state: dict[str, Any] = {"live": True, "ready": self._not_ready_because is None}
        if self._notifier is not None:
            state["notifications_unpublished"] = self._notifier.unpublished
        if self._supervisor is not None:
            state["supervisor"] = self._supervisor_problem or "reachable"
        if self._not_ready_because is None:
            return Response(msgspec.json.encode(state), media_type="application/json")
        return problem(503, self._not_ready_because, headers={"Retry-After": "1"}, members=state)

    async def _check_both(self) -> None:
        checks = [_problem(self._store.ready, _READY_WAIT, "store", "cannot accept events")]
        if self._supervisor is not None:
            ready, rejects = self._supervisor.ready, "rejects this process"
            checks.append(_problem(ready, _SUPERVISOR_WAIT, "supervisor", rejects))
        self._not_ready_because, *others = await asyncio.gather(*checks)
        self._supervisor_problem = others[0] if others else None


async def _problem(
    ready: Callable[[], None], seconds: float, service: str, failing: str
) -> str | None:
    """Why a service is not ready, in words that strangers may read; the log has more."""
    try:
        with anyio.fail_after(seconds):
            await anyio.to_thread.run_sync(ready, abandon_on_cancel=True)
    except (Unavailable, TimeoutError):
        return f"the {service} does not respond"
    except BlacksmithError as error:
        _log.error("%s", error)
        return f"the {service} {failing}; the gateway's log says why"
    return None
