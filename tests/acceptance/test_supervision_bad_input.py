"""A wrong address, a rejected token, a silent agent: each error says what to do."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from blacksmith_dagster.errors import BlacksmithError, SettingsError, Unavailable
from blacksmith_dagster.store import Store, open_store
from blacksmith_dagster.supervisor import Supervisor, open_supervisor, this_process
from tests.support.processes.blacksmith import ROOT_FOLDER, GatewayProcess
from tests.support.processes.hosts import PIPELINE
from tests.support.services import free_port
from tests.support.services.consul import ConsulServer
from tests.support.services.tls import make_certificate
from tests.support.waiting import until

CANARY = str(uuid.uuid4())
KEY = "load/warehouse/flights"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with contextlib.closing(open_store(f"sqlite:///{tmp_path}/store.db")) as store:
        yield store


@pytest.fixture
def silent() -> Iterator[int]:
    """A port that accepts and never responds."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture(scope="module")
def guarded() -> Iterator[ConsulServer]:
    """A Consul that rejects every call without a token."""
    server = ConsulServer(acl_token=str(uuid.uuid4()))
    try:
        server.start()
        yield server
    finally:
        server.close()


def errors_of(supervisor: Supervisor) -> list[BlacksmithError]:
    """The error that each call raises."""
    raised: list[BlacksmithError] = []
    calls: list[Any] = [
        supervisor.ready,
        lambda: supervisor.acquire(KEY, "we"),
        lambda: supervisor.status(KEY),
        supervisor.locks,
    ]
    for call in calls:
        with pytest.raises(BlacksmithError) as caught:
            call()
        raised.append(caught.value)
    return raised


