"""The `blacksmith` command: what it prints, what it ends with."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import msgspec
import pytest
from click.testing import CliRunner, Result

from blacksmith_dagster import Batch, Blacksmith, Destination, Request, Schedule, Source
from blacksmith_dagster.cli import main
from blacksmith_dagster.gateway import take
from blacksmith_dagster.scheduler import StandardScheduler
from blacksmith_dagster.store import open_store
from blacksmith_dagster.supervisor import open_supervisor
from scripts.demo import free_port

shop = Source("shop")
ordered = shop.accept("ordered")
mail = Destination("mail", schedule=Schedule("@every 1h"))


@mail.event(receives=ordered)
def thanks(batch: Batch[dict[str, int]]) -> None:
    for job in batch:
        if job.data["n"] == 1:
            batch.fail(job, "the server\nis away")
        if job.data["n"] == 2:
            batch.discard(job, "no address")


blacksmith = Blacksmith(sources=[shop], destinations=[mail], since="2026-01-01")
APP = "--app=tests.acceptance.test_cli:blacksmith"


@pytest.fixture
def ids(store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of three events that were loaded in the run `run-1`: one of them succeeded, one is due
    again, one was discarded."""
    monkeypatch.setenv("BLACKSMITH_HOME", str(tmp_path))
    monkeypatch.setenv("BLACKSMITH_STORE_URL", store_url)
    with contextlib.closing(open_store(store_url, upgrade=True)) as store:
        store.register(blacksmith)
        [ids] = take(blacksmith, store, ordered, [Request.of([{"n": n} for n in range(3)])])
        with contextlib.closing(open_supervisor(None, store)) as supervisor:
            StandardScheduler().load(
                blacksmith, thanks, store=store, supervisor=supervisor, run="run-1"
            )
    return ids


