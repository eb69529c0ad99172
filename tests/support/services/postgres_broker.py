"""PostgreSQL as a broker of notifications: the test session's own server, with a password."""

from urllib.parse import urlsplit

import psycopg

from tests.support.services.broker import Broker
from tests.support.services.postgres import PostgresServer

_USER = "wakeful"
_PASSWORD = "knows/@all"


class PostgresBroker(PostgresServer, Broker):
    """A server that tests stop and kill; they share a database."""

    def __init__(self) -> None:
        super().__init__(durable=True)
        rules = self.folder / "data" / "pg_hba.conf"
        rules.write_text(f"host all {_USER} 127.0.0.1/32 scram-sha-256\n{rules.read_text()}")

    def start(self) -> None:
        super().start()
        with psycopg.connect(self.url) as connection:
            role = connection.execute("SELECT FROM pg_roles WHERE rolname = %s", [_USER])
            if role.rowcount == 0:
                connection.execute(f"CREATE ROLE {_USER} LOGIN PASSWORD '{_PASSWORD}'")

    def urls(
        self, topic: str, *, port: int | None = None, password: str | None = None
    ) -> tuple[str, str]:
        """The URL for `open_pubsub`, and the URL of the store whose database it uses."""
        quoted = (password or _PASSWORD).replace("/", "%2F").replace("@", "%40")
        address = f"127.0.0.1:{port or urlsplit(self.url).port}"
        return f"postgres?topic={topic}", f"postgresql://{_USER}:{quoted}@{address}/postgres"

    def send(self, topic: str, destination: str, body: bytes) -> None:
        """Notify the channel. A payload is text without NUL, so other bytes are escaped."""
        payload = body.decode(errors="backslashreplace").replace("\0", "\\0")
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute("SELECT pg_notify(%s, %s)", [topic, payload])

    def delete(self, topic: str) -> None:
        """PostgreSQL keeps only the listening sessions of a channel: end them."""
        self.cut()

    def cut(self) -> None:
        """End the sessions of all clients."""
        with psycopg.connect(self.url) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE usename = %s",
                [_USER],
            )
