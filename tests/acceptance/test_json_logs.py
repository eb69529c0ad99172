"""`BLACKSMITH_LOG=json`: each line of a process's log is JSON, says what it is about, and no secret."""

import json
import os
import subprocess
import sys
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from click.testing import CliRunner

from blacksmith_dagster.cli import main
from tests.support.pipelines.telling import TOKEN, WAREHOUSE
from tests.support.processes.blacksmith import ROOT_FOLDER, BlacksmithProcess, GatewayProcess
from tests.support.waiting import until

APP = "tests.support.pipelines.telling:blacksmith"
CANARY = "cAnAry0f5e1d"

TELL = """
import logging, os, threading, warnings
from blacksmith_dagster.logs import set_up_logs
set_up_logs()
urls = " ".join(url for name, url in os.environ.items() if name.endswith("_URL"))
logging.getLogger("mine").error(urls)
logging.getLogger("mine").error("%s", urls, extra={"event": urls, "load": 7})
warnings.warn(urls)
def fail():
    raise ValueError(urls)
thread = threading.Thread(target=fail)
thread.start()
thread.join()
fail()
"""


def lines_of(log: str) -> list[dict[str, Any]]:
    """The lines of a log; fails for one that is not JSON, or that has a secret."""
    assert CANARY not in log
    return [json.loads(line) for line in log.splitlines()]


def test_json_logs_hold_no_secret(postgres_store_url: str) -> None:
    parts = urlsplit(postgres_store_url)
    # The server trusts every client, but gets a password all the same.
    address = f"{parts.username}:{CANARY}@{parts.hostname}:{parts.port}"
    url = parts._replace(netloc=address).geturl()
    env = {
        "BLACKSMITH_LOG": "json",
        "BLACKSMITH_PUBSUB_URL": "postgres",
        "BLACKSMITH_WANDERER_URL": url,
        "BLACKSMITH_GATEWAY_URL": f"http://me:{CANARY}@127.0.0.1:8420",
        TOKEN: f"token-{CANARY}",
        WAREHOUSE: f"key-{CANARY}",
    }
    headers = {"Authorization": f"Bearer {env[TOKEN]}"}
    with (
        GatewayProcess(url, APP, env=env) as gateway,
        BlacksmithProcess(["worker", f"--app={APP}"], url, env) as worker,
        httpx.Client(base_url=gateway.url, headers=headers, trust_env=False) as client,
    ):
        assert client.post("/inbox/told", json={"n": 1}).status_code == 202
        assert client.post("/inbox/told", json={}).status_code == 202  # to quarantine
        until(lambda: "1 discarded" in worker.log, 30, worker.log)
        assert (gateway.stop(), worker.stop()) == (0, 0)
    started, quarantined = lines_of(gateway.log)
    assert started["message"].startswith("blacksmith gateway: http://127.0.0.1:")
    assert (quarantined["level"], quarantined["event"]) == ("error", "inbox/told")

    started, *about_load = lines_of(worker.log)
    assert started["message"].startswith("blacksmith worker: lake/rows, store postgresql://")
    own, failed, done = about_load
    assert [line["logger"] for line in (own, failed)] == ["pipeline", "pipeline"]
    assert own["message"].startswith("loading 1 jobs with ")
    assert "ConnectionError: " in failed["error"]
    assert done["message"].endswith("0 jobs succeeded, 0 failed, 1 discarded")
    for line in about_load:
        assert (line["event"], line["destination"]) == ("lake/rows", "lake")
        assert line["load"] == done["load"]


def test_uncaught_errors_hold_no_secret() -> None:
    """As logged by the hooks of Python, with a secret in the URL of every setting."""
    urls = {
        "BLACKSMITH_STORE_URL": f"postgresql://me:{CANARY}@db/events",
        "BLACKSMITH_PUBSUB_URL": f"kafka://me:{CANARY}%40home@one,two:9093",
        "BLACKSMITH_SUPERVISOR_URL": f"consul://:{CANARY}@agent:8500",
        "BLACKSMITH_WANDERER_URL": f"postgresql://me:{CANARY}@x@db/events",
        "BLACKSMITH_GATEWAY_URL": f"https://me:{CANARY}@gateway",
    }
    done = subprocess.run(
        [sys.executable, "-c", TELL],
        env={**os.environ, **urls, "BLACKSMITH_LOG": "json", "PYTHONPATH": str(ROOT_FOLDER)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    first, second, warned, threaded, last = lines_of(done.stderr)
    assert "postgresql://me:***@db/events" in first["message"]
    assert "***" in second["event"]
    assert second["load"] == 7
    assert warned["logger"] == "py.warnings"
    for line in (threaded, last):
        assert line["level"] == "critical"
        assert "ValueError: " in line["error"]


def test_an_error_that_ends_a_process_is_a_line_of_json() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "blacksmith_dagster.cli", "gateway", "--app=no.such:app"],
        env={**os.environ, "BLACKSMITH_LOG": "json", "PYTHONPATH": str(ROOT_FOLDER)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    (line,) = lines_of(done.stderr)
    assert line["level"] == "critical"
    assert "no.such" in line["message"]


def test_an_unknown_format_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLACKSMITH_LOG", "xml")
    result = CliRunner().invoke(main, ["status"])
    assert result.exit_code == 1
    assert result.output == (
        "Error: BLACKSMITH_LOG: unknown format 'xml'; set it to json, or unset it\n"
    )