def run(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result


def words(line: str) -> list[str]:
    return line.split()


def test_status_counts_by_state(ids: list[str]) -> None:
    result = run("status", APP)
    head, row = result.stdout.splitlines()
    assert words(row)[:6] == ["mail/thanks", "0", "0", "1", "1", "1"]
    assert words(head)[2:7] == ["awaiting", "executing", "retrying", "succeeded", "discarded"]
    assert head.index("awaiting") + len("awaiting") == row.index("0") + 1  # aligned


def test_status_in_json(ids: list[str]) -> None:
    answer = msgspec.json.decode(run("status", APP, "--json").stdout)
    [row] = answer["destinations"]
    assert row["counts"]["succeeded"] == row["counts"]["discarded"] == 1
    assert answer["orphans"] == []


def test_status_tells_orphans(ids: list[str]) -> None:
    result = run("status", "--app=tests.acceptance.own_adapters:blacksmith")
    assert "No longer declared" in result.stdout
    assert ["mail/thanks", "1"] in map(words, result.stdout.splitlines())


def test_store_is_named_without_credentials(ids: list[str], store_url: str) -> None:
    said = run("events", "list").stderr
    assert said.startswith("store: ")
    assert (
        httpx.URL(store_url).password not in said.split("://")[1]
        or not httpx.URL(store_url).password
    )


def test_events_show_tells_every_transition_and_its_run(ids: list[str]) -> None:
    lines = run("events", "show", ids[1]).stdout.splitlines()
    assert ["event", ids[1]] in map(words, lines)
    assert "job of mail/thanks" in lines
    states = [words(line)[2] for line in lines if line.startswith("20")]
    assert states == ["acknowledged", "awaiting", "executing", "failed"]
    assert "run-1" in lines[-1]
    assert lines[-1].endswith("the server is away")


def test_events_show_in_json(ids: list[str]) -> None:
    answer = msgspec.json.decode(run("events", "show", ids[2], "--json").stdout)
    assert answer["event"]["payload"] == '{"n":2}'
    assert answer["history"][-1]["state"] == "discarded"
    assert answer["history"][-1]["run"] == "run-1"


def test_unknown_event_is_one_line_and_exit_code_1(ids: list[str]) -> None:
    result = run("events", "show", "evt_nothing", code=1)
    assert result.stderr.splitlines()[-1].startswith("Error: ")


def test_usage_is_exit_code_2() -> None:
    run("events", "show", code=2)
    run("jobs", "list", "--state", "lost", code=2)


def test_application_that_is_not_there_is_one_line(ids: list[str]) -> None:
    result = run("status", "--app=nowhere:blacksmith", code=1)
    assert "nowhere:blacksmith" in result.stderr


def test_jobs_list_discarded(ids: list[str]) -> None:
    [job] = msgspec.json.decode(run("jobs", "list", "--state", "discarded", "--json").stdout)
    assert (job["event_id"], job["error"]) == (ids[2], "no address")
    assert ids[1] in run("jobs", "list", "--state", "retrying").stdout


def test_jobs_discard_ends_a_retry(ids: list[str]) -> None:
    result = run("jobs", "discard", "mail/thanks", ids[1], "--why", "closed shop", APP)
    assert "1 of 1" in result.stdout
    lines = run("events", "show", ids[1]).stdout.splitlines()
    assert words(lines[-1])[2] == "discarded"
    assert lines[-1].endswith("closed shop")


def test_retire_refuses_what_is_declared(ids: list[str]) -> None:
    assert "still declared" in run("destinations", "retire", "mail/thanks", APP, code=1).stderr


def test_retire_discards_what_waits(ids: list[str]) -> None:
    other = "--app=tests.acceptance.own_adapters:blacksmith"
    run("destinations", "retire", "mail/thanks", other)
    assert "No longer declared" not in run("status", other).stdout
    assert len(msgspec.json.decode(run("jobs", "list", "--json").stdout)) == 2


def test_quarantine_list(ids: list[str], store_url: str) -> None:
    with contextlib.closing(open_store(store_url)) as store:
        take(blacksmith, store, ordered, [Request(b"{not json")])
    assert "shop/ordered" in run("quarantine", "list").stdout
    assert "In quarantine: 1" in run("status", APP).stdout


def test_gateway_never_imports_dagster(tmp_path: Path) -> None:
    code = (
        "import sys, blacksmith_dagster.cli, blacksmith_dagster.gateway.app;"
        "from blacksmith_dagster.settings import load_application;"
        "load_application('assets.application:blacksmith');"
        "sys.exit('dagster' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path.cwd()).returncode == 0


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project of its own: a pipeline and what `dagster dev` opens."""
    (tmp_path / "pyproject.toml").write_text('[tool.blacksmith]\napp = "pipeline:blacksmith"\n')
    (tmp_path / "pipeline.py").write_text(
        "from blacksmith_dagster import Blacksmith, Source\n"
        "shop = Source('shop')\n"
        "ordered = shop.accept('ordered')\n"
        "blacksmith = Blacksmith(sources=[shop], destinations=[], since='2026-01-01')\n"
    )
    (tmp_path / "definitions.py").write_text(
        "from pipeline import blacksmith\n"
        "from blacksmith_dagster.orchestration import build_definitions\n"
        "defs = build_definitions(blacksmith)\n"
    )
    (tmp_path / "workspace.yaml").write_text("load_from:\n  - python_file: definitions.py\n")
    return tmp_path


def test_dev_runs_both_and_stops_both(project: Path) -> None:
    port, ui_port = free_port(0), free_port(0)
    environment = {**os.environ, "DAGSTER_DISABLE_TELEMETRY": "1"}
    for name in ("BLACKSMITH_HOME", "BLACKSMITH_STORE_URL", "DAGSTER_HOME"):
        environment.pop(name, None)
    command = [sys.executable, "-m", "blacksmith_dagster.cli", "dev"]
    command += [f"--port={port}", f"--ui-port={ui_port}"]
    with (project / "dev.log").open("wb") as log:
        dev = subprocess.Popen(
            command,
            cwd=project,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    urls = f"http://127.0.0.1:{port}/_health", f"http://127.0.0.1:{ui_port}/server_info"
    try:
        deadline = time.monotonic() + 90
        while not all(map(answers, urls)):
            assert dev.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)
        dev.send_signal(signal.SIGINT)
        assert dev.wait(60) == 0, (project / "dev.log").read_text()
    finally:
        dev.kill()
    assert not any(map(answers, urls))
    assert (project / ".blacksmith" / "store.db").exists()
    assert (project / ".blacksmith" / "history").exists()  # Dagster's home is Blacksmith's
    assert "store sqlite:///" in (project / "dev.log").read_text()


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).is_success
    except httpx.HTTPError:
        return False