def status(url: str, tmp_path: Path) -> "subprocess.CompletedProcess[str]":
    """Run `blacksmith status` with this supervisor."""
    return subprocess.run(
        [sys.executable, "-m", "blacksmith_dagster.cli", "status", f"--app={PIPELINE}"],
        env={
            **os.environ,
            "BLACKSMITH_HOME": str(tmp_path),
            "BLACKSMITH_SUPERVISOR_URL": url,
            "BLACKSMITH_STORE_URL": f"sqlite:///{tmp_path}/store.db",
            "CONSUL_HTTP_TOKEN": CANARY,
        },
        cwd=ROOT_FOLDER,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_wrong_address(store: Store, tmp_path: Path) -> None:
    for host in (f"127.0.0.1:{free_port()}", "no-such-host.invalid:8500"):
        url = f"consul://:{CANARY}@{host}?ttl=3"
        with contextlib.closing(open_supervisor(url, store.database)) as supervisor:
            for error in errors_of(supervisor):
                assert isinstance(error, Unavailable)
                assert f"consul://{host} does not respond" in str(error)
                assert "BLACKSMITH_SUPERVISOR_URL" in str(error)
                assert CANARY not in str(error)
    ended = status(url, tmp_path)
    assert ended.returncode == 0
    assert f"Services and locks are not known: consul://{host} does not" in ended.stdout
    assert CANARY not in ended.stdout + ended.stderr


@pytest.mark.consul
def test_refused_token(
    guarded: ConsulServer, store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = guarded.url.replace("//", f"//:{CANARY}@")
    with contextlib.closing(open_supervisor(url, store.database)) as supervisor:
        for error in errors_of(supervisor)[:3]:
            assert isinstance(error, SettingsError)
            assert "refuses the token" in str(error)
            assert "CONSUL_HTTP_TOKEN" in str(error)
            assert CANARY not in f"{error!r} {error.__cause__!r}"
        supervisor.register(this_process("blacksmith-scheduler"))
        until(lambda: "could not be registered" in caplog.text)
        assert CANARY not in caplog.text
    ended = status(guarded.url, tmp_path)
    assert "refuses the token" in ended.stdout
    assert CANARY not in ended.stdout + ended.stderr


@pytest.mark.consul
def test_a_token_with_the_rights_is_accepted(
    guarded: ConsulServer, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rights that the error lists are enough."""
    rules = """
        key_prefix "blacksmith/" { policy = "write" }
        session_prefix "" { policy = "write" }
        service_prefix "blacksmith-" { policy = "write" }
        node_prefix "" { policy = "read" }
    """
    guarded.call("PUT", "acl/policy", {"Name": "blacksmith", "Rules": rules})
    token = guarded.call("PUT", "acl/token", {"Policies": [{"Name": "blacksmith"}]})
    monkeypatch.setenv("CONSUL_HTTP_TOKEN", token["SecretID"])
    monkeypatch.setenv("CONSUL_HTTP_ADDR", f"127.0.0.1:{guarded.port}")
    with contextlib.closing(open_supervisor("consul://", store.database)) as supervisor:
        lease = supervisor.acquire(KEY, "we")
        assert lease
        assert lease.confirm()
        assert [lock.key for lock in supervisor.locks()] == [KEY]
        supervisor.register(this_process("blacksmith-scheduler"))
        until(lambda: [service.passing for service in supervisor.services()] == [True])
    assert not guarded.call("GET", "session/list")


@pytest.mark.consul
def test_an_agent_that_speaks_tls(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = make_certificate(tmp_path)
    server = ConsulServer(certificate=certificate)
    url = f"consul://127.0.0.1:{server.https_port}?scheme=https"
    with contextlib.closing(server):
        server.start()
        with contextlib.closing(open_supervisor(url, store.database)) as stranger:
            for error in errors_of(stranger):
                assert "does not respond (SSLError)" in str(error)
        monkeypatch.setenv("CONSUL_CACERT", str(certificate[0]))
        with contextlib.closing(open_supervisor(f"{url}&dc=dc1", store.database)) as supervisor:
            lease = supervisor.acquire(KEY, "we")
            assert lease
            assert lease.confirm()
        with contextlib.closing(
            open_supervisor(f"{url}&dc=elsewhere", store.database)
        ) as supervisor:
            for error in errors_of(supervisor):
                assert "No path to datacenter" in str(error)


def test_silent_agent(store: Store, silent: int, tmp_path: Path) -> None:
    url = f"consul://:{CANARY}@127.0.0.1:{silent}?ttl=3"
    with contextlib.closing(open_supervisor(url, store.database)) as supervisor:
        began = time.monotonic()
        errors = errors_of(supervisor)
        assert (
            time.monotonic() - began < len(errors) * 1.0 + 1.0
        )  # a third of the time to live each
        for error in errors:
            assert isinstance(error, Unavailable)
            assert CANARY not in str(error)
        with pytest.raises(Unavailable):
            supervisor.acquire(KEY, "we", wait=60)
    with GatewayProcess(
        f"sqlite:///{tmp_path}/gateway.db",
        PIPELINE,
        env={"BLACKSMITH_SUPERVISOR_URL": url},
    ) as gateway:
        began = time.monotonic()
        response = gateway.client_get("/_health")
        assert time.monotonic() - began < 2
        assert response.status_code == 200
        assert response.json()["supervisor"] == "the supervisor does not respond"
        with gateway.client() as client:
            accepted = client.post("/v1/airport/departed", json={"n": 1})
        assert accepted.status_code == 202
        assert CANARY not in gateway.log


def test_unknown_scheme(store: Store, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="unsupported scheme zookeeper://") as caught:
        open_supervisor(f"zookeeper://me:{CANARY}@host", store.database)
    assert "consul://host:8500" in str(caught.value)
    assert CANARY not in str(caught.value)
    ended = status(f"zookeeper://me:{CANARY}@host", tmp_path)
    assert ended.returncode == 1
    assert "zookeeper://" in ended.stderr
    assert CANARY not in ended.stdout + ended.stderr


def test_a_response_that_is_not_consuls(store: Store) -> None:
    """A redirect is not followed, because it would pass the token on; a web page is an error."""
    paths: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            paths.append(self.path)
            redirected = "status" in self.path
            self.send_response(302 if redirected else 200)
            self.send_header("Location", "/elsewhere")
            self.end_headers()
            self.wfile.write(b"<html>" + b"x" * 5000)

        def log_message(self, *_: Any) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        url = f"consul://127.0.0.1:{server.server_port}"
        with contextlib.closing(open_supervisor(url, store.database)) as supervisor:
            for call in (lambda: supervisor.status("status"), lambda: supervisor.status(KEY)):
                with pytest.raises(Unavailable) as caught:
                    call()
                assert len(str(caught.value)) < 500
        server.shutdown()
    assert "/elsewhere" not in paths
