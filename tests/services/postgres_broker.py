"""PostgreSQL as a broker of notifications: the test session's own server, which asks for a password."""

from urllib.parse import urlsplit

import psycopg

from tests.services.postgres import PostgresServer

_USER = "wakeful"
_PASSWORD = "knows/@all"


class PostgresBroker(PostgresServer):
    """A server that the test stops and kills; its tests share a database."""

    def __init__(self) -> None:
        super().__init__(durable=True)
        rules = self.folder / "data" / "pg_hba.conf"
        rules.write_text(f"host all {_USER} 127.0.0.1/32 scram-sha-256\n{rules.read_text()}")

    def start(self) -> None:
        super().start()
        with psycopg.connect(self.url) as connection:
            known = connection.execute("SELECT FROM pg_roles WHERE rolname = %s", [_USER])
            if known.rowcount == 0:
                connection.execute(f"CREATE ROLE {_USER} LOGIN PASSWORD '{_PASSWORD}'")

    def urls(
        self, topic: str, *, port: int | None = None, password: str | None = None
    ) -> tuple[str, str]:
        """The URL for `open_pubsub`, and that of the store whose database it uses."""
        shown = (password or _PASSWORD).replace("/", "%2F").replace("@", "%40")
        where = f"127.0.0.1:{port or urlsplit(self.url).port}"
        return f"postgres?topic={topic}", f"postgresql://{_USER}:{shown}@{where}/postgres"

    def send(self, topic: str, destination: str, body: bytes) -> None:
        """Notify the channel; a payload is text without NUL, so what cannot be one is escaped."""
        payload = body.decode(errors="backslashreplace").replace("\0", "\\0")
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute("SELECT pg_notify(%s, %s)", [topic, payload])

    def delete(self, topic: str) -> None:
        """PostgreSQL keeps nothing for a channel but who listens: those are cut off."""
        self.cut()

    def cut(self) -> None:
        """End the sessions of all clients."""
        with psycopg.connect(self.url) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE usename = %s",
                [_USER],
            )
