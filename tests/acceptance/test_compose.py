"""The commands of deploy/compose.yaml, started as processes in its order, carry events to where they
are loaded. PostgreSQL is the session's, and the loopback stands for the names of hosts."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
import yaml

from scripts.demo import Receiver
from tests.support.process_trees import kill_tree
from tests.support.processes.blacksmith import ROOT_FOLDER
from tests.support.services import ROOT, free_port, start
from tests.support.services.postgres import Postgres
from tests.support.waiting import until

# Root may write what is read-only, unless it gives up this right.
WITHOUT_OVERRIDE = ["setpriv", "--bounding-set=-dac_override", "--"] if ROOT else []
DEPLOY = ROOT_FOLDER / "deploy"
WORKSPACE = "deploy/workspace.yaml"
HOSTS = re.compile(r"\b(0\.0\.0\.0|code-server(?=\n)|(?<=//)gateway)\b")
ADMIN_PORT = "8421"
INTERVAL = 3.0  # seconds between two health checks: one of Dagster's computes for a second or two
FLIGHT = {
    "carrier": "UA",
    "flight": 1545,
    "time_hour": "2013-01-01T10:00:00Z",
    "origin": "EWR",
    "dest": "IAH",
    "distance": 1400,
    "sched_dep_time": 515,
    "sched_arr_time": 819,
}


class Service:
    """A service of the compose file as a process."""

    def __init__(self, declared: Mapping[str, Any], env: Mapping[str, str], log: Path) -> None:
        self._env = {**env, **declared["environment"]}
        self._healthcheck = declared.get("healthcheck", {}).get("test")
        self._log = log
        self._was_healthy = False
        self._check_at = time.monotonic() + INTERVAL
        command = [*WITHOUT_OVERRIDE, *declared["command"]]
        self.process = start(command, folder=ROOT_FOLDER, env=self._env, log=log, drop=False)

    @property
    def log(self) -> str:
        return self._log.read_text()

    def has_completed(self) -> bool:
        assert self.process.wait(60) == 0, self.log
        return True

    def is_healthy(self) -> bool:
        """Run the health check, at intervals, as a container engine does; it is healthy once."""
        if not self._was_healthy and time.monotonic() >= self._check_at:
            assert self.process.poll() is None, self.log
            kind, *command = self._healthcheck
            assert kind == "CMD"
            done = subprocess.run(command, env=self._env, capture_output=True, check=False)
            self._was_healthy = done.returncode == 0
            self._check_at = time.monotonic() + INTERVAL
        return self._was_healthy


CONDITIONS: dict[str, Callable[[Service], bool]] = {
    "service_completed_successfully": Service.has_completed,
    "service_healthy": Service.is_healthy,
}


class Compose:
    """The services of the compose file on the loopback, with free ports in place of its own.

    - `given`: the values of the file's variables.
    - `databases`: the URLs of those that it names.
    """

    def __init__(
        self, folder: Path, given: Mapping[str, str], databases: Mapping[str, str]
    ) -> None:
        self._folder = folder
        self._databases = databases
        self._ports = {port: str(free_port()) for port in ("8420", "4000", "3000")}
        self._admin_ports: dict[str, str] = {}
        self._services: dict[str, Service] = {}
        self.home = folder / "home"
        self.home.mkdir()
        settings = (DEPLOY / "dagster.yaml").read_text().replace("/var/lib", str(folder))
        (self.home / "dagster.yaml").write_text(settings)
        self.home.chmod(0o555)  # as in a container, whose file system is read-only
        workspace = (ROOT_FOLDER / WORKSPACE).read_text()
        (folder / "workspace.yaml").write_text(self._on_loopback(workspace))
        text = (DEPLOY / "compose.yaml").read_text()
        text = re.sub(r"\$\{(\w+)(:\?[^}]*)?\}", lambda variable: given[variable[1]], text)
        self._declared: dict[str, Any] = yaml.safe_load(text)["services"]
        del self._declared["postgres"]
        # What the image sets, and nothing else of this process's environment.
        self._env = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT_FOLDER),
            "PYTHONUNBUFFERED": "1",
            "HOME": os.environ["HOME"],
            "BLACKSMITH_HOME": str(folder / "blacksmith"),
            "DAGSTER_HOME": str(self.home),
        }

    def __getitem__(self, name: str) -> Service:
        return self._services[name]

    def url(self, port: str) -> str:
        """The URL of the service that has this port in the file."""
        return f"http://127.0.0.1:{self._ports[port]}"

    def is_live(self, name: str) -> bool:
        """Whether a service says that it is live, as Kubernetes asks."""
        url = f"http://127.0.0.1:{self._admin_ports[name]}/health/live"
        return bool(httpx.get(url, trust_env=False).json()["live"])

    def start(self) -> None:
        """Start each service as soon as those that it depends on are as it demands."""
        waiting = dict(self._declared)
        while waiting:
            name = until(lambda: self._next(waiting), 120)
            self._admin_ports[name] = str(free_port())  # each container has its own
            declared = self._substituted(waiting.pop(name), self._admin_ports[name])
            self._services[name] = Service(declared, self._env, self._folder / f"{name}.log")

    def close(self) -> None:
        for service in self._services.values():
            kill_tree(service.process)

    def _next(self, waiting: Mapping[str, Any]) -> str | None:
        return next((name for name in waiting if self._may_start(waiting[name])), None)

    def _may_start(self, declared: Mapping[str, Any]) -> bool:
        return all(
            name in self._services and CONDITIONS[needed["condition"]](self._services[name])
            for name, needed in declared["depends_on"].items()
            if name != "postgres"
        )

    def _substituted(self, declared: Any, admin_port: str) -> Any:
        if isinstance(declared, dict):
            return {key: self._substituted(value, admin_port) for key, value in declared.items()}
        if isinstance(declared, list):
            return [self._substituted(value, admin_port) for value in declared]
        if not isinstance(declared, str):
            return declared
        text = declared.replace(ADMIN_PORT, admin_port)
        return self._on_loopback(text.replace(WORKSPACE, str(self._folder / "workspace.yaml")))

    def _on_loopback(self, text: str) -> str:
        database = re.search(r"[^/]*@postgres:5432/(\w+)$", text)
        if database:
            return text.replace(database[0], self._databases[database[1]].partition("://")[2])
        for port, free in self._ports.items():
            text = re.sub(rf"\b{port}\b", free, text)
        return HOSTS.sub("127.0.0.1", text)


@pytest.fixture
def alerts() -> Iterator[Receiver]:
    with closing(Receiver()) as receiver:
        yield receiver


@pytest.fixture
def databases(postgres: Postgres) -> Iterator[dict[str, str]]:
    urls = {name: postgres.create_database() for name in ("blacksmith", "dagster", "warehouse")}
    yield urls
    for url in urls.values():
        postgres.drop_database(url)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_compose_commands_carry_an_event(
    databases: dict[str, str], alerts: Receiver, tmp_path: Path
) -> None:
    given = {"POSTGRES_PASSWORD": "not-checked", "ALERTS_URL": alerts.url}
    with closing(Compose(tmp_path, given, databases)) as compose:
        compose.start()
        for name in ("gateway", "worker", "webserver"):
            until(compose[name].is_healthy, 60, name)
        assert compose.is_live("gateway")
        assert compose.is_live("worker")
        late = {**FLIGHT, "dep_time": 900, "dep_delay": 200.0}
        cancelled = {**FLIGHT, "flight": 1546}
        response = httpx.post(
            f"{compose.url('8420')}/airport/departures", json=[late, cancelled], trust_env=False
        )
        assert response.status_code == 202
        # By the worker, or by a warm run if that got the lock first.
        until(lambda: alerts.alerts, 60, compose["worker"].log)
        assert [alert["flight"] for alert in alerts.alerts] == ["UA1545"]
        # By a run that the daemon launched on the code server.
        until(lambda: loaded(databases["warehouse"]), 120, compose["daemon"].log)
        assert loaded(databases["warehouse"]) == [("UA", 1546)]
        for name in ("daemon", "webserver", "code-server"):
            assert "Permission denied" not in compose[name].log


def loaded(url: str) -> list[tuple[Any, ...]]:
    """The rows of the example's table of cancelled flights."""
    with psycopg.connect(url) as connection:
        if connection.execute("SELECT to_regclass('cancellations')").fetchone() == (None,):
            return []
        return connection.execute("SELECT carrier, flight FROM cancellations").fetchall()
