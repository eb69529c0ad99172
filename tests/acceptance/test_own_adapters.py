"""The demo's main path with a user's own gateway and scheduler."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from dagster import DagsterInstance

from blacksmith_dagster.orchestration import build_definitions
from scripts import demo
from tests.support.pipelines.own_adapters import blacksmith
from tests.support.waiting import until_ready

FLIGHTS = 3000


@pytest.fixture
def receiver() -> Iterator[demo.Receiver]:
    receiver = demo.Receiver()
    yield receiver
    receiver.close()


def test_main_path_with_own_gateway_and_scheduler(
    tmp_path: Path, receiver: demo.Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = demo.free_port(0)
    monkeypatch.setenv("BLACKSMITH_HOME", str(tmp_path))
    monkeypatch.setenv("WAREHOUSE_URL", f"sqlite:///{tmp_path}/warehouse.db")
    monkeypatch.setenv("ALERTS_URL", receiver.url)
    monkeypatch.setenv("PLAIN_PORT", str(port))
    flights = demo.read_flights(whole_year=False)[:FLIGHTS]
    deadline = time.monotonic() + 60

    app = "--app=tests.support.pipelines.own_adapters:blacksmith"
    command = [sys.executable, "-m", "blacksmith_dagster.cli", "gateway", app]
    gateway = subprocess.Popen(command, cwd=demo.PROJECT)
    try:
        url = f"http://127.0.0.1:{port}"
        until_ready(gateway, lambda: demo.responds(url))
        assert demo.feed(url, demo.as_rows(flights), deadline) == FLIGHTS
    finally:
        gateway.terminate()
        assert gateway.wait(30) == 0

    definitions = build_definitions(blacksmith, start_date="2026-01-01")
    with DagsterInstance.ephemeral() as instance:
        for job in ("wanderer_run", "load_warehouse", "load_alerts"):
            assert definitions.resolve_job_def(job).execute_in_process(instance=instance).success

    assert demo.Warehouse(tmp_path / "warehouse.db").keys() == demo.keys_of(flights)
    assert receiver.keys() == demo.late_keys(flights)
