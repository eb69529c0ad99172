"""Replays of a store's events: their windows, and what plans and loads them."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from blacksmith_dagster.store import Store
from blacksmith_dagster.store.records import (
    FencingToken,
    Lane,
    Load,
    LoadVerdict,
    Replay,
    ReplayCandidate,
    ReplayMode,
    ReplayRequest,
    SelectedJob,
    Window,
)
from tests.support.pipelines.store import (
    FLIGHTS,
    departed,
    take_over,
)

NOW = datetime.now(UTC)
EVER: dict[str, Any] = {"start": NOW - timedelta(days=1), "end": NOW + timedelta(days=1)}
ALL = ReplayRequest(**EVER, modes=(ReplayMode.ALL,))
MISSING = ReplayRequest(**EVER, modes=(ReplayMode.MISSING,))


def replaying(store: Store, to: str = FLIGHTS, holder: str = "replay") -> FencingToken:
    return take_over(store, holder, Lane.REPLAY, to)


def candidates(
    store: Store, request: ReplayRequest, to: str = FLIGHTS
) -> Sequence[ReplayCandidate]:
    """All candidates of the request's window."""
    window = store.log.window(request.start, request.end)
    all_candidates: list[ReplayCandidate] = []
    while window.after < window.upto:
        page = store.replays.page(to, request, [departed.path], window)
        all_candidates += page.candidates
        window = Window(page.upto, window.upto)
    return all_candidates


def plan(
    store: Store,
    token: FencingToken,
    request: ReplayRequest,
    batch: int = 100,
    changed: Mapping[str, str] | None = None,
) -> Replay:
    """Begin a replay, and plan all candidates that are not pending; `changed`: new data, by id."""
    replay = store.replays.begin(token, request, [departed.path], "run")
    selected = [
        SelectedJob(event.seq, event.state, payload=(changed or {}).get(event.id))
        for event in candidates(store, request, token.destination)
        if event.state != "pending"
    ]
    return store.replays.plan(token, replay, replay.upto, selected, batch)


def drain(store: Store, token: FencingToken, verdict: LoadVerdict | None = None) -> list[Load]:
    loaded = []
    while load := store.loads.claim(token, 100, 3, "run"):
        loaded.append(load)
        store.loads.record(load, verdict or LoadVerdict())
    return loaded
