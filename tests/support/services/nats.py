"""NATS with JetStream: the test session's own server, with a user and a password."""

import asyncio
import json
import os
import shutil
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.error import URLError
from urllib.request import urlopen

from tests.support.services import Unavailable, free_port
from tests.support.services.broker import Broker
from tests.support.waiting import until

T = TypeVar("T")

_USER = "blacksmith"
_PASSWORD = "knows/@all"
_LOGIN = f'user: {_USER}, password: "{{}}"'


class NATSServer(Broker):
    """A server that the test starts, stops and kills; its streams are kept in a folder."""

    service = "NATS"
    marker = "nats"

    def __init__(self, *, tls: tuple[Path, Path] | None = None) -> None:
        """`tls`: a certificate and its key, PEM files that every user may read.

        `authorization` and `jetstream` may be changed; they apply from the next `start`.
        """
        self._bin = _binary()
        self._port = free_port()
        self._monitor = free_port()
        super().__init__()
        self._tls = ""
        if tls is not None:
            certificate, key = (shutil.copy(file, self.folder) for file in tls)
            self._tls = f"tls {{ cert_file: {certificate}, key_file: {key} }}"
        self.authorization = _LOGIN.format(_PASSWORD)
        self.jetstream = True

    def urls(
        self, topic: str, *, port: int | None = None, password: str | None = None
    ) -> tuple[str, str]:
        """The URL for `open_pubsub`, and the URL of a store, which NATS does not use."""
        quoted = (password or _PASSWORD).replace("/", "%2F").replace("@", "%40")
        return f"nats://{_USER}:{quoted}@127.0.0.1:{port or self._port}?topic={topic}", "sqlite://"

    def send(self, topic: str, destination: str, body: bytes) -> None:
        """Send a message to the subscribers of a destination, whatever its body."""
        self.using(lambda client: client.publish(f"{topic}.{destination}", body))

    def delete(self, topic: str) -> None:
        """Delete the topic's stream and its consumers. Notifications have no stream: for them, end the
        connections of all clients."""
        from nats.js.errors import NotFoundError

        try:
            self.using(lambda client: client.jetstream().delete_stream(topic))
        except NotFoundError:
            self.cut()

    def using(self, use: Callable[[Any], Awaitable[T]]) -> T:
        """Call `use` with a connected client of nats-py; returns its result."""
        import nats

        async def run() -> T:
            url = f"nats://127.0.0.1:{self._port}"
            client = await nats.connect(url, user=_USER, password=_PASSWORD)
            try:
                return await use(client)
            finally:
                await client.close()

        return asyncio.run(run())

    def cut(self) -> None:
        """End the connections of all clients by changing their password, and then back."""
        self._reload(_LOGIN.format("another"))
        until(lambda: self._connections() == 0)
        self._reload(_LOGIN.format(_PASSWORD))

    def _reload(self, authorization: str) -> None:
        assert self.process is not None, "not started"
        before = self._configured_at()
        self.authorization = authorization
        self._configure()
        self.process.send_signal(signal.SIGHUP)
        until(lambda: self._configured_at() != before)

    def _command(self) -> list[str | Path]:
        self._configure()
        return [self._bin, "-c", self.folder / "nats.conf"]

    def ready(self) -> bool:
        health = f"healthz?js-enabled-only={str(self.jetstream).lower()}"
        return self._ask(health) is not None

    def _configure(self) -> None:
        jetstream = f"jetstream {{ store_dir: {self.folder} }}" if self.jetstream else ""
        (self.folder / "nats.conf").write_text(
            f"listen: 127.0.0.1:{self._port}\n"
            f"http: 127.0.0.1:{self._monitor}\n"
            f"authorization {{ {self.authorization} }}\n{jetstream}\n{self._tls}\n"
        )

    def _configured_at(self) -> str:
        return str((self._ask("varz") or {})["config_load_time"])

    def _connections(self) -> int:
        return int((self._ask("connz") or {})["num_connections"])

    def _ask(self, path: str) -> dict[str, Any] | None:
        try:
            with urlopen(f"http://127.0.0.1:{self._monitor}/{path}", timeout=5) as response:
                document: dict[str, Any] = json.load(response)
                return document
        except (URLError, OSError):
            return None


def _binary() -> Path:
    # Debian installs it in /usr/sbin, which is not in every user's PATH.
    server = shutil.which("nats-server", path=f"/usr/sbin:{os.environ['PATH']}")
    if server is None:
        raise Unavailable("NATS", "no server found; run `apt-get install nats-server`")
    return Path(server)
