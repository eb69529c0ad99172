"""A gateway with a webhook endpoint for every ready-made source, and its store."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import httpx
import pytest

from blacksmith_dagster.store import Store, open_store
from blacksmith_dagster.store.records import StoredEvent
from tests.support.processes.blacksmith import GatewayProcess

SEGMENT_KEY, SEGMENT_KEY_OLD = "segment-write-key", "segment-write-key-of-last-year"
GITHUB_SECRET, GITHUB_SECRET_OLD = "github-secret", "github-secret-of-last-year"
STRIPE_SECRET = "whsec_stripe-secret"
SLACK_SECRET = "slack-secret"
HOOKS_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


class Webhooks:
    """A running gateway with its store."""

    def __init__(self, gateway: GatewayProcess, store: Store) -> None:
        self.gateway = gateway
        self.store = store
        self._seen = 0

    def post(
        self, path: str, body: bytes | str, headers: Mapping[str, str] | None = None
    ) -> httpx.Response:
        with self.gateway.client() as client:
            return client.post(path, content=body, headers=headers)

    def new(self) -> Sequence[StoredEvent]:
        """The events stored since the last call, in order."""
        events = [
            event
            for event in reversed(self.store.log.newest(limit=10_000))
            if event.seq > self._seen
        ]
        self._seen = max((event.seq for event in events), default=self._seen)
        return events


@contextlib.contextmanager
def opened(kind: str, request: pytest.FixtureRequest, folder: Path) -> Iterator[Webhooks]:
    """Start the gateway on a new store, by `kind` on 'sqlite' or 'postgres'."""
    url = f"sqlite:///{folder}/store.db"
    if kind == "postgres":
        url = request.getfixturevalue("postgres").create_database()
    env = {
        "SEGMENT_KEY": SEGMENT_KEY,
        "SEGMENT_KEY_OLD": SEGMENT_KEY_OLD,
        "GITHUB_SECRET": GITHUB_SECRET,
        "GITHUB_SECRET_OLD": GITHUB_SECRET_OLD,
        "STRIPE_SECRET": STRIPE_SECRET,
        "SLACK_SECRET": SLACK_SECRET,
        "HOOKS_SECRET": HOOKS_SECRET,
    }
    app = "tests.support.pipelines.webhooks:blacksmith"
    with (
        GatewayProcess(url, app, env=env) as gateway,
        contextlib.closing(open_store(url)) as store,
    ):
        yield Webhooks(gateway, store)
        assert "Traceback" not in gateway.log
        for secret in env.values():
            assert secret not in gateway.log
