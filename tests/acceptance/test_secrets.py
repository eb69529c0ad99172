"""Secrets are used but never appear in a log, an error, a response or Dagster's storage."""

import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from tests.support.dagster_home import make_home
from tests.support.pipelines.secret import ALERTS, ALERTS_KEY, TOKEN, WAREHOUSE
from tests.support.processes.blacksmith import ROOT_FOLDER, GatewayProcess
from tests.support.services import free_port

PIPELINE = "tests.support.pipelines.secret"
CANARY = "cAnAry0f5e1d"


class Echo(BaseHTTPRequestHandler):
    """A service that rejects every request and echoes it."""

    received: list[str]

    def do_POST(self) -> None:
        echo = f"{self.requestline}\n{self.headers}".encode()
        self.received.append(echo.decode())
        self.send_response(400, f"no {self.path}")
        self.send_header("Content-Length", str(len(echo)))
        self.end_headers()
        self.wfile.write(echo)

    def log_message(self, *_: object) -> None: ...


@contextmanager
def echo() -> Iterator[tuple[str, list[str]]]:
    received: list[str] = []
    handler = type("Handler", (Echo,), {"received": received})
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"127.0.0.1:{server.server_port}", received
        server.shutdown()
        thread.join()


def run(*command: str, env: Mapping[str, str]) -> str:
    """Run a Python module; returns its output, even if it failed."""
    done = subprocess.run(
        [sys.executable, "-m", *command],
        env=dict(env),
        cwd=ROOT_FOLDER,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=120,
        check=False,
    )
    return done.stdout.decode()


def kept(folder: Path) -> str:
    """The contents of all files in a folder; SQLite files are read with SELECT."""
    parts = []
    for path in sorted(file for file in folder.rglob("*") if file.is_file()):
        content = path.read_bytes()
        parts.append(content.decode(errors="replace"))
        if content.startswith(b"SQLite format 3"):
            with closing(sqlite3.connect(path)) as database:
                parts += list(database.iterdump())
    return "\n".join(parts)


@pytest.mark.timeout(300)
def test_secrets_appear_nowhere(store_url: str, tmp_path: Path) -> None:
    dagster_home = tmp_path / "dagster"
    make_home(dagster_home)
    parts = urlsplit(store_url)
    if parts.hostname:  # the server trusts every client, but gets a password all the same
        store_url = parts._replace(
            netloc=f"{parts.username}:{CANARY}@{parts.hostname}:{parts.port}"
        ).geturl()
    outputs: dict[str, str] = {}
    with echo() as (address, received):
        env = {
            **os.environ,
            "BLACKSMITH_HOME": str(tmp_path),
            "BLACKSMITH_STORE_URL": store_url,
            "DAGSTER_HOME": str(dagster_home),
            TOKEN: CANARY,
            WAREHOUSE: f"postgresql://app:{CANARY}@127.0.0.1:{free_port()}/warehouse",
            ALERTS: f"http://app:{CANARY}@{address}/hooks/{CANARY}",
            ALERTS_KEY: CANARY,
        }
        with GatewayProcess(store_url, f"{PIPELINE}:blacksmith", env=env) as gateway:
            responses = [
                gateway.client_get("/_health"),
                *(
                    httpx.post(
                        f"{gateway.url}/vault/opened",
                        content=body,
                        headers={"Authorization": f"{scheme} {CANARY}{more}"},
                        trust_env=False,
                    )
                    for scheme, more in (("Bearer", ""), ("Bearer", "x"), ("Basic", ""))
                    for body in (b'{"number": 1}', b"{}", b"not JSON")
                ),
            ]
            gateway.stop()
            outputs["the gateway's log"] = gateway.log
        statuses = [response.status_code for response in responses]
        assert statuses[:4] == [200, 202, 202, 400]  # the second 202 is in quarantine
        assert set(statuses[4:]) == {401}
        outputs["responses"] = "\n".join(
            f"{response.headers}\n{response.text}" for response in responses
        )

        for job in ("load_alerts", "load_warehouse"):
            execute = ("dagster", "job", "execute", "-m", PIPELINE, "-d", str(ROOT_FOLDER))
            outputs[job] = run(*execute, "-j", job, env=env)
            assert "STEP_START" in outputs[job]
        assert len(received) == 1
        assert CANARY in received[0]  # the secret was used

        for command in (
            "status",
            "events list",
            "jobs list --state discarded --json",
            "quarantine list --json",
            "quarantine show qua_1",
        ):
            blacksmith = ("blacksmith_dagster.cli", *command.split())
            app = (f"--app={PIPELINE}:blacksmith",) if command == "status" else ()
            outputs[command] = run(*blacksmith, *app, env=env)
        assert "alerts/openings" in outputs["jobs list --state discarded --json"]
        assert "vault/opened" in outputs["quarantine list --json"]
        assert "KeyError" in outputs["quarantine show qua_1"]

        for port in (free_port(), "no-port"):
            broken = {
                **env,
                "BLACKSMITH_STORE_URL": f"postgresql://app:{CANARY}@127.0.0.1:{port}/events",
            }
            place = f"with the store at port {port}"
            app = (f"--app={PIPELINE}:blacksmith",)
            outputs[f"gateway {place}"] = run("blacksmith_dagster.cli", "gateway", *app, env=broken)
            outputs[f"status {place}"] = run("blacksmith_dagster.cli", "status", *app, env=broken)
            outputs[f"job {place}"] = run(*execute, "-j", "load_alerts", env=broken)

    outputs["Dagster's storage"] = kept(dagster_home)
    assert "load_alerts" in outputs["Dagster's storage"]
    leaked = {place: lines for place, text in outputs.items() if (lines := with_canary(text))}
    assert leaked == {}


def with_canary(text: str) -> list[str]:
    return [line[:300] for line in text.splitlines() if CANARY in line]
