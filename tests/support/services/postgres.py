"""PostgreSQL: the test session's own server, or a running one given by its URL."""

import itertools
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit, urlunsplit

from tests.support.services import Unavailable, free_port, unprivileged
from tests.support.services.server import Server

_STOP = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}
_serial = itertools.count(1)


class Postgres:
    """A running PostgreSQL in which tests create databases. `url` logs in with the right to do so."""

    def __init__(self, url: str) -> None:
        self.url = url

    def create_database(self, template: str | None = None) -> str:
        """Create a database, empty or a copy of the one at the URL `template`; returns its URL."""
        name = f"blacksmith_test_{os.getpid()}_{next(_serial)}"
        template_clause = f' TEMPLATE "{_database(template)}"' if template else ""
        self._execute(f'CREATE DATABASE "{name}"{template_clause}')
        return urlunsplit(urlsplit(self.url)._replace(path=f"/{name}"))

    def drop_database(self, url: str) -> None:
        """Drop the database at `url`, even one that is in use."""
        self._execute(f'DROP DATABASE IF EXISTS "{_database(url)}" WITH (FORCE)')

    def _execute(self, statement: str) -> None:
        import psycopg

        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(statement)


class PostgresServer(Postgres, Server):
    """A server that the test starts, stops and kills.

    With `durable` it has PostgreSQL's default settings for fsync and commits, for tests that kill it;
    without, it is as fast as possible and loses everything in a crash. `wal_level` is 'logical' so
    that row changes can be read from it.
    """

    service = "PostgreSQL"
    marker = "postgres"

    def __init__(self, *, durable: bool, wal_level: str = "logical") -> None:
        self._bin = binaries()
        self._durable = durable
        self._wal_level = wal_level
        self._port = free_port()
        Server.__init__(self)
        Postgres.__init__(self, f"postgresql://postgres@127.0.0.1:{self._port}/postgres")
        try:
            self._initialize()
        except BaseException:
            self.close()
            raise

    def _command(self) -> list[str | Path]:
        options: dict[str, str | int | Path] = {
            "listen_addresses": "127.0.0.1",
            "port": self._port,
            "unix_socket_directories": self.folder,
            "shared_buffers": "64MB",
            "wal_level": self._wal_level,
        }
        if not self._durable:
            options |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
        settings = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        return [self._bin / "postgres", "-D", self.folder / "data", *settings]

    def stop(self, mode: Literal["smart", "fast", "immediate"] = "fast") -> None:
        """Stop the server and wait until it has ended; `immediate` is like a crash: no checkpoint."""
        if self.process is not None:
            self._end(self.process.pid, _STOP[mode])

    def restart(self, mode: Literal["smart", "fast", "immediate"] = "fast") -> None:
        """Stop the server if it runs, and start it again at the same URL."""
        self.stop(mode)
        self.start()

    def _initialize(self) -> None:
        options = ["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync"]
        subprocess.run(
            unprivileged([self._bin / "initdb", "-D", self.folder / "data", *options]),
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env=self._environment(),
            cwd=self.folder,
        )

    def ready(self) -> bool:
        import psycopg

        try:
            psycopg.connect(self.url, connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True


def _database(url: str) -> str:
    return urlsplit(url).path.removeprefix("/")


def binaries() -> Path:
    """The folder of the server's programs: Debian's newest, or of the version that was asked for."""
    if version := os.environ.get("BLACKSMITH_TEST_POSTGRES_VERSION"):
        programs = Path(f".cache/postgres/{version}/bin").resolve()
        if not (programs / "postgres").exists():
            raise Unavailable("PostgreSQL", f"run `scripts/get-postgres {version}` first")
        return programs
    # Debian installs each version in a folder outside PATH; use the newest.
    servers = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/postgres"),
        key=lambda path: int(path.parts[-3]),
    )
    server = str(servers[-1]) if servers else shutil.which("postgres")
    if server is None:
        raise Unavailable("PostgreSQL", "no server found; run `apt-get install postgresql`")
    return Path(server).resolve().parent
